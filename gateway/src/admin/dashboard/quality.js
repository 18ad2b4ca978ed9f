/** Quality: how far prompts and answers have moved, what probes find, and what callers say. */

import { course } from './charts.js';
import { h, keyed, show, style, text } from './dom.js';
import { ago, clock, count, known, percent, plural, seconds, short, span, words } from './format.js';
import { DataTable, facts, panel, pill, select, stateful } from './ui.js';

/**
 * @typedef {object} Feature
 * @property {string} feature
 * @property {string} side
 * @property {string | null} recipe
 * @property {number | null} distance
 * @property {number} limit
 * @property {boolean} judged
 * @property {boolean} drifted
 * @property {{count: number, mean?: number}} [before]
 * @property {{count: number, mean?: number}} [recent]
 * @property {{name: string, before: number, recent: number}[]} bars
 * @property {[number, number][]} course
 */

/**
 * @typedef {object} Probe
 * @property {string} probe
 * @property {string} judgedBy
 * @property {boolean | null} passing
 * @property {string | null} reason
 * @property {number | null} similarity
 * @property {number | null} mean
 * @property {number | null} limit
 * @property {number | null} seconds
 * @property {number | null} at
 * @property {[number, number][]} course
 */

/**
 * @typedef {object} Route
 * @property {string} route
 * @property {number} at
 * @property {number} sample
 * @property {string} reference
 * @property {number | null} windowSeconds
 * @property {number} recentSeconds
 * @property {number} leastRows
 * @property {Record<string, number>} counts
 * @property {{target: string, rows: number, since: number | null, referenceRows: number | null, signals: Record<string, number>, features: Feature[]}[]} targets
 * @property {{target: string, next: number | null, tokens: number, probes: Probe[], providers: {asked: string, models: {value: string}[], fingerprints: {value: string}[]}[]}[]} probes
 */

/** Recipes as people name them. */
const RECIPES = /** @type {Record<string, string>} */ ({
  kolmogorovSmirnov: 'Kolmogorov-Smirnov',
  jensenShannon: 'Jensen-Shannon',
  cosine: 'cosine',
});

/**
 * Name of a feature; that of a tensor stays as it is.
 * @param {string} feature
 */
function named(feature) {
  return feature.includes(':') ? feature : words(feature);
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let route = context.query.get('route') ?? '';
  /** @type {Route[]} */
  let routes = [];
  const choice = select('Route', 'All routes', route, (value) => {
    route = value;
    context.remember({ route });
    paint();
  });
  context.actions.append(choice.root);
  const list = h('div', { class: 'stack' });
  const state = stateful(list);
  const labels = feedback();
  const root = h('div', { class: 'stack' }, state.root, labels.root);

  function paint() {
    choice.options(routes.map((one) => one.route));
    if (routes.length === 0) {
      state.empty(
        'No route is watched',
        'A route with `quality` compares what callers ask and targets answer with a reference.',
      );
      return;
    }
    keyed(
      list,
      routes.filter((one) => route === '' || one.route === route),
      (one) => one.route,
      card,
    );
    state.ready();
  }

  return {
    root,
    sources: [
      {
        address: () => 'api/quality',
        every: 3,
        paint: (/** @type {{routes: Route[]}} */ answer) => {
          routes = answer.routes;
          paint();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
      { address: () => 'api/feedback', every: 3, paint: labels.update, fail: labels.fail },
    ],
  };
}

/** @param {Route} first */
function card(first) {
  const mark = pill();
  const terms = facts();
  const targets = h('div', { class: 'stack' });
  const probes = h('div', { class: 'stack' });
  const root = panel(first.route, { tools: [mark.root] }, h('div', { class: 'stack' }, terms.root, targets, probes));
  return {
    root,
    /** @param {Route} now */
    update(now) {
      const drifted = now.targets.flatMap((target) => target.features).filter((one) => one.drifted).length;
      const failing = now.probes.flatMap((target) => target.probes).filter((one) => one.passing === false).length;
      const parts = [
        drifted > 0 ? plural(drifted, 'feature has drifted', 'features have drifted') : '',
        failing > 0 ? plural(failing, 'probe fails', 'probes fail') : '',
      ].filter(Boolean);
      mark.set(parts.join(', ') || 'as before', parts.length > 0 ? 'bad' : 'good');
      const reference =
        now.reference === 'window'
          ? `the ${span(now.windowSeconds)} before`
          : now.reference === 'file'
            ? 'a file'
            : now.reference;
      terms.set([
        ['Compared with', reference],
        ['Recent', `${span(now.recentSeconds)} to ${span(now.recentSeconds * 2)}`],
        ['Sample', percent(now.sample)],
        ['Looked at', count(now.counts.sampled)],
        ['Left out', count((now.counts.dropped ?? 0) + (now.counts.unreadable ?? 0))],
        ['Judged', ago(now.at)],
      ]);
      keyed(targets, now.targets, (one) => one.target, target);
      keyed(probes, now.probes, (one) => one.target, probed);
      show(probes, now.probes.length > 0);
    },
  };
}

/** @param {Route['targets'][number]} first */
function target(first) {
  const line = h('p', { class: 'note' });
  const cards = h('div', { class: 'cards' });
  const none = h('p', { class: 'none' }, 'No request has been looked at yet.');
  const root = h(
    'div',
    { class: 'stack' },
    h('div', { class: 'line' }, h('h3', null, first.target), line),
    cards,
    none,
  );
  return {
    root,
    /** @param {Route['targets'][number]} now */
    update(now) {
      const signals = Object.entries(now.signals)
        .filter(([, n]) => n > 0)
        .map(([name, n]) => `${words(name).toLowerCase()} ${count(n)}`);
      const reference =
        now.referenceRows === null
          ? 'is the reference itself'
          : `${plural(now.referenceRows, 'request')} in the reference`;
      text(
        line,
        `${plural(now.rows, 'recent request')}, ${reference}${signals.length > 0 ? ` · signs: ${signals.join(', ')}` : ''}`,
      );
      // Those that have drifted first, then the nearest to their limit.
      const rank = (/** @type {Feature} */ one) => (one.drifted ? 10 : 0) + (one.distance ?? 0) / (one.limit || 1);
      keyed(
        cards,
        [...now.features].sort((a, b) => rank(b) - rank(a)),
        (one) => one.feature,
        feature,
      );
      show(none, now.features.length === 0);
    },
  };
}

/** @param {Feature} first */
function feature(first) {
  const mark = pill();
  const value = h('span', { class: 'big' });
  const line = h('span', { class: 'note' });
  const drawn = course();
  const bars = h('ul', { class: 'bars' });
  const more = h('details', null, h('summary', null, 'Distribution, before and now'), bars);
  const root = h(
    'article',
    { class: 'card' },
    h('div', { class: 'card-head' }, h('h3', null, named(first.feature)), mark.root),
    h('p', { class: 'line' }, value, line),
    drawn.root,
    more,
  );
  return {
    root,
    /** @param {Feature} now */
    update(now) {
      mark.set(
        now.drifted ? 'drifted' : now.judged ? 'as before' : 'too few',
        now.drifted ? 'bad' : now.judged ? 'good' : 'idle',
      );
      text(value, short(now.distance));
      text(
        line,
        `limit ${short(now.limit)}${now.recipe ? ` · ${RECIPES[now.recipe] ?? words(now.recipe)}` : ''} · ${now.side}`,
      );
      const points = now.course.map(([x, y]) => ({ x, y }));
      drawn.set({
        points,
        limit: now.limit,
        worse: 'above',
        format: short,
        label: `${named(now.feature)}: distance ${short(now.distance)}, limit ${short(now.limit)}, ${plural(points.length, 'point')}${points[0] ? ` since ${clock(points[0].x, true)}` : ''}`,
      });
      show(more, now.bars.length > 0);
      if (!more.open) return;
      const most = Math.max(1e-9, ...now.bars.flatMap((bar) => [bar.before, bar.recent]));
      keyed(
        bars,
        now.bars,
        (bar) => bar.name,
        (bar) => {
          const [before, recent, figures] = [h('i'), h('i'), h('span')];
          const name = h('span', { title: bar.name }, bar.name);
          return {
            root: h('li', null, name, h('span', { class: 'pair', 'aria-hidden': 'true' }, before, recent), figures),
            update: (each) => {
              style(before, 'inline-size', `${((each.before / most) * 100).toFixed(1)}%`);
              style(recent, 'inline-size', `${((each.recent / most) * 100).toFixed(1)}%`);
              text(figures, `${percent(each.before)} → ${percent(each.recent)}`);
            },
          };
        },
      );
    },
  };
}

/** @param {Route['probes'][number]} first */
function probed(first) {
  const line = h('p', { class: 'note' });
  const table = new DataTable({
    caption: `Probes of ${first.target}`,
    captionHidden: true,
    keyOf: (/** @type {Probe} */ one) => one.probe,
    empty: 'The file has no probes.',
    columns: [
      { label: 'Probe', heads: true, value: (one) => one.probe },
      {
        label: 'Result',
        make: (cell) => {
          const mark = pill();
          cell.append(mark.root);
          return (one) =>
            mark.set(
              one.passing === null ? 'not yet' : one.passing ? 'as expected' : 'fails',
              one.passing === null ? 'idle' : one.passing ? 'good' : 'bad',
            );
        },
      },
      {
        label: 'Similarity',
        cls: 'num',
        value: (one) => (one.judgedBy === 'exact' ? 'exact' : `${short(one.similarity)} of ${short(one.limit)}`),
      },
      {
        label: 'Over time',
        make: (cell) => {
          const drawn = course('small');
          cell.append(drawn.root);
          return (one) => {
            style(drawn.root, 'display', one.course.length < 2 ? 'none' : '');
            drawn.set({
              points: one.course.map(([x, y]) => ({ x, y })),
              limit: one.limit,
              worse: 'below',
              format: short,
              label: `Similarity of ${one.probe}, last ${short(one.similarity)}`,
            });
          };
        },
      },
      { label: 'Took', cls: 'num', value: (one) => seconds(one.seconds) },
      { label: 'Reason', cls: 'grow', value: (one) => one.reason ?? '' },
      { label: 'Last', cls: 'num', value: (one) => ago(one.at) },
    ],
  });
  const root = h(
    'div',
    { class: 'stack' },
    h('div', { class: 'line' }, h('h3', null, `Probes of ${first.target}`), line),
    table.root,
  );
  return {
    root,
    /** @param {Route['probes'][number]} now */
    update(now) {
      const named = now.providers
        .flatMap((one) => [one.models.at(-1)?.value, one.fingerprints.at(-1)?.value])
        .filter(Boolean);
      const wait = known(now.next)
        ? `next round in ${span(now.next - Date.now() / 1000)}`
        : 'the first round is to come';
      text(
        line,
        `${wait}, ${plural(now.tokens, 'token')} so far${named.length > 0 ? ` · servers name ${named.join(', ')}` : ''}`,
      );
      table.update(now.probes);
    },
  };
}

/** @typedef {{route: string, target: string, labelled: number, scores?: {count: number, mean: number | null, recentCount?: number, recentMean?: number | null}, labels?: Record<string, number>, answers?: {accuracy?: number | null}}} Labelled */

/** What callers say. */
function feedback() {
  const line = h('p', { class: 'note' });
  const table = new DataTable({
    caption: 'Labels of answers by route and target',
    captionHidden: true,
    keyOf: (/** @type {Labelled} */ one) => `${one.route} ${one.target}`,
    empty: 'No answer has been labelled yet.',
    columns: [
      { label: 'Route', heads: true, value: (one) => one.route },
      { label: 'Target', value: (one) => one.target },
      { label: 'Labelled', cls: 'num', value: (one) => count(one.labelled), sort: (one) => one.labelled },
      {
        label: 'Mean score',
        cls: 'num',
        value: (one) => short(one.scores?.mean),
        sort: (one) => one.scores?.mean ?? -1,
      },
      { label: 'Since the last change', cls: 'num', value: (one) => short(one.scores?.recentMean ?? one.scores?.mean) },
      { label: 'Right answers', cls: 'num', value: (one) => percent(one.answers?.accuracy) },
      {
        label: 'Labels',
        cls: 'grow',
        value: (one) => {
          const most = Object.entries(one.labels ?? {}).sort((a, b) => b[1] - a[1]);
          const shown = most.slice(0, 4).map(([name, n]) => `${name} ${count(n)}`);
          return most.length > 4 ? `${shown.join(', ')} and ${most.length - 4} more` : shown.join(', ') || '–';
        },
      },
    ],
  });
  const state = stateful(h('div', null, line, table.root));
  const root = panel('Feedback of callers', {}, state.root);
  return {
    root,
    /** @param {{feedback: {memory: {requests: number, capacity: number}, routes: {route: string, targets: Labelled[]}[]} | null}} answer */
    update({ feedback: now }) {
      if (!now) {
        state.empty('No feedback is taken', 'With `feedback` callers label the answers that they got.');
        return;
      }
      text(
        line,
        `${count(now.memory.requests)} of ${plural(now.memory.capacity, 'request')} are remembered and may be labelled.`,
      );
      table.update(now.routes.flatMap(({ route, targets }) => targets.map((one) => ({ ...one, route }))));
      state.ready();
    },
    /** @param {import('./api.js').ApiError} error */
    fail: (error) => state.fail(error),
  };
}

/** Overview: how much traffic there is, how it fares, and how fast. */

import { HeatMap, TimeChart, quantile, sparkline, sumOf } from './charts.js';
import { attr, h, show, text } from './dom.js';
import { count, known, percent, plural, seconds, short, span, words } from './format.js';
import { DataTable, meter, panel, segmented, select, stateful } from './ui.js';

const WINDOWS = [
  { value: '10m', label: '10 min' },
  { value: '3h', label: '3 h' },
  { value: '24h', label: '24 h' },
];
/** Colours of reasons, in the order of their names. */
const COLOURS = ['c3', 'c4', 'c2', 'c5', 'c6', 'c1', 'c7'];
/** Name under which the gateway sums the routes that it does not follow one by one. */
const OTHER = '_other';

/**
 * Values per second from counts per step.
 * @param {(number | null)[] | null | undefined} counts
 * @param {number} step
 */
function rate(counts, step) {
  return (counts ?? []).map((n) => (known(n) ? n / step : null));
}

/**
 * Sum of the known values.
 * @param {(number | null)[] | undefined} counts
 */
function total(counts) {
  return (counts ?? []).reduce((/** @type {number} */ sum, n) => sum + (n ?? 0), 0);
}

/**
 * Series of the reasons, those with the most first; beyond seven they are one.
 * @param {Record<string, (number | null)[]> | undefined} reasons
 */
function byReason(reasons) {
  const names = Object.keys(reasons ?? {}).sort();
  const used = names.map((name, n) => ({
    name: words(name),
    colour: COLOURS[n % COLOURS.length] ?? 'c7',
    values: reasons?.[name] ?? [],
  }));
  const shown = used.filter((one) => total(one.values) > 0).sort((a, b) => total(b.values) - total(a.values));
  if (shown.length <= COLOURS.length) return shown;
  const rest = shown.slice(COLOURS.length - 1);
  const values = (rest[0]?.values ?? []).map((_, n) => rest.reduce((sum, one) => sum + (one.values[n] ?? 0), 0));
  return [...shown.slice(0, COLOURS.length - 1), { name: 'Other reasons', colour: 'c7', values }];
}

/**
 * Figure with a line of its last minutes.
 * @param {string} label
 * @param {string} [cls]
 */
function tile(label, cls = '') {
  const value = h('span');
  const sub = h('span', { class: 'sub' });
  const spark = sparkline();
  const root = h(
    'div',
    { class: `tile ${cls}`.trim() },
    h('dt', null, label),
    h('dd', null, value),
    h('dd', { class: 'sub' }, sub),
    spark.root,
  );
  return {
    root,
    /**
     * @param {string} written
     * @param {string} below
     */
    set(written, below) {
      text(value, written);
      text(sub, below);
    },
    spark: spark.set,
  };
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let window = context.query.get('window') ?? '10m';
  if (!WINDOWS.some((one) => one.value === window)) window = '10m';
  let route = context.query.get('route') ?? '';
  const routes = select('Route', 'All routes', route, (chosen) => {
    route = chosen;
    context.remember({ route });
    context.refresh();
  });
  const windows = segmented('Window', WINDOWS, window, (chosen) => {
    window = chosen;
    context.remember({ window: chosen === '10m' ? '' : chosen });
    context.refresh();
  });
  context.actions.append(routes.root, windows);

  const tiles = {
    requests: tile('Requests a second'),
    errors: tile('Errors', 'bad-tile'),
    spills: tile('Spills a second', 'spill-tile'),
    latency: tile('Latency p95'),
    first: tile('First token p95'),
    tokens: tile('Tokens a second'),
  };
  const traffic = new TimeChart({ title: 'Traffic', note: 'requests a second' });
  const tokens = new TimeChart({ title: 'Tokens', note: 'a second', none: 'No tokens in this window' });
  const spills = new TimeChart({
    title: 'Spills by reason',
    note: 'requests in each step',
    none: 'No spills in this window',
  });
  const refused = new TimeChart({
    title: 'Refusals by reason',
    note: 'requests in each step',
    none: 'No refusals in this window',
  });
  const latency = new HeatMap({ title: 'Latency', note: 'arrival to last byte' });
  const first = new HeatMap({
    title: 'Time to first token',
    note: 'streams of models',
    none: 'No streams in this window',
  });

  /** @typedef {import('./api.js').Overview['routes'][number]} Route */
  const link = (/** @type {HTMLElement} */ cell) => {
    const anchor = h('a', { href: '#/overview' });
    cell.append(anchor);
    return (/** @type {Route} */ item) => {
      attr(anchor, 'href', `#/overview?route=${encodeURIComponent(item.name)}`);
      text(anchor, item.name === OTHER ? 'all other routes' : item.name);
    };
  };
  let busiest = 1;
  const table = new DataTable({
    caption: 'Routes, as they are now',
    captionHidden: true,
    keyOf: (/** @type {Route} */ item) => item.name,
    empty: 'The configuration has no routes.',
    columns: [
      { label: 'Route', heads: true, make: link, sort: (item) => item.name },
      {
        label: 'Requests a second',
        cls: 'grow',
        sort: (item) => item.requestsPerSecond,
        make: (cell) => {
          const bar = meter('requests a second');
          cell.append(bar.root);
          return (item) => bar.set(item.requestsPerSecond, busiest * 1.4, short(item.requestsPerSecond));
        },
      },
      {
        label: 'Errors a second',
        cls: 'num',
        value: (item) => short(item.errorsPerSecond),
        sort: (item) => item.errorsPerSecond,
      },
      {
        label: 'Error share',
        cls: 'num',
        value: (item) => percent(item.requestsPerSecond > 0 ? item.errorsPerSecond / item.requestsPerSecond : null),
      },
      { label: 'In flight', cls: 'num', value: (item) => count(item.inFlight), sort: (item) => item.inFlight },
    ],
  });

  const uncounted = h(
    'p',
    { class: 'note', hidden: true },
    'Tokens and first tokens are counted by model and server, not by route: choose all routes to see them.',
  );
  const moreRoutes = h('p', { class: 'note', hidden: true });
  const content = h(
    'div',
    { class: 'stack' },
    h(
      'dl',
      { class: 'tiles' },
      Object.values(tiles).map((one) => one.root),
    ),
    h('div', { class: 'grid2' }, traffic.root, spills.root, latency.root, first.root, refused.root, tokens.root),
    uncounted,
    panel('Routes', {}, table.root, moreRoutes),
  );
  const state = stateful(content);

  /** @param {import('./api.js').Overview} overview */
  function paintNow(overview) {
    routes.options(overview.routes.map((one) => one.name));
    busiest = Math.max(1e-9, ...overview.routes.map((one) => one.requestsPerSecond));
    table.update(overview.routes);
    const more = overview.moreRoutes ?? 0;
    show(moreRoutes, more > 0);
    text(moreRoutes, `${plural(more, 'quieter route')} not listed.`);
    const one = route === '' ? overview : overview.routes.find((each) => each.name === route);
    const inFlight = one?.inFlight ?? 0;
    const requests = one?.requestsPerSecond ?? 0;
    const errors = one?.errorsPerSecond ?? 0;
    tiles.requests.set(short(requests), `${count(inFlight)} in flight`);
    tiles.errors.set(percent(requests > 0 ? errors / requests : 0), `${short(errors)} a second`);
  }

  /** @param {import('./api.js').History} history */
  function paintHistory(history) {
    const { start, stepSeconds: step } = history;
    const requests = rate(history.requests, step);
    const errors = rate(history.errors, step);
    const [input, output] = [rate(history.inputTokens, step), rate(history.outputTokens, step)];
    const spilled = byReason(history.spills);
    const turned = byReason(history.refused);
    traffic.update({
      start,
      step,
      series: [
        { name: 'Requests', colour: 'c1', values: requests },
        { name: 'Errors', colour: 'c-error', values: errors, line: true },
      ],
    });
    tokens.update({
      start,
      step,
      series: [
        { name: 'Read', colour: 'c2', values: input },
        { name: 'Written', colour: 'c3', values: output },
      ],
    });
    const nothing = (/** @type {string} */ name) => [{ name, colour: 'c7', values: history.requests.map(() => 0) }];
    spills.update({ start, step, series: spilled.length > 0 ? spilled : nothing('Spills') });
    refused.update({ start, step, series: turned.length > 0 ? turned : nothing('Refusals') });
    latency.update({ start, step, bounds: history.latencyBounds, counts: history.latency });
    const firstTokens = history.firstToken ?? [];
    const firstBounds = history.firstTokenBounds ?? history.latencyBounds;
    first.update({ start, step, bounds: firstBounds, counts: firstTokens });
    // Calls of models are counted by backend and model, not by route.
    const counted = history.firstToken !== null && history.outputTokens !== null;
    for (const part of [first.root, tokens.root, tiles.first.root, tiles.tokens.root]) show(part, counted);
    show(uncounted, !counted);

    // Figures of the last minute, or of two steps where a step is longer.
    const recent = Math.max(2, Math.ceil(60 / step));
    const tail = (/** @type {(number[] | null)[]} */ rows) => sumOf(rows.slice(-recent));
    const of = (/** @type {(number[] | null)[]} */ rows, /** @type {number[]} */ bounds, /** @type {number} */ level) =>
      seconds(quantile(tail(rows), bounds, level)?.value);
    const over = span(recent * step);
    tiles.latency.set(
      of(history.latency, history.latencyBounds, 0.95),
      `p50 ${of(history.latency, history.latencyBounds, 0.5)} · ${over}`,
    );
    tiles.first.set(of(firstTokens, firstBounds, 0.95), `p50 ${of(firstTokens, firstBounds, 0.5)} · ${over}`);
    const course = (/** @type {(number[] | null)[]} */ rows, /** @type {number[]} */ bounds) =>
      rows.map((row) => quantile(row, bounds, 0.95)?.value ?? null);
    tiles.latency.spark(course(history.latency, history.latencyBounds));
    tiles.first.spark(course(firstTokens, firstBounds));
    tiles.requests.spark(requests);
    tiles.errors.spark(errors);
    tiles.tokens.spark(output.map((n, place) => (n ?? 0) + (input[place] ?? 0)));
    const all = history.requests.map((_, n) =>
      Object.values(history.spills ?? {}).reduce((sum, values) => sum + (values[n] ?? 0), 0),
    );
    tiles.spills.spark(all);
    const mean = (/** @type {(number | null)[]} */ values) =>
      total(values.slice(-recent)) / Math.max(1, Math.min(recent, values.length));
    tiles.spills.set(short(mean(all) / step), `${count(total(all))} in the window`);
    tiles.tokens.set(short(mean(output)), `written; ${short(mean(input))} read`);
    state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => `api/history?window=${window}${route === '' ? '' : `&route=${encodeURIComponent(route)}`}`,
        paint: paintHistory,
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
    ],
    overview: paintNow,
  };
}

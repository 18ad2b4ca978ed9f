/** Rollouts: how far each is, the evidence that it rests on, what it has done, and commands. */

import { post } from './api.js';
import { course, interval } from './charts.js';
import { attr, h, keyed, show, style, text } from './dom.js';
import { ago, clock, count, known, percent, plural, seconds, short, words } from './format.js';
import { button, confirm, DataTable, facts, held, panel, pill, select, stateful, toast } from './ui.js';

/**
 * @typedef {object} Evidence
 * @property {string} name
 * @property {string} threshold
 * @property {'worse' | 'fine' | 'undecided'} finding
 * @property {{requests: number, estimate: number | null}} stable
 * @property {{requests: number, estimate: number | null}} candidate
 * @property {number | null} effect
 * @property {number | null} lower
 * @property {number | null} upper
 * @property {number | null} lnWorse
 * @property {number | null} lnWorseNeeded
 * @property {number | null} lnFine
 * @property {number | null} lnFineNeeded
 * @property {number | null} more
 * @property {string} sentence
 */

/**
 * @typedef {object} Entry
 * @property {number} at
 * @property {string} event
 * @property {string} state
 * @property {number} step
 * @property {number} weight
 * @property {string} by
 * @property {string} reason
 * @property {{step: number, metrics: Evidence[]}} [judgement]
 */

/**
 * @typedef {object} Rollout
 * @property {string} name
 * @property {string} candidate
 * @property {string[]} stable
 * @property {string} strategy
 * @property {string} identity
 * @property {number} run
 * @property {string} state
 * @property {number} step
 * @property {number} steps
 * @property {number} weight
 * @property {string} reason
 * @property {number | null} startedAt
 * @property {number | null} stepAt
 * @property {number | null} updatedAt
 * @property {number | null} endedAt
 * @property {number} candidateRequests
 * @property {number} stableRequests
 * @property {number} falseAlarm
 * @property {string | null} pausedBy
 * @property {{step: number, metrics: Evidence[], sentence: string} | null} [judgement]
 * @property {Entry[]} [history]
 */

/** @typedef {{x: number, y: number | null, low: number | null, high: number | null, step: number, requests: number}} Look */

/** @type {Record<string, import('./ui.js').Tone>} */
const TONES = {
  waiting: 'idle',
  running: 'info',
  paused: 'warn',
  inconclusive: 'warn',
  promoted: 'good',
  aborted: 'bad',
};
/** @type {Record<string, import('./ui.js').Tone>} */
const EVENTS = {
  begun: 'info',
  stepUp: 'info',
  promoted: 'good',
  aborted: 'bad',
  paused: 'warn',
  inconclusive: 'warn',
  gateRefused: 'bad',
  gateAgreed: 'good',
};
/** Commands with the states that allow them. */
const COMMANDS = [
  { name: 'promote', label: 'Promote', cls: 'primary', states: ['running', 'paused', 'inconclusive', 'waiting'] },
  { name: 'resume', label: 'Resume', cls: '', states: ['paused', 'inconclusive'] },
  { name: 'pause', label: 'Pause', cls: '', states: ['running', 'waiting', 'inconclusive'] },
  { name: 'start', label: 'Start again', cls: '', states: ['promoted', 'aborted'] },
  { name: 'abort', label: 'Abort', cls: 'quiet-danger', states: ['running', 'paused', 'inconclusive', 'waiting'] },
];
/** Looks that are kept of each metric, to draw how its bounds close. */
const LOOKS = 200;

/**
 * Parts of a threshold: `"+0.02"` is a difference, `"1.3x"` a ratio, `0.2` the candidate's own figure.
 * @param {string | number} threshold
 * @returns {{kind: 'difference' | 'ratio' | 'figure', limit: number, zero: number | null, worse: 'above' | 'below'}}
 */
export function parse(threshold) {
  const written = String(threshold);
  const limit = Number.parseFloat(written);
  if (written.endsWith('x')) return { kind: 'ratio', limit, zero: 1, worse: limit < 1 ? 'below' : 'above' };
  if (/^[+-]/.test(written)) return { kind: 'difference', limit, zero: 0, worse: limit < 0 ? 'below' : 'above' };
  return { kind: 'figure', limit, zero: null, worse: 'above' };
}

/**
 * Effect in the form of its threshold.
 * @param {string} threshold
 * @param {number | null} value
 */
function effect(threshold, value) {
  if (!known(value)) return '?';
  const { kind } = parse(threshold);
  if (kind === 'ratio') return `${short(value)}×`;
  return kind === 'difference' && value >= 0 ? `+${short(value)}` : short(value);
}

/**
 * Effect, once the candidate has answered: before, the gateway has none to tell.
 * @param {Evidence} each
 */
function shownEffect(each) {
  return each.candidate.requests > 0 ? each.effect : null;
}

/** @param {Evidence} one */
function bounds(one) {
  if (!known(one.lower) && !known(one.upper)) return 'no bounds yet';
  return `${effect(one.threshold, one.lower)} to ${effect(one.threshold, one.upper)}`;
}

/**
 * Share of the evidence that the nearer finding has.
 * @param {Evidence} one
 */
function progress(one) {
  const part = (/** @type {number | null} */ ln, /** @type {number | null} */ needed) =>
    known(ln) && known(needed) && needed > 0 ? Math.min(1, Math.max(0, ln / needed)) : 0;
  const [worse, fine] = [part(one.lnWorse, one.lnWorseNeeded), part(one.lnFine, one.lnFineNeeded)];
  return worse > fine ? `${Math.round(worse * 100)}% to worse` : `${Math.round(fine * 100)}% to fine`;
}

/**
 * Step as people count.
 * @param {{step: number, steps: number}} of
 */
function step(of) {
  return `${Math.min(of.step + 1, of.steps)} of ${of.steps}`;
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  const wanted = context.path[0];
  const picker = h('nav', { class: 'picker', 'aria-label': 'Rollouts' });
  const detail = h('div', { class: 'stack' });
  const state = stateful(h('div', { class: 'split' }, picker, detail));
  let chosen = wanted ?? '';
  const one = view(context);
  const inner = stateful(one.root);
  detail.append(inner.root);

  /** @param {{rollouts: Rollout[]}} answer */
  function list({ rollouts }) {
    if (rollouts.length === 0) {
      state.empty(
        'No rollouts',
        'A route with `rollout` moves its traffic to a candidate step by step, and judges it on the way.',
      );
      return;
    }
    if (chosen === '' || (wanted === undefined && !rollouts.some((each) => each.name === chosen))) {
      chosen = rollouts[0]?.name ?? '';
      context.refresh();
    }
    keyed(
      picker,
      rollouts,
      (each) => each.name,
      (each) => {
        const [mark, line, steps] = [
          pill(),
          h('span', { class: 'note' }),
          h('span', { class: 'steps', 'aria-hidden': 'true' }),
        ];
        const root = h(
          'a',
          { href: `#/rollouts/${encodeURIComponent(each.name)}` },
          h('span', { class: 'row' }, h('b', null, each.name), mark.root),
          steps,
          line,
        );
        return {
          root,
          update: (now) => {
            mark.set(words(now.state), TONES[now.state] ?? 'idle');
            text(
              line,
              `${short(now.weight)}% ${now.strategy === 'shadow' ? 'copied to' : 'to'} ${now.candidate} · step ${step(now)}`,
            );
            bars(steps, now);
            attr(root, 'aria-current', now.name === chosen ? 'true' : null);
          },
        };
      },
    );
    state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/rollouts',
        paint: list,
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
      {
        address: () => (chosen === '' ? 'api/rollouts' : `api/rollouts/${encodeURIComponent(chosen)}`),
        paint: (/** @type {any} */ answer) => {
          if (typeof answer.name !== 'string') return;
          one.update(answer);
          inner.ready();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => inner.fail(error),
      },
    ],
  };
}

/**
 * @param {HTMLElement} place
 * @param {Rollout} rollout
 */
function bars(place, rollout) {
  const done =
    rollout.state === 'promoted'
      ? rollout.steps
      : rollout.state === 'aborted'
        ? 0
        : rollout.startedAt === null
          ? 0
          : rollout.step + 1;
  const all = Array.from({ length: Math.min(rollout.steps, 24) }, (_, n) => n);
  keyed(place, all, String, () => {
    const root = h('i');
    return { root, update: (n) => attr(root, 'data-done', n < done) };
  });
}

/**
 * One rollout.
 * @param {import('./main.js').Context} context
 */
function view(context) {
  /** @type {Rollout | null} */
  let now = null;
  const mark = pill();
  const title = h('span');
  const head = h('h2', null, title);
  const buttons = h('div', { class: 'tools' });
  const commands = COMMANDS.map((command) => {
    const control = button(command.label, () => void give(command, control), `small ${command.cls}`.trim());
    buttons.append(control);
    return { command, control };
  });

  /**
   * @param {(typeof COMMANDS)[number]} command
   * @param {HTMLButtonElement} control
   */
  async function give(command, control) {
    const rollout = now;
    if (!rollout) return;
    const shadow = rollout.strategy === 'shadow';
    /** @type {Record<string, string>} */
    const says = {
      promote: shadow
        ? 'Copies end, and the candidate is recorded as fine.'
        : `${rollout.candidate} gets all requests, whatever the evidence says. The rollout ends.`,
      abort: `${rollout.candidate} gets no request from now on. The rollout ends.`,
      pause: 'No further step is taken. The candidate is judged on, and may still be aborted.',
      resume: 'The rollout goes on with its steps.',
      start: `${rollout.candidate} begins again at the first step.`,
    };
    const agreed = await confirm({
      title: `${command.label} ${rollout.name}?`,
      body: says[command.name] ?? '',
      action: command.label,
      danger: command.name === 'abort',
      reason: true,
    });
    if (!agreed) return;
    await held(control, async () => {
      await post(
        `api/rollouts/${encodeURIComponent(rollout.name)}/${command.name}`,
        agreed.reason === '' ? undefined : { reason: agreed.reason },
      );
      toast(`${rollout.name}: ${command.name} is done.`);
      context.refresh();
    });
  }

  const part = h('span', { class: 'share-part' });
  const left = h('span');
  const right = h('span', { class: 'muted' });
  const share = h(
    'div',
    null,
    h('div', { class: 'share-text' }, left, right),
    h('div', { class: 'share', 'aria-hidden': 'true' }, part),
  );
  const steps = h('div', { class: 'steps', 'aria-hidden': 'true' });
  const reason = h('p', { class: 'reason' });
  const terms = facts();
  const top = h(
    'section',
    { class: 'panel stack', 'aria-label': 'Rollout' },
    h('div', { class: 'panel-head' }, head, mark.root, buttons),
    share,
    steps,
    reason,
    terms.root,
  );

  const sentence = h('p', { class: 'note' });
  const table = new DataTable({
    caption: 'Evidence of each metric',
    captionHidden: true,
    keyOf: (/** @type {Evidence} */ each) => each.name,
    empty: 'Nothing has been judged yet: the first look comes with the first requests.',
    columns: [
      {
        label: 'Metric',
        heads: true,
        make: (cell) => {
          const [name, limit] = [h('span'), h('span', { class: 'sub' })];
          cell.append(name, limit);
          return (each) => {
            text(name, words(each.name));
            const { worse, kind } = parse(each.threshold);
            const written = String(each.threshold).replace('x', '×');
            text(
              limit,
              kind === 'figure' ? `worse above ${written}` : `worse ${worse === 'above' ? 'past' : 'below'} ${written}`,
            );
          };
        },
      },
      { label: 'Stable', cls: 'num', make: (cell) => figure(cell, (each) => each.stable) },
      { label: 'Candidate', cls: 'num', make: (cell) => figure(cell, (each) => each.candidate) },
      {
        label: 'Effect',
        cls: 'num',
        value: (each) =>
          each.candidate.requests > 0 ? effect(each.threshold, each.effect) : '–',
      },
      {
        label: 'Where the true effect is',
        cls: 'grow',
        make: (cell) => {
          const [drawn, line] = [interval(), h('span', { class: 'sub' })];
          cell.append(drawn.root, line);
          return (each) => {
            const { limit, zero, worse } = parse(each.threshold);
            drawn.set({
              effect: shownEffect(each),
              lower: each.lower,
              upper: each.upper,
              limit,
              zero,
              worse,
              finding: each.finding,
              label: `${each.sentence || each.finding}; effect ${effect(each.threshold, shownEffect(each))}, bounds ${bounds(each)}`,
            });
            text(line, bounds(each));
          };
        },
      },
      {
        label: 'Finding',
        make: (cell) => {
          const [finding, line] = [pill(), h('span', { class: 'sub' })];
          cell.append(finding.root, line);
          return (each) => {
            finding.set(each.finding, each.finding === 'fine' ? 'good' : each.finding === 'worse' ? 'bad' : 'idle');
            const needs = known(each.more)
              ? `${count(each.more)} more requests`
              : each.candidate.requests === 0 || each.stable.requests === 0
                ? 'needs requests'
                : 'out of reach';
            text(line, each.finding === 'undecided' ? `${progress(each)}, ${needs}` : '');
          };
        },
      },
    ],
  });

  // How the bounds of one metric close, look by look.
  /** @type {Map<string, Look[]>} */
  const looks = new Map();
  let seen = '';
  let metric = '';
  const metrics = select('Metric', '', '', (value) => {
    metric = value;
    drawSequence();
  });
  const drawn = course(matchMedia('(max-width: 640px)').matches ? 'normal' : 'wide');
  const verdict = h('p', { class: 'note' });
  const sequence = panel(
    'Confidence sequence',
    { note: 'bounds of the effect at each look, valid however often you look', tools: [metrics.root] },
    drawn.root,
    verdict,
  );

  /**
   * @param {Evidence} each
   * @param {number} at
   * @param {number} inStep
   */
  function look(each, at, inStep) {
    const list = looks.get(each.name) ?? [];
    looks.set(each.name, list);
    const last = list.at(-1);
    const requests = each.candidate.requests + each.stable.requests;
    if (last && (last.x >= at || (last.step === inStep && last.requests === requests))) return;
    list.push({ x: at, y: shownEffect(each), low: each.lower, high: each.upper, step: inStep, requests });
    if (list.length > LOOKS) list.shift();
  }

  function drawSequence() {
    const each = now?.judgement?.metrics.find((one) => one.name === metric);
    show(sequence, each !== undefined);
    if (!each) return;
    const { limit, zero, worse } = parse(each.threshold);
    drawn.set({
      points: looks.get(metric) ?? [],
      limit,
      zero: zero ?? undefined,
      worse,
      format: (value) => effect(each.threshold, value),
      label: `${words(each.name)}: effect ${effect(each.threshold, shownEffect(each))}, bounds ${bounds(each)}, limit ${each.threshold}`,
    });
    text(verdict, each.sentence);
  }

  const history = h('ol', { class: 'timeline' });
  const none = h('p', { class: 'none' }, 'Nothing has happened yet.');
  const root = h(
    'div',
    { class: 'stack' },
    top,
    panel('Evidence', {}, sentence, table.root),
    sequence,
    panel('History', { note: 'newest first' }, history, none),
  );

  return {
    root,
    /** @param {Rollout} rollout */
    update(rollout) {
      now = rollout;
      // Another run, or another version of the candidate, begins its evidence anew.
      const identity = `${rollout.name} ${rollout.identity} ${rollout.run}`;
      if (identity !== seen) {
        seen = identity;
        looks.clear();
        for (const entry of rollout.history ?? []) {
          for (const each of entry.judgement?.metrics ?? []) look(each, entry.at, entry.judgement?.step ?? 0);
        }
      }
      text(title, rollout.name);
      mark.set(words(rollout.state), TONES[rollout.state] ?? 'idle');
      for (const { command, control } of commands) show(control, command.states.includes(rollout.state));
      const shadow = rollout.strategy === 'shadow';
      text(left, `${rollout.candidate} · ${short(rollout.weight)}%${shadow ? ' copied' : ''}`);
      text(
        right,
        shadow
          ? `${rollout.stable.join(', ')} answers all callers`
          : `${rollout.stable.join(', ')} · ${short(100 - rollout.weight)}%`,
      );
      style(part, 'inline-size', `${Math.min(100, Math.max(0, rollout.weight))}%`);
      bars(steps, rollout);
      text(reason, rollout.reason);
      terms.set([
        ['Strategy', words(rollout.strategy)],
        ['Step', step(rollout)],
        ['Began', rollout.startedAt === null ? 'not yet' : ago(rollout.startedAt)],
        ...(rollout.endedAt === null
          ? [/** @type {[string, string]} */ (['In this step for', ago(rollout.stepAt).replace(' ago', '')])]
          : [/** @type {[string, string]} */ (['Ended', ago(rollout.endedAt)])]),
        [shadow ? 'Pairs compared' : 'Requests, candidate', count(rollout.candidateRequests)],
        ...(shadow ? [] : [/** @type {[string, string]} */ (['Requests, stable', count(rollout.stableRequests)])]),
        ['False alarms at most', `${short(rollout.falseAlarm * 100)}%`],
        ['Run', count(rollout.run)],
      ]);
      const judged = rollout.judgement?.metrics ?? [];
      text(sentence, rollout.judgement?.sentence ?? '');
      table.update(judged);
      for (const each of judged) look(each, Date.now() / 1000, rollout.judgement?.step ?? 0);
      if (!judged.some((each) => each.name === metric)) metric = judged[0]?.name ?? '';
      metrics.options(
        judged.map((each) => each.name),
        words,
      );
      metrics.set(metric);
      drawSequence();
      const entries = [...(rollout.history ?? [])].reverse();
      keyed(
        history,
        entries,
        (entry) => `${entry.at} ${entry.event}`,
        (entry) => ({
          root: h(
            'li',
            { 'data-tone': EVENTS[entry.event] ?? 'idle' },
            h('span', null, h('b', null, words(entry.event)), ` · ${short(entry.weight)}% · by ${entry.by}`),
            h('time', { datetime: new Date(entry.at * 1000).toISOString() }, clock(entry.at, true)),
            h('p', null, entry.reason),
          ),
        }),
      );
      show(none, entries.length === 0);
    },
  };
}

/**
 * Figure of a metric with its unit.
 * @param {string} metric
 * @param {number | null} value
 */
function measured(metric, value) {
  if (/^(latency|firstToken)/.test(metric)) return seconds(value);
  if (/(Rate|Errors|Difference)$/.test(metric)) return percent(value);
  return metric === 'costPerRequest' ? `$${short(value)}` : short(value);
}

/**
 * @param {HTMLElement} cell
 * @param {(each: Evidence) => Evidence['stable']} of
 */
function figure(cell, of) {
  const [value, requests] = [h('span'), h('span', { class: 'sub' })];
  cell.append(value, requests);
  return (/** @type {Evidence} */ each) => {
    const { estimate, requests: n } = of(each);
    text(value, n > 0 ? measured(each.name, estimate) : '–');
    text(requests, plural(n, 'request'));
  };
}

/** Configuration: what runs, the mistakes of the last edit, and what the last edits changed. */

import { h, keyed, show, text } from './dom.js';
import { ago, clock, count, plural } from './format.js';
import { button, facts, panel, pill, search, segmented, stateful, toast } from './ui.js';

/** @typedef {{severity: string, file: string, line: number, column: number, path: string, message: string, help?: string}} Diagnostic */
/** @typedef {{result: string, at: number, file?: string, diagnostics?: Diagnostic[] | {diagnostics?: Diagnostic[]}, errors?: string[]}} Edit */
/** @typedef {Edit & {generation?: number | null, diff?: string | null, diffCut?: boolean}} PastEdit */

/** Most lines that are shown of a configuration or a difference. */
const MAX_LINES = 20_000;

/**
 * Diagnostics of an edit, however they are wrapped.
 * @param {Edit} edit
 * @returns {Diagnostic[]}
 */
function diagnostics(edit) {
  const list = edit.diagnostics;
  return Array.isArray(list) ? list : (list?.diagnostics ?? []);
}

/** Texts that YAML would read as something else, or not at all. */
const UNSAFE =
  /^(?:|[-?:](?:\s.*)?|[\s"'#&*!|>%@`{}[\],].*|.*:\s.*|.*\s#.*|.*:|.*\s|~|null|true|false|yes|no|on|off|y|n|=|<<|---|\.\.\.)$/is;
/** Texts that YAML 1.1 or 1.2 would read as a number or a date. */
const NUMBER =
  /^(?:[-+]?(?:\.?\d[\d_]*|\d[\d_]*\.[\d_]*)(?:e[-+]?\d*)?|[-+]?0[xob][\da-f_]+|[-+]?\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?|\d{4}-\d.*|[-+]?\.(?:inf|nan))$/i;

/**
 * A value as YAML, in the style of the examples.
 * @param {unknown} value
 * @param {string} [indent]
 * @returns {string}
 */
export function yaml(value, indent = '') {
  if (Array.isArray(value)) {
    if (value.length === 0) return ' []\n';
    return `\n${value
      .map((one) => {
        const inner = yaml(one, `${indent}  `);
        // The first key of a mapping stands beside the dash.
        const block = inner.startsWith('\n') && one !== null && typeof one === 'object' && !Array.isArray(one);
        return `${indent}-${block ? ` ${inner.slice(1 + indent.length + 2)}` : inner}`;
      })
      .join('')}`;
  }
  if (value !== null && typeof value === 'object') {
    const entries = Object.entries(value);
    if (entries.length === 0) return ' {}\n';
    return `\n${entries.map(([key, one]) => `${indent}${scalar(key)}:${yaml(one, `${indent}  `)}`).join('')}`;
  }
  return ` ${scalar(value)}\n`;
}

/** @param {unknown} value */
function scalar(value) {
  if (typeof value !== 'string') return String(value);
  // JSON's strings are strings of YAML too.
  return UNSAFE.test(value) || NUMBER.test(value) || /[\u0000-\u001f\u007f-\u009f\u2028\u2029\ufeff]/.test(value)
    ? JSON.stringify(value)
    : value;
}

/**
 * A value without keys that are not set: null, and empty lists and mappings.
 * @param {unknown} value
 * @returns {unknown}
 */
export function setKeys(value) {
  if (Array.isArray(value)) return value.map(setKeys);
  if (value === null || typeof value !== 'object') return value;
  const kept = Object.entries(value)
    .map(([key, one]) => [key, setKeys(one)])
    .filter(([, one]) => one !== null && (typeof one !== 'object' || Object.keys(one).length > 0));
  return Object.fromEntries(kept);
}

/** Text with numbered lines, of which only those that differ are replaced. */
function code(label = '', numbered = false) {
  const root = h('pre', {
    class: `code ${numbered ? 'numbered' : ''}`.trim(),
    tabindex: '0',
    role: 'region',
    'aria-label': label,
  });
  /** @type {string[]} */
  let shown = [];
  return {
    root,
    /**
     * @param {string} written
     * @param {(line: string) => string} kind
     */
    set(written, kind) {
      const lines = written.replace(/\n$/, '').split('\n').slice(0, MAX_LINES);
      while (root.childElementCount > lines.length) root.lastElementChild?.remove();
      lines.forEach((line, n) => {
        const one = root.children[n] ?? root.appendChild(h('span'));
        if (shown[n] !== line || one.childNodes.length === 0) one.textContent = line === '' ? '\u200b' : line;
        const of = kind(line);
        if (of === '') one.removeAttribute('data-kind');
        else one.setAttribute('data-kind', of);
      });
      shown = lines;
    },
  };
}

/** List of mistakes and warnings. */
function mistakes() {
  const list = h('ul', { class: 'diagnostics' });
  return {
    root: list,
    /** @param {Edit} edit */
    set(edit) {
      const all = [
        ...diagnostics(edit).map((one) => ({
          tone: one.severity === 'error' ? 'bad' : 'warn',
          where: `${one.file}${one.line > 0 ? `:${one.line}:${one.column}` : ''}${one.path ? ` · ${one.path}` : ''}`,
          message: one.message,
          help: one.help ?? '',
        })),
        ...(edit.errors ?? []).map((message) => ({ tone: 'bad', where: edit.file ?? '', message, help: '' })),
      ];
      keyed(
        list,
        all,
        (one) => `${one.where} ${one.message}`,
        (one) => ({
          root: h(
            'li',
            { 'data-tone': one.tone },
            h('span', { class: 'where' }, one.where),
            h('strong', null, one.message),
            one.help ? h('p', { class: 'muted' }, one.help) : null,
          ),
        }),
      );
      show(list, all.length > 0);
      return all.length;
    },
  };
}

/** @param {string} line */
function kindOfDiff(line) {
  return line.startsWith('+') ? 'add' : line.startsWith('-') ? 'del' : '';
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let form = context.query.get('as') === 'json' ? 'json' : 'yaml';
  let wanted = '';
  /** @type {unknown} */
  let running = null;
  let written = '';
  let paintedAs = '';

  const mark = pill();
  const terms = facts();
  const faults = mistakes();
  const kept = h('p', { class: 'note' }, 'The last good configuration runs on.');
  const last = panel('Last edit', { tools: [mark.root] }, h('div', { class: 'stack' }, terms.root, kept, faults.root));

  const shown = code('Text of the running configuration', true);
  const find = search('Find in the configuration', (value) => {
    wanted = value;
    paint(true);
    shown.root.querySelector('[data-kind="hit"]')?.scrollIntoView({ block: 'center' });
  });
  const copy = button(
    'Copy',
    async () => {
      await navigator.clipboard.writeText(written);
      toast('The configuration is copied.');
    },
    'small',
  );
  // Off loopback without TLS browsers have no clipboard.
  show(copy, Boolean(navigator.clipboard));
  const choice = segmented(
    'Form',
    [
      { value: 'yaml', label: 'YAML' },
      { value: 'json', label: 'JSON' },
    ],
    form,
    (value) => {
      form = value;
      context.remember({ as: value === 'yaml' ? '' : value });
      paint(true);
    },
  );
  const unset = h('input', { type: 'checkbox', onchange: () => paint(true) });
  const whole = panel(
    'Running configuration',
    {
      note: 'without its secrets',
      tools: [
        h(
          'div',
          { class: 'tools' },
          h('label', { class: 'check' }, unset, 'Keys that are not set'),
          find.root,
          choice,
          copy,
        ),
      ],
    },
    shown.root,
  );

  const edits = h('ol', { class: 'edits' });
  const noEdits = h('p', { class: 'none' }, 'The process runs what it began with.');
  const past = panel('Last edits', { note: 'newest first' }, edits, noEdits);
  const state = stateful(h('div', { class: 'stack' }, last, past, whole));

  /** @param {boolean} force */
  function paint(force) {
    const source = JSON.stringify(running);
    if (!force && source === paintedAs) return;
    paintedAs = source;
    const value = unset.checked ? running : setKeys(running);
    written = form === 'json' ? JSON.stringify(value, null, 2) : yaml(value).trimStart();
    shown.set(written, (line) => (wanted !== '' && line.toLowerCase().includes(wanted) ? 'hit' : ''));
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/config',
        paint: (/** @type {{generation: number | null, running: unknown, lastEdit: Edit}} */ answer) => {
          const edit = answer.lastEdit;
          const failed = edit.result !== 'ok';
          mark.set(failed ? 'refused' : 'in use', failed ? 'bad' : 'good');
          const n = faults.set(edit);
          terms.set([
            ['Generation', count(answer.generation)],
            ['Read', `${clock(edit.at, true)}, ${ago(edit.at)}`],
            ['File', edit.file ?? '–'],
            ['Mistakes and warnings', count(n)],
          ]);
          show(kept, failed);
          running = answer.running;
          paint(false);
          state.ready();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
      {
        address: () => 'api/config/history',
        every: 2,
        paint: (/** @type {{edits: PastEdit[]}} */ answer) => {
          keyed(
            edits,
            answer.edits,
            (edit) => `${edit.generation} ${edit.at}`,
            (edit) => {
              const failed = edit.result !== 'ok';
              const result = pill();
              result.set(failed ? 'refused' : 'in use from then', failed ? 'bad' : 'good');
              const found = mistakes();
              const n = found.set(edit);
              const changes = (edit.diff ?? '')
                .split('\n')
                .filter((line) => ['add', 'del'].includes(kindOfDiff(line))).length;
              const difference = code(`Difference of the edit at ${clock(edit.at)}`);
              if (edit.diff) difference.set(edit.diff, kindOfDiff);
              const when = h('span', { class: 'muted' });
              const root = h(
                'li',
                null,
                h('div', { class: 'line' }, h('strong', null, clock(edit.at, true)), result.root, when),
                n > 0 ? found.root : null,
                edit.diff
                  ? h(
                      'details',
                      null,
                      h('summary', null, `Show ${plural(changes, 'changed line')}`),
                      difference.root,
                      edit.diffCut ? h('p', { class: 'note' }, 'Further lines are cut off.') : null,
                    )
                  : null,
                edit.diff === '' ? h('p', { class: 'note' }, 'Nothing that is shown here differs.') : null,
              );
              return { root, update: (now) => text(when, ago(now.at)) };
            },
          );
          show(noEdits, answer.edits.length === 0);
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => {
          text(noEdits, error.message);
          show(noEdits, true);
        },
      },
    ],
  };
}

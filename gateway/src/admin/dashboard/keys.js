/** Keys that are made at run time: who has them, until when, when they were last used; make, end, rotate, revoke. */

import { get, post, remove } from './api.js';
import { attr, h, newId, show, text } from './dom.js';
import { ago, clock, count, dollars, plural, short, unix } from './format.js';
import { button, confirm, DataTable, form, held, paged, panel, pill, search, sheet, stacked, stateful, toast } from './ui.js';

/**
 * @typedef {object} Limits
 * @property {string} [requests]
 * @property {number} [burst]
 * @property {string} [tokens]
 * @property {number} [tokenBurst]
 * @property {number} [concurrency]
 * @property {{tokens?: number, usd?: number, per: string, onExceeded?: string}} [budget]
 * @property {string} [onExceeded]
 */

/**
 * @typedef {object} Key
 * @property {string} id
 * @property {string} [consumer] Left out for a key that cannot be read.
 * @property {string} state `active`, `expired`, `inactive` or `unreadable`.
 * @property {string} [createdAt]
 * @property {string} [createdBy]
 * @property {string} [expires]
 * @property {string} [lastUsed] On this gateway, since it began.
 * @property {string} [previousUntil] Time until which the secret before the last rotation is accepted.
 * @property {Limits} [limits]
 */

/** @typedef {{keys: Key[], maxKeys: number, storeAnswers: boolean}} Answer */
/** @typedef {Key & {key: string}} Made */

/** Rows that are shown at first, and more with each wish for more: the browser lays out ten thousand slowly. */
const ROWS = 100;

/** @type {Record<string, [string, import('./ui.js').Tone]>} */
const STATES = {
  active: ['Active', 'good'],
  expired: ['Expired', 'idle'],
  inactive: ['No such consumer', 'warn'],
  unreadable: ['Unreadable', 'bad'],
};

/** Times for which the secret before a rotation goes on, as the API takes them. */
const GRACES = [
  ['', 'not at all'],
  ['1h', 'an hour more'],
  ['1d', 'a day more'],
  ['7d', '7 days more'],
  ['30d', '30 days more'],
];

/** @param {Limits | undefined} limits */
function limitText(limits) {
  const parts = [
    limits?.requests && `${limits.requests} requests`,
    limits?.burst && `${count(limits.burst)} requests at once`,
    limits?.tokens && `${limits.tokens} tokens`,
    limits?.tokenBurst && `${count(limits.tokenBurst)} tokens at once`,
    limits?.concurrency && `${count(limits.concurrency)} at the same time`,
  ];
  return parts.filter(Boolean).join(', ') || '–';
}

/** @param {Limits | undefined} limits */
function budgetText(limits) {
  const budget = limits?.budget;
  if (!budget) return '–';
  const parts = [
    budget.tokens !== undefined && `${short(budget.tokens)} tokens`,
    budget.usd !== undefined && dollars(budget.usd),
  ];
  return `${parts.filter(Boolean).join(', ')} a ${budget.per}`;
}

/**
 * Time that a person chose in the browser's zone, as the API takes it.
 * @param {HTMLInputElement} field
 */
function chosen(field) {
  const time = new Date(field.value);
  return Number.isNaN(time.getTime()) ? undefined : time.toISOString();
}

/** Field for a time to come. */
function timeField() {
  const now = new Date();
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
  return h('input', { type: 'datetime-local', min: local });
}

/**
 * Shows a key, which no page and no file has after this.
 * @param {string} title
 * @param {Made} made
 */
function reveal(title, made) {
  const id = newId('key');
  const field = h('input', { id, class: 'secret', readonly: true, value: made.key, spellcheck: 'false' });
  const said = h('p', { class: 'muted', role: 'status' });
  const copy = button('Copy', () => void copied(), 'primary');
  async function copied() {
    try {
      await navigator.clipboard.writeText(made.key);
    } catch {
      // Without TLS off loopback the browser has no clipboard for pages; what is selected can be copied all the same.
      field.focus();
      field.select();
      if (!document.execCommand('copy')) {
        text(said, 'The browser does not let the page copy. The key is selected: press Ctrl and C.');
        return;
      }
    }
    text(said, 'Copied.');
  }
  field.addEventListener('focus', () => field.select());
  sheet(
    title,
    h('p', null, `Give it to the caller now: it is shown this once and stored nowhere. Its id is ${made.id}.`),
    h('div', { class: 'stacked' }, h('label', { for: id }, 'Key'), h('div', { class: 'copy' }, field, copy)),
    said,
  );
  copy.focus();
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let wanted = (context.query.get('consumer') ?? '').toLowerCase();
  /** @type {Answer | null} */
  let shown = null;
  const filter = search('Filter keys', (value) => {
    wanted = value;
    table.most = ROWS;
    paint();
  });
  filter.element.value = wanted;
  const make = button('Make a key', () => void create(), 'primary');
  show(make, false);
  context.actions.append(filter.root, make);

  const written = (/** @type {string | undefined} */ time) => clock(unix(time), true);
  const table = new DataTable({
    caption: 'Keys made at run time',
    captionHidden: true,
    keyOf: (/** @type {Key} */ one) => one.id,
    empty: 'No key fits the filter.',
    columns: [
      {
        label: 'Key',
        heads: true,
        sort: (one) => one.id,
        make: (cell) => {
          const [id, by] = [h('span', { class: 'mono' }), h('span', { class: 'sub' })];
          cell.append(id, by);
          return (one) => {
            text(id, one.id);
            text(by, one.createdBy ? `made by ${one.createdBy}` : '');
          };
        },
      },
      { label: 'Consumer', value: (one) => one.consumer ?? '–', sort: (one) => one.consumer ?? '' },
      {
        label: 'State',
        sort: (one) => one.state,
        make: (cell) => {
          const mark = pill();
          cell.append(mark.root);
          return (one) => mark.set(...(STATES[one.state] ?? [one.state, 'warn']));
        },
      },
      {
        label: 'Made',
        value: (one) => ago(unix(one.createdAt)),
        sort: (one) => unix(one.createdAt) ?? 0,
      },
      {
        label: 'Expires',
        sort: (one) => unix(one.expires) ?? Infinity,
        make: (cell) => {
          const [ends, before] = [h('span'), h('span', { class: 'sub' })];
          cell.append(ends, before);
          return (one) => {
            text(ends, one.expires ? written(one.expires) : 'never');
            text(before, one.previousUntil ? `secret before until ${written(one.previousUntil)}` : '');
          };
        },
      },
      {
        label: 'Last use here',
        value: (one) => (one.lastUsed ? ago(unix(one.lastUsed)) : 'none since the start'),
        sort: (one) => unix(one.lastUsed) ?? 0,
      },
      { label: 'Limits', value: (one) => limitText(one.limits) },
      { label: 'Budget', value: (one) => budgetText(one.limits) },
      { label: '', cls: 'action', make: commands },
    ],
  });
  const lost = h(
    'p',
    { class: 'notice warn', role: 'status' },
    'The store of keys does not answer. Nothing can be changed until it does; the keys that were last read are accepted for `maxStale`.',
  );
  const rest = paged(table, ROWS, (hidden) => `${plural(hidden, 'more key')}.`);
  const note = h('p', { class: 'note' });
  const state = stateful(h('div', { class: 'stack' }, lost, panel('Keys', { tools: [note] }, table.root, rest.root)));

  /** @param {HTMLElement} cell */
  function commands(cell) {
    /** @type {Key | null} */
    let key = null;
    const on = (/** @type {string} */ label, /** @type {(key: Key, control: HTMLButtonElement) => void} */ act) => {
      const control = button(label, () => key && act(key, control), 'small');
      return control;
    };
    const [ends, anew, revoked] = [on('Set expiry', expire), on('Rotate', rotate), on('Revoke', revoke)];
    cell.append(h('span', { class: 'buttons' }, ends, anew, revoked));
    return (/** @type {Key} */ one) => {
      key = one;
      const isOver = one.state === 'expired' || one.state === 'unreadable';
      show(ends, !isOver);
      show(anew, !isOver);
      attr(ends, 'aria-label', `Set expiry of ${one.id}`);
      attr(anew, 'aria-label', `Rotate ${one.id}`);
      attr(revoked, 'aria-label', `Revoke ${one.id}`);
    };
  }

  async function create() {
    const consumers = h('datalist', { id: newId('names') });
    const consumer = h('input', { required: true, list: consumers.id, autocomplete: 'off', spellcheck: 'false' });
    const expires = timeField();
    const requests = h('input', { placeholder: '100/min', autocomplete: 'off' });
    const tokens = h('input', { placeholder: '50000/min', autocomplete: 'off' });
    const running = h('input', { type: 'number', min: '1', step: '1' });
    const budgetTokens = h('input', { type: 'number', min: '0', step: '1' });
    const budgetUsd = h('input', { type: 'number', min: '0', step: 'any' });
    const per = h('select', null, h('option', { value: 'month' }, 'month'), h('option', { value: 'day' }, 'day'));
    // Suggestions help, and any name may be typed: the list of consumers may be longer than one answer.
    void get('api/consumers').then(
      (answer) => consumers.append(...answer.consumers.map((/** @type {any} */ one) => h('option', { value: one.name }))),
      () => {},
    );
    /** @type {Made | undefined} */
    let made;
    await form({
      title: 'Make a key',
      body: 'The gateway keeps its digest. The key itself is shown once.',
      action: 'Make the key',
      children: [
        stacked('Consumer', consumer, 'One of the configuration.'),
        consumers,
        stacked('Expires', expires, 'In the time of this browser; never when left empty.'),
        h(
          'details',
          null,
          h('summary', null, 'Limits and budget of the key'),
          h(
            'div',
            { class: 'fields after' },
            stacked('Requests', requests),
            stacked('Tokens', tokens),
            stacked('Requests at the same time', running),
            stacked('Budget in tokens', budgetTokens),
            stacked('Budget in dollars', budgetUsd),
            stacked('Budget of a', per),
          ),
          h('p', { class: 'muted' }, 'They hold beside those of the consumer, and stay with the key.'),
        ),
      ],
      act: async () => {
        const number = (/** @type {HTMLInputElement} */ field) => (field.value === '' ? undefined : Number(field.value));
        const said = (/** @type {HTMLInputElement} */ field) => field.value.trim() || undefined;
        const budget = { tokens: number(budgetTokens), usd: number(budgetUsd), per: per.value };
        const limits = {
          requests: said(requests),
          tokens: said(tokens),
          concurrency: number(running),
          budget: budget.tokens === undefined && budget.usd === undefined ? undefined : budget,
        };
        const isLimited = Object.values(limits).some((one) => one !== undefined);
        made = await post('api/keys', {
          consumer: consumer.value.trim(),
          expires: chosen(expires),
          limits: isLimited ? limits : undefined,
        });
      },
    });
    if (made) reveal('The key is made', made);
    context.refresh();
  }

  /** @param {Key} key */
  async function expire(key) {
    const at = timeField();
    const now = h('input', { type: 'checkbox' });
    at.required = true;
    now.addEventListener('change', () => (at.required = !(at.disabled = now.checked)));
    await form({
      title: `Set the expiry of ${key.id}?`,
      body: `From then on the key of ${key.consumer ?? 'its consumer'} is refused. It stays in the list, and cannot be made valid again once it has expired.`,
      action: 'Set expiry',
      danger: true,
      children: [
        stacked('Expires', at, 'In the time of this browser.'),
        h('label', { class: 'check' }, now, 'Now'),
      ],
      act: async () => {
        await post(`api/keys/${encodeURIComponent(key.id)}/expire`, now.checked ? undefined : { at: chosen(at) });
        toast(now.checked ? `${key.id} has expired.` : `${key.id} expires at ${written(chosen(at))}.`);
      },
    });
    context.refresh();
  }

  /** @param {Key} key */
  async function rotate(key) {
    const grace = h(
      'select',
      null,
      GRACES.map(([value, label]) => h('option', { value }, label)),
    );
    /** @type {Made | undefined} */
    let made;
    await form({
      title: `Rotate ${key.id}?`,
      body: `The key of ${key.consumer ?? 'its consumer'} gets another secret, which is shown once. Limits and expiry stay.`,
      action: 'Rotate',
      danger: true,
      children: [stacked('The secret before is accepted', grace)],
      act: async () => {
        const body = grace.value === '' ? undefined : { grace: grace.value };
        made = await post(`api/keys/${encodeURIComponent(key.id)}/rotate`, body);
      },
    });
    if (made) reveal('The key is rotated', made);
    context.refresh();
  }

  /**
   * @param {Key} key
   * @param {HTMLButtonElement} control
   */
  async function revoke(key, control) {
    const agreed = await confirm({
      title: `Revoke ${key.id}?`,
      body: `The key of ${key.consumer ?? 'its consumer'} is refused at once, and leaves the list. That cannot be undone.`,
      action: 'Revoke',
      danger: true,
    });
    if (!agreed) return;
    await held(control, async () => {
      await remove(`api/keys/${encodeURIComponent(key.id)}`);
      toast(`${key.id} is revoked.`);
      context.refresh();
    });
  }

  function paint() {
    if (!shown) return;
    const { keys, maxKeys, storeAnswers } = shown;
    show(make, true);
    show(lost, !storeAnswers);
    if (keys.length === 0) {
      if (storeAnswers)
        state.empty('No keys', 'Keys that are made here, or by `spillway keys create`, are listed until they are revoked.');
      else state.empty('The store of keys does not answer', 'What keys there are is not known. Those of the file are accepted.');
      return;
    }
    const fit = keys.filter(
      (one) => wanted === '' || `${one.id} ${one.consumer ?? ''} ${one.state}`.toLowerCase().includes(wanted),
    );
    // The newest first, until the person sorts them.
    table.update(fit.sort((a, b) => (unix(b.createdAt) ?? 0) - (unix(a.createdAt) ?? 0)));
    text(note, `${count(keys.length)} of at most ${count(maxKeys)}`);
    rest.update();
    state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/keys',
        every: 3,
        paint: (/** @type {Answer} */ answer) => {
          shown = answer;
          paint();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => {
          // The answer says which key of the file turns it on.
          if (error.status === 409) {
            show(make, false);
            state.empty('No keys are made here', error.message);
          } else state.fail(error);
        },
      },
    ],
  };
}

/** Live: requests as they end, with filters and links to their traces. */

import { ApiError, events, open } from './api.js';
import { attr, h, keyed, newId, show, text } from './dom.js';
import { clock, count, known, plural, seconds, unix } from './format.js';
import { arrow, button, facts, pill, search, select, sheet } from './ui.js';
import { forget, update } from './updates.js';

/** @typedef {Record<string, any> & {key: string}} Request */

/** Rows that are kept, and requests that are kept while the tail is paused. */
const ROWS = 200;
/** Waits before the stream is opened again, in milliseconds: after its end, and after a failure. */
const AGAIN = 500;
const AFTER_FAILURE = 4000;
const CLASSES = ['2xx', '3xx', '4xx', '5xx'];

/**
 * @param {number} status
 * @returns {import('./ui.js').Tone}
 */
function tone(status) {
  if (status >= 500 || status === 0) return 'bad';
  if (status >= 400) return 'warn';
  return status >= 300 ? 'idle' : 'good';
}

/** @param {number | undefined} ms */
const millis = (ms) => seconds(known(ms) ? ms / 1000 : null);

/** @param {import('./main.js').Context} context */
export function mount(context) {
  const filters = {
    route: context.query.get('route') ?? '',
    status: context.query.get('status') ?? '',
    consumer: context.query.get('consumer') ?? '',
  };
  let wanted = '';
  let paused = false;
  let left = false;
  let number = 0;
  let missed = 0;
  let withheld = 0;
  /** Newest first. @type {Request[]} */
  let rows = [];
  /** Requests that wait to be painted, oldest first. @type {Request[]} */
  let fresh = [];
  let stream = new AbortController();
  let timer = 0;
  const key = {};

  const mark = pill();
  const line = h('span', { class: 'note' });
  const routes = select('Route', 'All', filters.route, (value) => choose({ route: value }));
  const statuses = select('Status', 'All', filters.status, (value) => choose({ status: value }));
  statuses.options(CLASSES);
  const consumer = h('input', {
    id: newId('field'),
    type: 'text',
    autocomplete: 'off',
    spellcheck: 'false',
    value: filters.consumer,
    size: '14',
  });
  consumer.addEventListener('change', () => choose({ consumer: consumer.value.trim() }));
  const find = search('Find in what is shown', (value) => {
    wanted = value;
    paint();
  });
  const pause = button('Pause', () => {
    paused = !paused;
    text(pause, paused ? 'Resume' : 'Pause');
    attr(pause, 'aria-pressed', String(paused));
    if (!paused) take();
    paint();
  });
  const clear = button('Clear', () => {
    rows = [];
    fresh = [];
    [missed, withheld] = [0, 0];
    paint();
  });

  context.actions.append(clear, pause);

  const columns = [
    'Time',
    'Status',
    'Request',
    'Route',
    'Consumer',
    'Served by',
    'Took',
    'First token',
    'Tokens',
    'Trace',
  ];
  const body = h('tbody', { role: 'rowgroup' });
  const table = h(
    'table',
    { class: 'data', role: 'table' },
    h('caption', { class: 'hidden' }, 'Requests that ended, newest first'),
    h(
      'thead',
      { role: 'rowgroup' },
      h(
        'tr',
        { role: 'row' },
        columns.map((name) =>
          h(
            'th',
            {
              scope: 'col',
              role: 'columnheader',
              class: ['Took', 'First token', 'Tokens'].includes(name) ? 'num' : null,
            },
            name,
          ),
        ),
      ),
    ),
    body,
  );
  const none = h('p', { class: 'none' });
  const box = h(
    'div',
    { class: 'table-wrap tail', role: 'region', 'aria-label': 'Requests', tabindex: '0' },
    table,
    none,
  );
  const root = h(
    'section',
    { class: 'panel', 'aria-label': 'Live tail' },
    h(
      'div',
      { class: 'toolbar panel-head' },
      mark.root,
      routes.root,
      statuses.root,
      h('div', { class: 'field' }, h('label', { for: consumer.id }, 'Consumer'), consumer),
      find.root,
      line,
    ),
    box,
  );

  /** @param {Partial<typeof filters>} change */
  function choose(change) {
    Object.assign(filters, change);
    context.remember(filters);
    rows = [];
    fresh = [];
    paint();
    connect();
  }

  function connect() {
    stream.abort();
    window.clearTimeout(timer);
    stream = new AbortController();
    if (left || document.hidden) return;
    mark.set('connecting', 'idle');
    read(stream.signal).then(
      () => again(stream.signal, AGAIN, null),
      (error) => again(stream.signal, AFTER_FAILURE, error),
    );
  }

  /**
   * @param {AbortSignal} signal
   * @param {number} wait
   * @param {unknown} error
   */
  function again(signal, wait, error) {
    if (signal.aborted) return;
    if (error) {
      const busy = error instanceof ApiError && error.status !== 0;
      mark.set(busy ? 'refused' : 'disconnected', 'bad');
      text(line, error instanceof ApiError ? error.message : 'The stream broke off.');
    }
    timer = window.setTimeout(connect, wait);
  }

  /** @param {AbortSignal} signal */
  async function read(signal) {
    const query = new URLSearchParams(Object.entries(filters).filter(([, value]) => value !== ''));
    const written = query.toString();
    const answer = await open(`api/requests${written && `?${written}`}`, signal);
    if (!answer.body) throw new ApiError('The stream has no body.', 0);
    mark.set('connected', 'good');
    tell();
    for await (const { event, data } of events(answer.body)) {
      if (signal.aborted) return;
      /** @type {any} */
      let parsed;
      try {
        parsed = JSON.parse(data);
      } catch {
        continue;
      }
      if (event === 'missed') missed += parsed.missed ?? 0;
      else if (event === 'request') {
        number += 1;
        fresh.push({ ...parsed, key: String(number) });
        if (fresh.length > ROWS) {
          fresh.shift();
          withheld += 1;
        }
      }
      update(key, () => {
        if (!paused) take();
        paint();
      });
    }
  }

  function take() {
    rows = [...fresh.reverse(), ...rows].slice(0, ROWS);
    fresh = [];
    withheld = 0;
  }

  function tell() {
    const parts = [];
    if (paused) parts.push(`paused, ${plural(fresh.length + withheld, 'request')} since`);
    if (missed > 0) parts.push(`${count(missed)} not shown, because they came too fast`);
    text(line, parts.join(' · '));
  }

  /** @param {Request} one */
  function details(one) {
    const list = facts();
    list.set(
      Object.entries(one)
        .filter(([name]) => name !== 'key' && name !== 'event')
        .map(([name, value]) => [name, typeof value === 'string' ? value : JSON.stringify(value)]),
    );
    const trace = context.traceLink(one.traceId);
    sheet(
      `${one.method ?? ''} ${one.path ?? ''}`.trim(),
      list.root,
      trace
        ? h('p', { class: 'after' }, h('a', { href: trace, target: '_blank', rel: 'noreferrer' }, 'Open its trace'))
        : null,
    );
  }

  /** @param {Request} one */
  function row(one) {
    const status = pill();
    status.set(String(one.status), tone(one.status));
    const trace = context.traceLink(one.traceId);
    const served = one.servedBy ?? '–';
    const cell = (
      /** @type {string} */ label,
      /** @type {string | null} */ cls,
      /** @type {import('./dom.js').Child[]} */ ...children
    ) => h('td', { role: 'cell', class: cls, 'data-label': label }, ...children);
    const tokens =
      known(one.promptTokens) || known(one.completionTokens)
        ? `${count(one.promptTokens)} + ${count(one.completionTokens)}`
        : '–';
    const said = one.spilled ? `spilled: ${one.spilled}` : (one.errorCode ?? one.cause ?? '');
    return {
      root: h(
        'tr',
        { role: 'row' },
        cell('Time', 'nowrap', clock(unix(one.timestamp))),
        cell('Status', 'nowrap', status.root),
        h(
          'th',
          { scope: 'row', role: 'rowheader', class: 'path' },
          h(
            'button',
            { type: 'button', class: 'link', onclick: () => details(one) },
            `${one.method ?? ''} ${one.path ?? ''}`,
          ),
        ),
        cell('Route', null, one.route ?? '–'),
        cell('Consumer', null, one.consumer ?? '–'),
        cell('Served by', null, served, said ? h('span', { class: 'sub' }, said) : null),
        cell('Took', 'num', millis(one.durationMs)),
        cell('First token', 'num', millis(one.ttftMs)),
        cell('Tokens', 'num', tokens),
        cell(
          'Trace',
          'nowrap',
          trace
            ? h(
                'a',
                { href: trace, target: '_blank', rel: 'noreferrer', 'aria-label': `Trace ${one.traceId}` },
                'Trace',
                arrow(),
              )
            : one.traceId
              ? h('code', { title: one.traceId }, String(one.traceId).slice(0, 8))
              : '–',
        ),
      ),
    };
  }

  function paint() {
    const shown =
      wanted === '' ? rows : rows.filter((one) => Object.values(one).join(' ').toLowerCase().includes(wanted));
    keyed(body, shown, (one) => one.key, row);
    show(none, shown.length === 0);
    text(
      none,
      rows.length > 0
        ? 'No request that is kept has this text.'
        : 'No request has ended since this page was opened. New ones appear here by themselves.',
    );
    tell();
  }

  const onVisibility = () => (document.hidden ? stream.abort() : connect());
  document.addEventListener('visibilitychange', onVisibility);
  paint();
  connect();

  return {
    root,
    sources: [],
    overview: (/** @type {import('./api.js').Overview} */ overview) =>
      routes.options(overview.routes.map((one) => one.name)),
    leave() {
      left = true;
      stream.abort();
      window.clearTimeout(timer);
      forget(key);
      document.removeEventListener('visibilitychange', onVisibility);
    },
  };
}

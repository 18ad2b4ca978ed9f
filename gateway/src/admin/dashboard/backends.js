/** Backends and their endpoints: state, load, latency, last error; drain and return. */

import { post } from './api.js';
import { attr, h, keyed, show, text } from './dom.js';
import { ago, count, known, percent, plural, seconds, short, unix, words } from './format.js';
import { button, confirm, DataTable, facts, held, meter, panel, pill, search, stateful, toast } from './ui.js';

/**
 * @typedef {object} Endpoint
 * @property {string} endpoint
 * @property {string} url
 * @property {string} [address]
 * @property {number} weight
 * @property {number} priority
 * @property {string} state
 * @property {boolean} drained
 * @property {number} [retryInMs]
 * @property {number} inFlight
 * @property {number} [connections]
 * @property {number} [limit]
 * @property {number} [latencyMs]
 * @property {number} [waiting]
 * @property {number} [kvCache]
 * @property {number} [ejections]
 * @property {{time: string, cause: string}} [lastError]
 * @property {Record<string, number>} [attempts]
 */

/**
 * @typedef {object} Backend
 * @property {string} name
 * @property {string} policy
 * @property {boolean} available
 * @property {boolean} panic
 * @property {number} inFlight
 * @property {number} [maxInFlight]
 * @property {number} pending
 * @property {number} [maxPending]
 * @property {number} retries
 * @property {number} [maxRetries]
 * @property {Endpoint[]} endpoints
 */

/** @type {Record<string, import('./ui.js').Tone>} */
const TONES = { open: 'good', drained: 'idle', ejected: 'bad', unhealthy: 'bad', unresolved: 'bad' };

/** @param {Endpoint} endpoint */
function isInTrouble(endpoint) {
  return endpoint.state !== 'open';
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let wanted = '';
  let trouble = context.query.get('show') === 'trouble';
  /** @type {Backend[]} */
  let shown = [];
  const filter = search('Filter endpoints', (value) => {
    wanted = value;
    paint(shown);
  });
  const box = h('input', { type: 'checkbox', checked: trouble });
  box.addEventListener('change', () => {
    trouble = box.checked;
    context.remember({ show: trouble ? 'trouble' : '' });
    paint(shown);
  });
  context.actions.append(h('label', { class: 'check' }, box, 'Only what gets no requests'), filter.root);

  const summary = facts('terms panel');
  const list = h('div', { class: 'stack' });
  const none = h('p', { class: 'none', hidden: true }, 'No endpoint fits the filter.');
  const state = stateful(h('div', { class: 'stack' }, summary.root, list, none));

  /**
   * Drains an endpoint, or returns it, after a question.
   * @param {string} backend
   * @param {Endpoint} endpoint
   * @param {HTMLButtonElement} control
   */
  async function change(backend, endpoint, control) {
    const back = endpoint.drained;
    const running =
      endpoint.inFlight === 0
        ? 'Nothing runs there now.'
        : `${plural(endpoint.inFlight, 'running request')} will finish.`;
    const agreed = await confirm({
      title: `${back ? 'Return' : 'Drain'} ${endpoint.endpoint}?`,
      body: back
        ? `It gets requests of ${backend} again.`
        : `It gets no new request of ${backend}. ${running} It stays drained over reloads, until you return it.`,
      action: back ? 'Return to service' : 'Drain',
      danger: !back,
    });
    if (!agreed) return;
    await held(control, async () => {
      const name = endpoint.address ?? endpoint.endpoint;
      await post(
        `api/backends/${encodeURIComponent(backend)}/endpoints/${encodeURIComponent(name)}/${back ? 'undrain' : 'drain'}`,
      );
      toast(back ? `${endpoint.endpoint} is back in service.` : `${endpoint.endpoint} is drained.`);
      context.refresh();
    });
  }

  /** @param {Backend} first */
  function card(first) {
    const load = meter('in flight');
    const queue = meter('pending');
    const retries = meter('retries');
    const status = pill();
    const named = (/** @type {string} */ label, /** @type {HTMLElement} */ value) =>
      h('div', null, h('dt', null, label), h('dd', null, value));
    const figures = h(
      'dl',
      { class: 'terms' },
      named('In flight', load.root),
      named('Waiting in queues', queue.root),
      named('Retries on their way', retries.root),
    );
    const table = new DataTable({
      caption: `Endpoints of ${first.name}`,
      captionHidden: true,
      keyOf: (/** @type {Endpoint} */ one) => `${one.endpoint} ${one.url}`,
      empty: 'No endpoints.',
      columns: [
        {
          label: 'Endpoint',
          heads: true,
          sort: (one) => one.endpoint,
          make: (cell) => {
            const [name, url] = [h('span'), h('span', { class: 'sub' })];
            cell.append(name, url);
            return (one) => {
              text(name, one.endpoint);
              const tier = one.priority > 0 ? ` · tier ${one.priority}` : '';
              text(
                url,
                `${one.url === one.endpoint ? '' : one.url}${one.weight === 1 ? '' : ` · weight ${short(one.weight)}`}${tier}`,
              );
            };
          },
        },
        {
          label: 'State',
          sort: (one) => one.state,
          make: (cell) => {
            const [mark, wait] = [pill(), h('span', { class: 'sub' })];
            cell.append(mark.root, wait);
            return (one) => {
              mark.set(words(one.state), TONES[one.state] ?? 'warn');
              text(wait, known(one.retryInMs) ? `tried again in ${seconds(one.retryInMs / 1000)}` : '');
            };
          },
        },
        {
          label: 'In flight',
          sort: (one) => one.inFlight,
          make: (cell) => {
            const bar = meter('in flight');
            cell.append(bar.root);
            return (one) =>
              bar.set(
                one.inFlight,
                one.limit,
                known(one.limit) ? `${count(one.inFlight)} of ${count(one.limit)}` : count(one.inFlight),
              );
          },
        },
        {
          label: 'Latency',
          cls: 'num',
          value: (one) => seconds(known(one.latencyMs) ? one.latencyMs / 1000 : null),
          sort: (one) => one.latencyMs ?? -1,
        },
        { label: 'Queue', cls: 'num', value: (one) => count(one.waiting), sort: (one) => one.waiting ?? -1 },
        { label: 'KV cache', cls: 'num', value: (one) => percent(one.kvCache), sort: (one) => one.kvCache ?? -1 },
        {
          label: 'Last error',
          cls: 'grow',
          make: (cell) => {
            const [cause, when] = [h('span'), h('span', { class: 'sub' })];
            cell.append(cause, when);
            return (one) => {
              text(cause, one.lastError ? words(one.lastError.cause) : '–');
              const times =
                known(one.ejections) && one.ejections > 0 ? `, ejected ${plural(one.ejections, 'time')}` : '';
              text(when, one.lastError ? `${ago(unix(one.lastError.time))}${times}` : '');
            };
          },
        },
        {
          label: '',
          cls: 'action',
          make: (cell) => {
            /** @type {Endpoint | null} */
            let now = null;
            const control = button('Drain', () => now && void change(first.name, now, control), 'small');
            cell.append(control);
            return (one) => {
              now = one;
              text(control, one.drained ? 'Return' : 'Drain');
              attr(control, 'aria-label', `${one.drained ? 'Return' : 'Drain'} ${one.endpoint}`);
              show(control, one.state !== 'unresolved');
            };
          },
        },
      ],
    });
    const policy = h('span', { class: 'note' });
    const root = panel(first.name, { tools: [status.root, policy] }, figures, table.root);
    return {
      root,
      update: (/** @type {Backend} */ backend) => {
        status.set(
          backend.panic ? 'panic: ejections ignored' : backend.available ? 'available' : 'no endpoint',
          backend.panic ? 'warn' : backend.available ? 'good' : 'bad',
        );
        text(policy, words(backend.policy));
        const of = (/** @type {number} */ used, /** @type {number | undefined} */ most) =>
          known(most) ? `${count(used)} of ${count(most)}` : `${count(used)}, no limit`;
        load.set(backend.inFlight, backend.maxInFlight, of(backend.inFlight, backend.maxInFlight));
        queue.set(backend.pending, backend.maxPending, of(backend.pending, backend.maxPending));
        retries.set(backend.retries, backend.maxRetries, of(backend.retries, backend.maxRetries));
        table.update(backend.endpoints);
      },
    };
  }

  /** @param {Backend[]} backends */
  function paint(backends) {
    shown = backends;
    const all = backends.flatMap((backend) => backend.endpoints);
    const open = all.filter((one) => one.state === 'open').length;
    const drained = all.filter((one) => one.drained).length;
    const closed = all.filter((one) => isInTrouble(one) && !one.drained).length;
    summary.set([
      ['Backends', count(backends.length)],
      ['Open endpoints', `${count(open)} of ${count(all.length)}`],
      ['Drained', count(drained)],
      ['Closed by their state', count(closed)],
      ['In flight', count(backends.reduce((sum, one) => sum + one.inFlight, 0))],
      ['Waiting', count(backends.reduce((sum, one) => sum + one.pending, 0))],
    ]);
    const fits = (/** @type {Backend} */ backend, /** @type {Endpoint} */ one) =>
      (!trouble || isInTrouble(one)) &&
      (wanted === '' || `${backend.name} ${one.endpoint} ${one.url} ${one.state}`.toLowerCase().includes(wanted));
    const narrow = trouble || wanted !== '';
    const listed = backends
      .map((backend) => ({ ...backend, endpoints: backend.endpoints.filter((one) => fits(backend, one)) }))
      .filter((backend) => !narrow || backend.endpoints.length > 0);
    keyed(list, listed, (backend) => backend.name, card);
    show(none, listed.length === 0);
    if (backends.length === 0)
      state.empty(
        'No backends',
        'The configuration has only built-in models and answers of its own. They are under Models.',
      );
    else state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/backends',
        paint: (/** @type {{backends: Backend[]}} */ answer) => paint(answer.backends),
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
    ],
  };
}

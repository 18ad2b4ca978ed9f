/** Playground: a chat with a route, streamed, and beside it the same with another route. */

import { ApiError, chat, events } from './api.js';
import { attr, h, keyed, show, text } from './dom.js';
import { count, known, seconds, short } from './format.js';
import { button, panel, select, stacked, stateful } from './ui.js';
import { forget, update } from './updates.js';

/** Turns of a chat that are kept and sent. */
const TURNS = 40;
/** Longest answer that is shown, in characters. */
const MAX_ANSWER = 256 * 1024;

/** @typedef {{role: 'user' | 'assistant' | 'error', content: string, key: string}} Turn */

let keys = 0;

/**
 * Model that a chat with a route may name: one that its matches ask for, or one that its targets have; else the route's name.
 * @param {any} running Running configuration.
 * @param {string} route
 * @returns {string}
 */
export function modelOf(running, route) {
  const found = running?.routes?.find((/** @type {any} */ one) => one.name === route);
  const asked = (found?.matches ?? [])
    .map((/** @type {any} */ one) => one.model)
    .find((/** @type {any} */ one) => typeof one === 'string' && !/[*?[\]\\]/.test(one));
  if (asked) return asked;
  for (const target of found?.backendRefs ?? []) {
    if (typeof target.model === 'string') return target.model;
    const backend = running?.backends?.find((/** @type {any} */ one) => one.name === target.name);
    const known = backend?.model ?? backend?.models?.[0]?.name ?? backend?.models?.[0];
    if (typeof known === 'string') return known;
  }
  return route;
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  const model = h('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', placeholder: 'of the route' });
  const key = h('input', { type: 'password', autocomplete: 'off', placeholder: 'none' });
  const temperature = h('input', { type: 'number', min: '0', max: '2', step: '0.1', placeholder: 'default' });
  const most = h('input', { type: 'number', min: '1', max: '32768', step: '1', value: '256' });
  const system = h('textarea', { rows: '2', placeholder: 'none' });
  const message = h('textarea', { rows: '3', required: true, placeholder: 'Ask something' });
  const send = h('button', { type: 'submit', class: 'button primary' }, 'Send');
  const stop = button('Stop', () => panes.forEach((pane) => pane.stop()));
  const anew = button('New chat', () => panes.forEach((pane) => pane.clear()));
  const beside = h('input', { type: 'checkbox' });
  const announced = h('p', { class: 'hidden', role: 'status' });
  stop.disabled = true;

  /** @type {any} */
  let configured = null;

  const panes = [makePane('Answer'), makePane('Beside it')];
  const second = panes[1];
  const form = h(
    'form',
    { class: 'ask' },
    stacked('Message', message, 'Ctrl and Enter send it.'),
    h('div', { class: 'toolbar' }, send, stop, anew, h('label', { class: 'check' }, beside, 'Beside another route')),
    h(
      'details',
      null,
      h('summary', null, 'Key, model and settings'),
      h(
        'div',
        { class: 'fields after' },
        stacked('Key of a consumer', key, 'Goes with each request, and is kept nowhere.'),
        stacked('Model', model),
        stacked('Temperature', temperature),
        stacked('Most tokens of an answer', most),
      ),
      stacked('System message', system),
    ),
  );
  const board = h(
    'div',
    { class: 'panes' },
    panes.map((pane) => pane.root),
  );
  const state = stateful(
    h(
      'div',
      { class: 'stack' },
      panel('Chat', { note: 'through the gateway’s own pipeline, as a caller' }, form),
      board,
      announced,
    ),
  );

  beside.addEventListener('change', () => second && show(second.root, beside.checked));
  if (second) show(second.root, false);
  message.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const asked = message.value.trim();
    if (asked === '' || panes.some((pane) => pane.busy())) return;
    message.value = '';
    const used = panes.filter((pane) => !pane.root.hidden);
    settle();
    void Promise.all(used.map((pane) => pane.ask(asked))).then((said) => {
      settle();
      text(announced, said.join(' '));
    });
    settle();
  });

  function settle() {
    const busy = panes.some((pane) => pane.busy());
    send.disabled = busy;
    stop.disabled = !busy;
  }

  /** @param {string} title */
  function makePane(title) {
    /** @type {Turn[]} */
    let turns = [];
    /** @type {AbortController | null} */
    let running = null;
    const route = select('Route', '', '', () => {});
    const thread = h('div', {
      class: 'thread',
      tabindex: '0',
      role: 'log',
      'aria-live': 'off',
      'aria-label': `Chat, ${title.toLowerCase()}`,
    });
    const none = h('p', { class: 'none' }, 'The answer appears here as it is written.');
    const figures = h('p', { class: 'pane-facts' });
    const root = panel(title, { tools: [route.root] }, none, thread, figures);

    function paint() {
      const stuck = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 40;
      keyed(
        thread,
        turns,
        (turn) => turn.key,
        (turn) => {
          const element = h('div', { class: 'turn', 'data-role': turn.role });
          const who = h(
            'span',
            { class: 'hidden' },
            `${turn.role === 'user' ? 'You' : turn.role === 'error' ? 'Error' : 'Answer'}: `,
          );
          const words = document.createTextNode('');
          element.append(who, words);
          return {
            root: element,
            update: (now) => {
              if (words.nodeValue !== now.content) words.nodeValue = now.content;
              attr(element, 'data-role', now.role);
              attr(element, 'data-streaming', running !== null && now === turns.at(-1) && now.role === 'assistant');
            },
          };
        },
      );
      show(none, turns.length === 0);
      show(thread, turns.length > 0);
      if (stuck) thread.scrollTop = thread.scrollHeight;
    }

    /** @param {[string, string][]} pairs */
    function tell(pairs) {
      keyed(
        figures,
        pairs,
        ([label]) => label,
        ([label]) => {
          const value = h('b');
          return { root: h('span', null, `${label} `, value), update: ([, written]) => text(value, written) };
        },
      );
    }

    /**
     * @param {string} asked
     * @returns {Promise<string>} What is announced at its end.
     */
    async function ask(asked) {
      const to = route.element.value;
      running = new AbortController();
      const { signal } = running;
      /** @type {Turn} */
      const answer = { role: 'assistant', content: '', key: String((keys += 1)) };
      turns = [
        ...turns,
        /** @type {Turn} */ ({ role: 'user', content: asked, key: String((keys += 1)) }),
        answer,
      ].slice(-TURNS);
      paint();
      thread.scrollTop = thread.scrollHeight;
      const begin = performance.now();
      const took = () => (performance.now() - begin) / 1000;
      let firstAt = 0;
      let chunks = 0;
      /** @type {any} */
      let usage = null;
      let named = '';
      let served = '';
      let id = '';
      const report = () => {
        const tokens = usage?.completion_tokens ?? (chunks > 0 ? chunks : null);
        const writing = took() - firstAt;
        tell([
          ...(served ? [/** @type {[string, string]} */ (['served by', served])] : []),
          ...(named ? [/** @type {[string, string]} */ (['model', named])] : []),
          ...(firstAt > 0 ? [/** @type {[string, string]} */ (['first token', seconds(firstAt)])] : []),
          ['took', seconds(took())],
          ...(known(tokens)
            ? [/** @type {[string, string]} */ (['tokens', `${usage ? '' : 'about '}${count(tokens)}`])]
            : []),
          ...(known(tokens) && firstAt > 0 && writing > 0.05
            ? [/** @type {[string, string]} */ (['tokens a second', short(tokens / writing)])]
            : []),
          ...(id ? [/** @type {[string, string]} */ (['request', id])] : []),
        ]);
      };
      try {
        const sent = turns
          .filter((turn) => turn !== answer && turn.role !== 'error' && turn.content !== '')
          .map(({ role, content }) => ({ role, content }));
        const before = system.value.trim();
        const response = await chat(
          to,
          {
            model: model.value.trim() || modelOf(configured, to),
            messages: before === '' ? sent : [{ role: 'system', content: before }, ...sent],
            stream: true,
            stream_options: { include_usage: true },
            ...(temperature.value === '' ? {} : { temperature: Number(temperature.value) }),
            ...(most.value === '' ? {} : { max_tokens: Number(most.value) }),
          },
          key.value,
          signal,
        );
        served = response.headers.get('x-spillway-served-by') ?? '';
        id = response.headers.get('x-request-id') ?? '';
        if (!response.body) throw new ApiError('The answer has no body.', 0);
        if (!(response.headers.get('content-type') ?? '').includes('text/event-stream')) {
          const whole = await response.json();
          answer.content = String(whole.choices?.[0]?.message?.content ?? JSON.stringify(whole)).slice(0, MAX_ANSWER);
          usage = whole.usage ?? null;
        } else {
          for await (const { data } of events(response.body)) {
            if (data === '[DONE]') break;
            const part = JSON.parse(data);
            if (part.error) throw new ApiError(part.error.message ?? 'The answer broke off.', response.status);
            const piece = part.choices?.[0]?.delta?.content;
            if (typeof piece === 'string' && piece !== '') {
              if (firstAt === 0) firstAt = took();
              chunks += 1;
              if (answer.content.length < MAX_ANSWER) answer.content += piece;
            }
            if (part.usage) usage = part.usage;
            if (typeof part.model === 'string') named = part.model;
            update(answer, () => {
              paint();
              report();
            });
          }
        }
        return `The answer of ${to} is complete.`;
      } catch (error) {
        if (signal.aborted) return `The answer of ${to} was stopped.`;
        const why = error instanceof Error ? error.message : String(error);
        // What was written stays above the error.
        if (answer.content === '') Object.assign(answer, { role: 'error', content: why });
        else
          turns = [...turns, /** @type {Turn} */ ({ role: 'error', content: why, key: String((keys += 1)) })].slice(
            -TURNS,
          );
        return `${to}: ${why}`;
      } finally {
        if (running?.signal === signal) running = null;
        forget(answer);
        if (answer.content === '') turns = turns.filter((turn) => turn !== answer);
        paint();
        report();
      }
    }

    return {
      root,
      route,
      ask,
      busy: () => running !== null,
      stop: () => running?.abort(),
      clear() {
        running?.abort();
        turns = [];
        paint();
        tell([]);
      },
    };
  }

  panes.forEach((pane) => pane.clear());

  return {
    root: state.root,
    // The configuration names the models; without it the route's name is sent, and the answer says what is wrong.
    sources: [
      { address: () => 'api/config', every: 30, paint: (/** @type {any} */ answer) => (configured = answer.running) },
    ],
    /** @param {import('./api.js').Overview} overview */
    overview(overview) {
      const names = overview.routes.map((one) => one.name).filter((name) => !name.startsWith('_'));
      if (!overview.playground) {
        state.empty(
          'The playground is off',
          'Set `admin.playground: true` to let operators send chats from this page.',
        );
        return;
      }
      if (names.length === 0) {
        state.empty('No routes', 'There is nothing to chat with yet.');
        return;
      }
      panes.forEach((pane, n) => {
        const fresh = pane.route.element.options.length === 0;
        pane.route.options(names);
        // The second pane begins with another route than the first.
        if (fresh) pane.route.set(names[Math.min(n, names.length - 1)] ?? '');
      });
      state.ready();
    },
    leave: () => panes.forEach((pane) => pane.stop()),
  };
}

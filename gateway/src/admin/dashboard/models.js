/** Built-in models: speed, load, memory and KV cache. */

import { sparkline } from './charts.js';
import { h, keyed, show, text } from './dom.js';
import { bytes, count, known, short, words } from './format.js';
import { facts, meter, panel, pill, stateful } from './ui.js';

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string} [state]
 * @property {string} [device]
 * @property {string} [task]
 * @property {number | null} [tokensPerSecond]
 * @property {number | null} [promptTokensPerSecond]
 * @property {number | null} [running]
 * @property {number | null} [waiting]
 * @property {number | null} [kvUsed]
 * @property {number | null} [kvTotal]
 * @property {number | null} [memoryBytes]
 */

/** Speeds of a model that are kept to be drawn. */
const SPEEDS = 150;

/** @param {import('./main.js').Context} _context */
export function mount(_context) {
  const memory = meter('memory of all models');
  const list = h('div', { class: 'cards wide-cards' });
  const total = panel('Memory of all models', {}, memory.root);
  const state = stateful(h('div', { class: 'stack' }, total, list));

  /** @param {Model} first */
  function card(first) {
    const mark = pill();
    const speed = h('span', { class: 'big' });
    const [load, kv] = [facts(), meter('KV cache')];
    const spark = sparkline();
    /** @type {(number | null)[]} */
    const speeds = [];
    const kvBox = h('div', null, h('span', { class: 'note' }, 'KV cache'), kv.root);
    const root = h(
      'article',
      { class: 'panel card model' },
      h('div', { class: 'card-head' }, h('h2', null, first.name), mark.root),
      h('p', { class: 'line' }, speed, h('span', { class: 'note' }, 'tokens a second')),
      spark.root,
      kvBox,
      load.root,
    );
    return {
      root,
      /** @param {Model} now */
      update(now) {
        const busy = (now.running ?? 0) > 0;
        mark.set(now.state ? words(now.state) : busy ? 'Answering' : 'Idle', now.state === 'failed' ? 'bad' : now.state === 'loading' ? 'warn' : busy ? 'info' : 'idle');
        text(speed, short(now.tokensPerSecond));
        speeds.push(now.tokensPerSecond ?? null);
        if (speeds.length > SPEEDS) speeds.shift();
        spark.set(speeds);
        show(kvBox, known(now.kvTotal) && now.kvTotal > 0);
        kv.set(now.kvUsed, now.kvTotal, `${short(now.kvUsed)} of ${short(now.kvTotal)} tokens`);
        load.set([
          ['Answers running', count(now.running)],
          ['Waiting', count(now.waiting)],
          ['Memory', bytes(now.memoryBytes)],
          ['Runs on', now.device ?? '–'],
          ...(now.task ? [/** @type {[string, string]} */ (['Task', words(now.task)])] : []),
          ...(known(now.promptTokensPerSecond) ? [/** @type {[string, string]} */ (['Prompt tokens a second', short(now.promptTokensPerSecond)])] : []),
        ]);
      },
    };
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/models',
        paint: (/** @type {{models: Model[], memory?: {used: number, limit: number | null}}} */ answer) => {
          if (answer.models.length === 0) {
            state.empty('No built-in models', 'With `models` the gateway answers by itself when every server is full.');
            return;
          }
          const limit = answer.memory?.limit;
          memory.set(answer.memory?.used, limit, `${bytes(answer.memory?.used)}${known(limit) ? ` of ${bytes(limit)}` : ', no limit'}`);
          show(total, answer.memory !== undefined);
          keyed(list, answer.models, (one) => one.name, card);
          state.ready();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
    ],
  };
}

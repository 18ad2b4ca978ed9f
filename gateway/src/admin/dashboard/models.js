/** Built-in models: speed, load, memory and KV cache. */

import { sparkline } from './charts.js';
import { h, keyed, show, text } from './dom.js';
import { bytes, count, known, seconds, short } from './format.js';
import { facts, meter, panel, pill, stateful } from './ui.js';

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {boolean} [loaded]
 * @property {boolean} [ready]
 * @property {string | null} [device]
 * @property {string | null} [deviceKind]
 * @property {number | null} [tokensPerSecond]
 * @property {number | null} [measuredTokensPerSecond]
 * @property {number | null} [running]
 * @property {number | null} [waiting]
 * @property {number | null} [waitSeconds]
 * @property {number | null} [kvUsed]
 * @property {number | null} [kvIdle] Part that only keeps prompts for later.
 * @property {number | null} [kvTotal]
 * @property {number | null} [memoryBytes]
 * @property {number | null} [generatedTokens]
 * @property {number | null} [promptTokens]
 * @property {number | null} [cachedTokens]
 * @property {number | null} [preemptions]
 * @property {number | null} [noRoom]
 */

/**
 * State of a model in a word.
 * @param {Model} model
 * @returns {[string, import('./ui.js').Tone]}
 */
function stateOf(model) {
  if (model.loaded === false) return ['not loaded', 'idle'];
  if (model.ready === false) return ['loading', 'warn'];
  return (model.running ?? 0) > 0 ? ['answering', 'info'] : ['idle', 'idle'];
}

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
        mark.set(...stateOf(now));
        text(speed, short(now.tokensPerSecond));
        speeds.push(now.tokensPerSecond ?? null);
        if (speeds.length > SPEEDS) speeds.shift();
        spark.set(speeds);
        show(kvBox, known(now.kvTotal) && now.kvTotal > 0);
        const kept = known(now.kvIdle) && now.kvIdle > 0 ? `, ${short(now.kvIdle)} of them kept for later prompts` : '';
        kv.set(now.kvUsed, now.kvTotal, `${short(now.kvUsed)} of ${short(now.kvTotal)} tokens${kept}`);
        load.set([
          ['Answers running', count(now.running)],
          [
            'Waiting',
            known(now.waitSeconds) && (now.waiting ?? 0) > 0
              ? `${count(now.waiting)}, about ${seconds(now.waitSeconds)}`
              : count(now.waiting),
          ],
          ['Memory', bytes(now.memoryBytes)],
          ['Runs on', now.device ?? '–'],
          [
            'Able to write',
            known(now.measuredTokensPerSecond) && now.measuredTokensPerSecond > 0
              ? `${short(now.measuredTokensPerSecond)} tokens a second`
              : '–',
          ],
          ['Tokens written', short(now.generatedTokens)],
          [
            'Prompt tokens',
            known(now.cachedTokens) && now.cachedTokens > 0
              ? `${short(now.promptTokens)}, ${short(now.cachedTokens)} from the cache`
              : short(now.promptTokens),
          ],
          ['Refused for room', count(now.noRoom)],
        ]);
      },
    };
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/models',
        paint: (/** @type {{models: Model[], memory?: {used: number, limit: number | null} | null}} */ answer) => {
          if (answer.models.length === 0) {
            state.empty('No built-in models', 'With `models` the gateway answers by itself when every server is full.');
            return;
          }
          const limit = answer.memory?.limit;
          memory.set(
            answer.memory?.used,
            limit,
            `${bytes(answer.memory?.used)}${known(limit) ? ` of ${bytes(limit)}` : ', no limit'}`,
          );
          show(total, Boolean(answer.memory));
          keyed(list, answer.models, (one) => one.name, card);
          state.ready();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
    ],
  };
}

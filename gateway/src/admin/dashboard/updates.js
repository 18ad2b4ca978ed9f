/**
 * The one clock of the page. All updates that no person has asked for (polls, the live tail, streamed text) are painted here, at
 * most four times a second in total. Nothing is painted or fetched while the tab is hidden.
 */

/** Shortest time between two updates, in milliseconds. */
const SPACING = 250;
/** Name of the performance measure of an update, which a test or an operator may observe. */
const MEASURE = 'spillway-update';

/** @type {Map<unknown, () => void>} */
const waiting = new Map();
let timer = 0;
let last = -SPACING;

/**
 * Paints with the next update. A second call with the same key replaces the first.
 * @param {unknown} key
 * @param {() => void} paint
 */
export function update(key, paint) {
  waiting.set(key, paint);
  arrange();
}

/**
 * Forgets what was to be painted.
 * @param {unknown} key
 */
export function forget(key) {
  waiting.delete(key);
}

function arrange() {
  if (timer || document.hidden || waiting.size === 0) return;
  const delay = Math.max(0, last + SPACING - performance.now());
  timer = window.setTimeout(() => requestAnimationFrame(flush), delay);
}

function flush() {
  timer = 0;
  const begin = performance.now();
  last = begin;
  const paints = [...waiting.values()];
  waiting.clear();
  for (const paint of paints) {
    try {
      paint();
    } catch (error) {
      // One broken panel must not stop the others; the error stays visible to whoever looks.
      console.error(error);
    }
  }
  performance.measure(MEASURE, { start: begin, end: performance.now() });
  performance.clearMeasures(MEASURE);
}

document.addEventListener('visibilitychange', arrange);

/** Waits between two tries after failures, in milliseconds. */
const BACKOFF = [2000, 4000, 8000, 15000];

/**
 * @typedef {object} Source
 * @property {() => string} address Address to ask for, relative to the page.
 * @property {(data: any) => void} paint Paints an answer.
 * @property {(error: import('./api.js').ApiError) => void} [fail] Paints an error of this source alone.
 * @property {number} [every] Asks only with every n-th round.
 */

/** Asks the sources of a page, round by round. */
export class Poller {
  /**
   * @param {(address: string, signal: AbortSignal) => Promise<any>} get
   * @param {(error: import('./api.js').ApiError | null, retryAt: number) => void} report Hears whether the gateway answers.
   */
  constructor(get, report) {
    this.get = get;
    this.report = report;
    this.period = 2000;
    this.paused = false;
    /** @type {Source[]} */
    this.sources = [];
    this.timer = 0;
    this.round = 0;
    this.failures = 0;
    this.abort = new AbortController();
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) this.stop();
      else if (!this.paused) this.now();
    });
  }

  /**
   * Replaces the sources and asks them at once.
   * @param {Source[]} sources
   */
  follow(sources) {
    this.sources = sources;
    this.round = 0;
    this.now();
  }

  /** Stops until `now` is called. */
  stop() {
    window.clearTimeout(this.timer);
    this.abort.abort();
    this.abort = new AbortController();
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.paused = paused;
    if (paused) window.clearTimeout(this.timer);
    else this.now();
  }

  /** Asks all sources again at once. */
  now() {
    this.stop();
    if (document.hidden) return;
    this.round = 0;
    this.ask(this.abort.signal);
  }

  /** @param {AbortSignal} signal */
  async ask(signal) {
    const due = this.sources.filter((source) => this.round % (source.every ?? 1) === 0);
    this.round += 1;
    /** @type {import('./api.js').ApiError | null} */
    let broken = null;
    await Promise.all(
      due.map(async (source) => {
        try {
          const data = await this.get(source.address(), signal);
          if (!signal.aborted) update(source, () => source.paint(data));
        } catch (caught) {
          if (signal.aborted) return;
          const error = /** @type {import('./api.js').ApiError} */ (caught);
          if (error.isGlobal) broken = error;
          else update(source, () => source.fail?.(error));
        }
      }),
    );
    if (signal.aborted) return;
    this.failures = broken ? this.failures + 1 : 0;
    const wait = broken ? (BACKOFF[Math.min(this.failures - 1, BACKOFF.length - 1)] ?? this.period) : this.period;
    this.report(broken, Date.now() + wait);
    // The report may have led to another page, which asks by itself.
    if (signal.aborted) return;
    const needsToken = broken && /** @type {any} */ (broken).status === 401;
    if (!this.paused && !needsToken) this.timer = window.setTimeout(() => this.ask(signal), wait);
  }
}

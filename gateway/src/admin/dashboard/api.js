/** The admin API: the token, errors as problems (RFC 9457), and event streams. */

/**
 * @typedef {object} Overview
 * @property {number} now
 * @property {string} version
 * @property {number} uptimeSeconds
 * @property {string} state
 * @property {number} generation
 * @property {number} inFlight
 * @property {number} connections
 * @property {number} requestsPerSecond
 * @property {number} errorsPerSecond
 * @property {number} spillsPerSecond
 * @property {number} tokensPerSecond
 * @property {{address: string, tls: boolean}[]} listeners
 * @property {{name: string, inFlight: number, requestsPerSecond: number, errorsPerSecond: number}[]} routes
 * @property {number} [moreRoutes] Routes beyond those listed.
 * @property {string | null} tracesUrl
 * @property {boolean} playground
 */

/**
 * @typedef {object} History
 * @property {number} stepSeconds
 * @property {number} start
 * @property {number[]} latencyBounds
 * @property {(number | null)[]} requests
 * @property {(number | null)[]} errors
 * @property {Record<string, (number | null)[]>} spills
 * @property {Record<string, (number | null)[]>} refused
 * @property {number[]} [firstTokenBounds]
 * @property {(number | null)[] | null} inputTokens Null where it is not counted, as of one route.
 * @property {(number | null)[] | null} outputTokens
 * @property {(number[] | null)[]} latency
 * @property {(number[] | null)[] | null} firstToken
 */

/** Longest wait for an answer, in milliseconds. */
const TIMEOUT = 10_000;
const TOKEN = 'spillway-admin-token';
/** Header that the API asks of changes: no form and no foreign page can send it. */
const CHANGE = { 'x-spillway-admin': '1' };

/** Failed request to the admin address. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status Status of the answer; 0 if there was none.
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  /** True if it concerns the whole page: no connection, or no right to ask. */
  get isGlobal() {
    return this.status === 0 || this.status === 401 || this.status === 421;
  }
}

/** @type {string | null} */
let token = null;
try {
  token = sessionStorage.getItem(TOKEN);
} catch {
  // Without storage the token lives as long as the page.
}

export function hasToken() {
  return token !== null;
}

/**
 * Keeps the token for this tab; null forgets it.
 * @param {string | null} value
 */
export function setToken(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, value);
  } catch {
    // As above.
  }
}

/** @param {Record<string, string>} [more] */
function headers(more) {
  return token === null ? { ...more } : { ...more, authorization: `Bearer ${token}` };
}

/** @param {Response} answer */
async function problem(answer) {
  let detail = `${answer.status} ${answer.statusText}`.trim();
  try {
    const body = await answer.json();
    detail = body.detail ?? body.title ?? body.error?.message ?? detail;
  } catch {
    // The status says enough.
  }
  return new ApiError(detail, answer.status);
}

/**
 * @param {string} address
 * @param {RequestInit} options
 */
async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, { cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...options });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name === 'AbortError') throw error;
    throw new ApiError('The gateway does not answer.', 0);
  }
  if (!answer.ok) throw await problem(answer);
  return answer;
}

/**
 * Answer to a question, parsed.
 * @param {string} address
 * @param {AbortSignal} [signal]
 */
export async function get(address, signal) {
  const limit = AbortSignal.timeout(TIMEOUT);
  const answer = await ask(address, { headers: headers(), signal: signal ? AbortSignal.any([signal, limit]) : limit });
  try {
    return await answer.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError('The answer broke off.', 0);
  }
}

/**
 * Asks for a change.
 * @param {string} address
 * @param {unknown} [body]
 */
export async function post(address, body) {
  /** @type {Record<string, string>} */
  const type = body === undefined ? {} : { 'content-type': 'application/json' };
  const answer = await ask(address, {
    method: 'POST',
    headers: headers({ ...CHANGE, ...type }),
    body: body === undefined ? null : JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  return answer.json();
}

/**
 * Asks to remove a thing.
 * @param {string} address
 */
export async function remove(address) {
  const answer = await ask(address, {
    method: 'DELETE',
    headers: headers(CHANGE),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  return answer.json();
}

/**
 * Saves an answer as a file of the person, where a link could not send the token.
 * @param {string} address
 * @param {string} name
 */
export async function download(address, name) {
  const answer = await ask(address, { headers: headers(), signal: AbortSignal.timeout(TIMEOUT) });
  const made = URL.createObjectURL(await answer.blob());
  const link = document.createElement('a');
  link.href = made;
  link.download = name;
  link.click();
  // The download has taken the bytes by then.
  setTimeout(() => URL.revokeObjectURL(made), TIMEOUT);
}

/**
 * Sends a chat to a route. The answer is read by its caller.
 * @param {string} route
 * @param {unknown} body
 * @param {string} key Key of a consumer; empty for none.
 * @param {AbortSignal} signal
 */
export function chat(route, body, key, signal) {
  /** @type {Record<string, string>} */
  const own = key === '' ? {} : { 'x-spillway-playground-key': key };
  return ask(`api/playground/${encodeURIComponent(route)}`, {
    method: 'POST',
    headers: headers({ ...CHANGE, ...own, 'content-type': 'application/json' }),
    body: JSON.stringify(body),
    signal,
  });
}

/**
 * Opens an event stream. It is read by fetch, because an EventSource cannot send the token.
 * @param {string} address
 * @param {AbortSignal} signal
 */
export function open(address, signal) {
  return ask(address, { headers: headers({ accept: 'text/event-stream' }), signal });
}

/** Longest line of an event stream that is read, in characters. */
const MAX_LINE = 1 << 20;

/**
 * Events of a stream, one by one.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* events(body) {
  // The types of TypeScript do not know that a decoder takes these bytes.
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = '';
  let event = '';
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      // A carriage return at the very end may be the first half of a line break.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? '';
      if (rest.length > MAX_LINE) throw new ApiError('A line of the stream is too long.', 0);
      for (const line of lines) {
        if (line === '') {
          if (data.length > 0) yield { event: event || 'message', data: data.join('\n') };
          event = '';
          data = [];
        } else if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (line.startsWith('event:')) event = line.slice(6).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Numbers and times as people read them. All take null for what is not known, and show it as a dash. */

/** @typedef {number | null | undefined} Maybe */

const NONE = '–';

/**
 * @param {Maybe} value
 * @returns {value is number}
 */
export function known(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

/**
 * Number with about three digits, and a letter for thousands and more.
 * @param {Maybe} value
 */
export function short(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e9) return `${digits(value / 1e9)}G`;
  if (size >= 1e6) return `${digits(value / 1e6)}M`;
  if (size >= 1e4) return `${digits(value / 1e3)}k`;
  return digits(value);
}

/** @param {number} value */
function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size >= 100) return String(Math.round(value));
  if (size >= 10) return trim(value.toFixed(1));
  if (size >= 0.01) return trim(value.toFixed(2));
  return size < 1e-4 ? value.toExponential(1) : trim(value.toFixed(4));
}

/** @param {string} written */
function trim(written) {
  return written.includes('.') ? written.replace(/\.?0+$/, '') : written;
}

/**
 * Whole number with separators.
 * @param {Maybe} value
 */
export function count(value) {
  return known(value) ? Math.round(value).toLocaleString('en-US') : NONE;
}

/**
 * Sum of US dollars: whole cents, and of less than a dime what is there.
 * @param {Maybe} value
 */
export function dollars(value) {
  if (!known(value)) return NONE;
  if (value !== 0 && Math.abs(value) < 0.1) return `$${digits(value)}`;
  return `$${value.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}

/**
 * Share of 0 to 1 in percent.
 * @param {Maybe} value
 */
export function percent(value) {
  return known(value) ? `${digits(value * 100)}%` : NONE;
}

/**
 * Duration.
 * @param {Maybe} value Seconds.
 */
export function seconds(value) {
  if (!known(value)) return NONE;
  if (value < 1e-3) return `${digits(value * 1e6)} µs`;
  if (value < 1) return `${digits(value * 1e3)} ms`;
  if (value < 120) return `${digits(value)} s`;
  return span(value);
}

/**
 * Long duration in two units.
 * @param {Maybe} value Seconds.
 */
export function span(value) {
  if (!known(value)) return NONE;
  const whole = Math.max(0, Math.floor(value));
  const [d, hours, m] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  const parts = [
    [d, 'd'],
    [hours, 'h'],
    [m, 'min'],
    [whole % 60, 's'],
  ];
  const first = parts.findIndex(([n]) => n !== 0);
  if (first < 0) return '0 s';
  const shown = parts.slice(first, first + 2).filter(([n]) => n !== 0);
  return shown.map(([n, unit]) => `${n} ${unit}`).join(' ');
}

/**
 * Memory.
 * @param {Maybe} value Bytes.
 */
export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let [size, unit] = [value, 0];
  while (Math.abs(size) >= 1024 && unit < units.length - 1) [size, unit] = [size / 1024, unit + 1];
  return `${digits(size)} ${units[unit]}`;
}

/**
 * Time of the day; with `long` the day too.
 * @param {Maybe} unix Seconds.
 * @param {boolean} [long]
 */
export function clock(unix, long) {
  if (!known(unix)) return NONE;
  const date = new Date(unix * 1000);
  const two = (/** @type {number} */ n) => String(n).padStart(2, '0');
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return long ? `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}` : time;
}

/**
 * Time that has passed.
 * @param {Maybe} unix Seconds.
 * @param {number} [now] Seconds.
 */
export function ago(unix, now = Date.now() / 1000) {
  if (!known(unix)) return NONE;
  const past = Math.max(0, now - unix);
  return past < 2 ? 'now' : `${span(past < 60 ? past : past - (past % 60))} ago`;
}

/**
 * Unix seconds of a time as RFC 3339.
 * @param {string | undefined} written
 */
export function unix(written) {
  const time = written === undefined ? NaN : Date.parse(written);
  return Number.isNaN(time) ? null : time / 1000;
}

/**
 * Words of a name such as `firstTokenP95` or `max_in_flight`.
 * @param {string} name
 */
export function words(name) {
  const spaced = name.replace(/_/g, ' ').replace(/([a-z])([A-Z])/g, (_, a, b) => `${a} ${b.toLowerCase()}`);
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

/**
 * Noun with its number.
 * @param {number} n
 * @param {string} one
 * @param {string} [many]
 */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

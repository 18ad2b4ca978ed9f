/**
 * Charts over time as SVG and canvas. Each has a cursor that a pointer or the arrow keys move, a legend with the figures at the
 * cursor, and a table for screen readers.
 */

import { attr, h, keyed, newId, s, show, style, text } from './dom.js';
import { clock, known, seconds, short } from './format.js';

/** Space around a plot, in pixels. */
const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };
/** Rows of the table for screen readers. */
const ROWS = 8;
/** Steps between the marks of a time axis, in seconds. */
const TICKS = [60, 120, 300, 600, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

/**
 * Greatest value of an axis and the step of its marks.
 * @param {number} most
 */
function scale(most) {
  if (!(most > 0)) return { most: 1, step: 0.5 };
  const power = 10 ** Math.floor(Math.log10(most / 3));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n * 4 >= most) ?? 10 * power;
  return { most: Math.ceil(most / step - 1e-9) * step, step };
}

/**
 * Marks of a time axis, in Unix seconds.
 * @param {number} from
 * @param {number} to
 * @param {number} width
 */
function timeMarks(from, to, width) {
  const step = TICKS.find((one) => ((to - from) / one) * 64 <= width) ?? 86400;
  const shift = new Date(to * 1000).getTimezoneOffset() * 60;
  const marks = [];
  for (let t = Math.ceil((from - shift) / step) * step + shift; t <= to; t += step) marks.push(t);
  return marks;
}

/**
 * @typedef {object} Series
 * @property {string} name
 * @property {string} colour Name of a custom property, such as `c1`.
 * @property {(number | null)[]} values
 * @property {boolean} [line] Drawn as a line over the areas.
 */

/** What plots over time share: size, time axis, cursor, legend, table. */
class Plot {
  /**
   * @param {object} options
   * @param {string} options.title
   * @param {string} [options.note]
   * @param {string} [options.none] Text for a window without anything.
   * @param {boolean} [options.tall]
   */
  constructor({ title, note, none, tall }) {
    this.title = title;
    this.start = 0;
    this.step = 1;
    this.length = 0;
    /** @type {number | null} Time of the cursor. */
    this.at = null;
    this.width = 0;
    this.height = 0;
    const id = newId('chart');
    this.svg = s('svg', { class: 'chart-svg', 'aria-hidden': 'true' });
    this.grid = this.svg.appendChild(s('g', { class: 'grid' }));
    this.marks = this.svg.appendChild(s('g', { class: 'marks' }));
    this.shapes = this.svg.appendChild(s('g'));
    this.line = this.svg.appendChild(s('line', { class: 'cursor', visibility: 'hidden' }));
    this.legend = h('ul', { class: 'legend' });
    this.when = h('span', { class: 'when' });
    this.plot = h(
      'div',
      {
        class: tall ? 'plot tall' : 'plot',
        role: 'slider',
        tabindex: '0',
        'aria-labelledby': id,
        'aria-valuemin': '0',
        'aria-valuenow': '0',
        'aria-valuemax': '0',
        'aria-valuetext': 'no data yet',
      },
      this.svg,
    );
    this.rows = h('tbody');
    this.heads = h('tr');
    this.none = h('p', { class: 'chart-none', hidden: true }, h('span', null, none ?? 'No traffic in this window'));
    const table = h('table', null, h('caption', null, title), h('thead', null, this.heads), this.rows);
    this.root = h(
      'figure',
      { class: 'chart panel' },
      h('figcaption', null, h('h2', { id }, title), note ? h('p', { class: 'note' }, note) : null, this.when),
      h('div', { class: 'plot-box' }, this.plot, this.none),
      this.legend,
      h('div', { class: 'hidden' }, table),
    );
    this.plot.addEventListener('pointermove', (event) => this.point(event));
    this.plot.addEventListener('pointerdown', (event) => this.point(event));
    this.plot.addEventListener('pointerleave', () => this.move(null));
    this.plot.addEventListener('blur', () => this.move(null));
    this.plot.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(([entry]) => {
      if (!entry) return;
      const { width, height } = entry.contentRect;
      if (Math.abs(width - this.width) < 0.5 && Math.abs(height - this.height) < 0.5) return;
      [this.width, this.height] = [width, height];
      attr(this.svg, 'viewBox', `0 0 ${width} ${height}`);
      this.draw();
    }).observe(this.plot);
  }

  get inner() {
    return {
      width: Math.max(1, this.width - MARGIN.left - MARGIN.right),
      height: Math.max(1, this.height - MARGIN.top - MARGIN.bottom),
    };
  }

  /** @param {number} index */
  x(index) {
    return MARGIN.left + (this.length < 2 ? 0 : (index / (this.length - 1)) * this.inner.width);
  }

  /** @param {PointerEvent} event */
  point(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left - MARGIN.left;
    this.move(this.indexAt(x));
  }

  /** @param {number} x */
  indexAt(x) {
    return Math.round((x / this.inner.width) * (this.length - 1));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const page = Math.max(1, Math.round(this.length / 10));
    const now = this.index ?? this.length - 1;
    /** @type {Record<string, number>} */
    const to = {
      ArrowLeft: now - 1,
      ArrowDown: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now + 1,
      PageDown: now - page,
      PageUp: now + page,
      Home: 0,
      End: this.length - 1,
    };
    const index = to[event.key];
    if (event.key === 'Escape') this.move(null);
    if (index === undefined) return;
    event.preventDefault();
    this.move(index);
    this.say();
  }

  /** Step of the cursor, which keeps its time while data moves on. */
  get index() {
    if (this.at === null || this.length === 0) return null;
    return Math.min(this.length - 1, Math.max(0, Math.round((this.at - this.start) / this.step)));
  }

  /** @param {number | null} index */
  move(index) {
    this.at = index === null ? null : this.start + Math.min(this.length - 1, Math.max(0, index)) * this.step;
    this.point_out();
  }

  /** Tells the figures at the cursor to screen readers. */
  say() {
    if (this.length === 0) return;
    const index = this.index ?? this.length - 1;
    attr(this.plot, 'aria-valuemax', Math.max(0, this.length - 1));
    attr(this.plot, 'aria-valuenow', index);
    const figures = this.figures(index).map(({ name, written }) => `${name} ${written}`);
    attr(this.plot, 'aria-valuetext', `${clock(this.start + index * this.step)}: ${figures.join(', ') || 'nothing'}`);
  }

  /** Draws the cursor, and the legend with its figures. */
  point_out() {
    const index = this.index;
    attr(this.line, 'visibility', index === null ? 'hidden' : 'visible');
    if (index !== null) {
      const x = this.cursorAt(index);
      for (const [name, value] of [
        ['x1', x],
        ['x2', x],
        ['y1', MARGIN.top],
        ['y2', this.height - MARGIN.bottom],
      ]) {
        attr(this.line, String(name), /** @type {number} */ (value));
      }
    }
    text(this.when, index === null ? '' : clock(this.start + index * this.step));
    // The newest step is still being counted; the one before it is whole.
    const shown = this.length === 0 ? [] : this.figures(index ?? Math.max(0, this.length - 2));
    keyed(
      this.legend,
      shown,
      (one) => one.name,
      (one) => {
        const value = h('b');
        const root = h(
          'li',
          null,
          h('i', { class: `swatch ${one.colour}`, 'aria-hidden': 'true' }),
          h('span', null, one.name),
          value,
        );
        return { root, update: (now) => text(value, now.written) };
      },
    );
  }

  /** @param {number} index */
  cursorAt(index) {
    return this.x(index);
  }

  /** Draws the marks of both axes. `marks` are places and texts of the vertical one. */
  axes(/** @type {{y: number, label: string}[]} */ marks) {
    const times =
      this.length < 2 ? [] : timeMarks(this.start, this.start + (this.length - 1) * this.step, this.inner.width);
    const right = this.width - MARGIN.right;
    keyed(
      this.grid,
      marks,
      (_, n) => String(n),
      () => {
        const line = s('line', { x1: MARGIN.left });
        const label = s('text', { x: MARGIN.left - 8, 'text-anchor': 'end' });
        return {
          root: s('g', null, line, label),
          update: (mark) => {
            attr(line, 'x2', right);
            attr(line, 'y1', mark.y.toFixed(1));
            attr(line, 'y2', mark.y.toFixed(1));
            attr(label, 'y', (mark.y + 3.5).toFixed(1));
            text(label, mark.label);
          },
        };
      },
    );
    const span = (this.length - 1) * this.step;
    keyed(
      this.marks,
      times,
      (_, n) => String(n),
      () => {
        const label = s('text', { 'text-anchor': 'middle' });
        return {
          root: label,
          update: (time) => {
            const x = MARGIN.left + ((time - this.start) / span) * this.inner.width;
            attr(label, 'x', Math.min(right - 14, Math.max(MARGIN.left + 14, x)).toFixed(1));
            attr(label, 'y', this.height - 5);
            text(label, clock(time).slice(0, 5));
          },
        };
      },
    );
  }

  /** Fills the table for screen readers: a few rows over the window. */
  tabulate() {
    const rows = Math.min(ROWS, this.length);
    const picked = Array.from({ length: rows }, (_, n) => Math.floor(((n + 1) * this.length) / rows) - 1);
    const names = this.length === 0 ? [] : this.figures(0).map((one) => one.name);
    keyed(
      this.heads,
      ['Time', ...names],
      (name) => name,
      (name) => ({ root: h('th', { scope: 'col' }, name) }),
    );
    keyed(
      this.rows,
      picked,
      (_, n) => String(n),
      () => {
        const root = h('tr');
        return {
          root,
          update: (index) => {
            const cells = [clock(this.start + index * this.step), ...this.figures(index).map((one) => one.written)];
            keyed(
              root,
              cells,
              (_, n) => String(n),
              () => {
                const cell = h('td');
                return { root: cell, update: (written) => text(cell, written) };
              },
            );
          },
        };
      },
    );
  }

  /**
   * Takes new data.
   * @param {number} start
   * @param {number} step
   * @param {number} length
   * @param {boolean} empty
   */
  take(start, step, length, empty) {
    [this.start, this.step, this.length] = [start, step, length];
    show(this.none, empty);
    this.draw();
    this.tabulate();
    // A screen reader that stands on the chart is told only what its user asks for.
    if (document.activeElement !== this.plot) this.say();
  }

  draw() {}

  /**
   * @param {number} _index
   * @returns {{name: string, colour: string, written: string}[]}
   */
  figures(_index) {
    return [];
  }
}

/**
 * Values without those that are zero beside zeros.
 * @param {(number | null)[]} values
 */
function raised(values) {
  return values.map((value, n) => (value || values[n - 1] || values[n + 1] ? value : null));
}

/** Lines and stacked areas over time. */
export class TimeChart extends Plot {
  /** @param {{title: string, note?: string, none?: string, format?: (value: number | null) => string}} options */
  constructor(options) {
    super(options);
    this.format = options.format ?? short;
    /** @type {Series[]} */
    this.series = [];
  }

  /** @param {{start: number, step: number, series: Series[]}} data */
  update({ start, step, series }) {
    this.series = series;
    const length = Math.max(0, ...series.map((one) => one.values.length));
    const empty = !series.some((one) => one.values.some((value) => known(value) && value > 0));
    this.take(start, step, length, empty);
  }

  /** @param {number} index */
  figures(index) {
    return this.series.map((one) => ({
      name: one.name,
      colour: one.colour,
      written: this.format(one.values[index] ?? null),
    }));
  }

  draw() {
    if (this.width === 0) return;
    const areas = this.series.filter((one) => !one.line);
    const base = Array.from({ length: this.length }, () => 0);
    const stacked = areas.map((one) => {
      const low = [...base];
      one.values.forEach((value, n) => (base[n] = (base[n] ?? 0) + (value ?? 0)));
      return { ...one, low, high: [...base] };
    });
    let peak = Math.max(0, ...base);
    for (const one of this.series) if (one.line) for (const value of one.values) peak = Math.max(peak, value ?? 0);
    const { most, step } = scale(peak);
    const y = (/** @type {number} */ value) => MARGIN.top + this.inner.height * (1 - value / most);
    const marks = [];
    for (let value = 0; value <= most + step / 2; value += step) marks.push({ y: y(value), label: this.format(value) });
    this.axes(marks);
    const shapes = [
      ...stacked.map((one) => ({ key: `a${one.name}`, cls: `area ${one.colour}`, d: this.area(one, y) })),
      // An edge is drawn only where its area has a height, or it would hide those below.
      ...stacked.map((one) => ({
        key: `e${one.name}`,
        cls: `edge ${one.colour}`,
        d: this.path(one.high, stacked.length > 1 ? raised(one.values) : one.values, y),
      })),
      ...this.series
        .filter((one) => one.line)
        .map((one) => ({ key: `l${one.name}`, cls: `edge ${one.colour}`, d: this.path(one.values, one.values, y) })),
    ];
    keyed(
      this.shapes,
      shapes,
      (one) => one.key,
      (one) => {
        const root = s('path', { class: one.cls });
        return { root, update: (now) => attr(root, 'd', now.d) };
      },
    );
    this.point_out();
  }

  /**
   * @param {(number | null)[]} heights
   * @param {(number | null)[]} values
   * @param {(value: number) => number} y
   */
  path(heights, values, y) {
    let d = '';
    let pen = 'M';
    heights.forEach((height, n) => {
      if (!known(values[n]) || !known(height)) {
        pen = 'M';
        return;
      }
      d += `${pen}${this.x(n).toFixed(1)} ${y(height).toFixed(1)}`;
      pen = 'L';
    });
    return d;
  }

  /**
   * @param {{low: number[], high: number[]}} one
   * @param {(value: number) => number} y
   */
  area(one, y) {
    if (one.high.length === 0) return '';
    const point = (/** @type {number} */ value, /** @type {number} */ n) =>
      `${this.x(n).toFixed(1)} ${y(value).toFixed(1)}`;
    const back = one.low.map(point).reverse();
    return `M${one.high.map(point).join('L')}L${back.join('L')}Z`;
  }
}

/**
 * Quantile of a histogram, interpolated in its bucket; null where nothing was counted.
 * @param {number[] | null | undefined} counts
 * @param {number[]} bounds
 * @param {number} level
 * @returns {{value: number, row: number} | null}
 */
export function quantile(counts, bounds, level) {
  if (!counts) return null;
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (total === 0) return null;
  let before = 0;
  for (let row = 0; row < counts.length; row += 1) {
    const here = counts[row] ?? 0;
    if (here > 0 && before + here >= level * total) {
      const part = (level * total - before) / here;
      const low = row === 0 ? 0 : (bounds[row - 1] ?? 0);
      const high = bounds[row] ?? low;
      return { value: low + part * (high - low), row: row + part };
    }
    before += here;
  }
  return null;
}

/**
 * Sum of histograms.
 * @param {(number[] | null)[]} rows
 */
export function sumOf(rows) {
  /** @type {number[]} */
  const sum = [];
  for (const row of rows) row?.forEach((n, place) => (sum[place] = (sum[place] ?? 0) + n));
  return Array.from(sum, (n) => n ?? 0);
}

/** Least number of rows of a heat map. */
const LEAST_ROWS = 6;
/** Shades of a heat map. */
const SHADES = 48;

/** Histograms over time: the darker, the more requests; with lines for the median and the 95th percentile. */
export class HeatMap extends Plot {
  /** @param {{title: string, note?: string, none?: string}} options */
  constructor(options) {
    super({ ...options, tall: true });
    this.canvas = h('canvas', { class: 'heat', 'aria-hidden': 'true' });
    this.plot.prepend(this.canvas);
    /** @type {number[]} */
    this.bounds = [];
    /** @type {(number[] | null)[]} */
    this.counts = [];
    /** @type {string[]} */
    this.shades = [];
    HEATMAPS.add(new WeakRef(this));
  }

  /** @param {{start: number, step: number, bounds: number[], counts: (number[] | null)[]}} data */
  update({ start, step, bounds, counts }) {
    [this.bounds, this.counts] = [bounds, counts];
    this.take(start, step, counts.length, !counts.some((row) => row?.some((n) => n > 0)));
  }

  /** @param {number} index */
  x(index) {
    return MARGIN.left + ((index + 0.5) / Math.max(1, this.length)) * this.inner.width;
  }

  /** @param {number} x */
  indexAt(x) {
    return Math.floor((x / this.inner.width) * this.length);
  }

  /** @param {number} index */
  figures(index) {
    const row = this.counts[index];
    const total = (row ?? []).reduce((sum, n) => sum + n, 0);
    const level = (/** @type {number} */ at) => seconds(quantile(row, this.bounds, at)?.value);
    return [
      { name: 'p50', colour: 'heat-mid', written: level(0.5) },
      { name: 'p95', colour: 'heat-high', written: level(0.95) },
      { name: 'p99', colour: 'heat-none', written: level(0.99) },
      { name: 'requests', colour: 'heat-none', written: short(total) },
    ];
  }

  /** Rows that are shown: those with requests, and some around them. */
  get rows_shown() {
    const sum = sumOf(this.counts);
    const used = sum.flatMap((n, row) => (n > 0 ? [row] : []));
    const most = this.bounds.length + 1;
    let low = Math.max(0, (used[0] ?? 4) - 1);
    let high = Math.min(most, (used.at(-1) ?? 8) + 2);
    while (high - low < Math.min(LEAST_ROWS, most)) {
      if (low > 0) low -= 1;
      if (high < most) high += 1;
    }
    return { low, high };
  }

  draw() {
    if (this.width === 0) return;
    const { low, high } = this.rows_shown;
    const rows = high - low;
    const { width, height } = this.inner;
    const y = (/** @type {number} */ row) => MARGIN.top + height * (1 - (row - low) / rows);
    const every = Math.max(1, Math.ceil(rows / 6));
    const marks = [];
    for (let row = low; row <= high; row += every) {
      const bound = row === 0 ? 0 : this.bounds[row - 1];
      marks.push({ y: y(row), label: bound === undefined ? '' : seconds(bound) });
    }
    this.axes(marks);
    this.fill(low, rows);
    const lines = [
      { cls: 'edge heat-mid', level: 0.5 },
      { cls: 'edge heat-high', level: 0.95 },
    ];
    keyed(
      this.shapes,
      lines,
      (one) => one.cls,
      (one) => {
        const root = s('path', { class: one.cls });
        return {
          root,
          update: ({ level }) => {
            let d = '';
            let pen = 'M';
            this.counts.forEach((row, n) => {
              const found = quantile(row, this.bounds, level);
              if (found) d += `${pen}${this.x(n).toFixed(1)} ${y(Math.min(high, Math.max(low, found.row))).toFixed(1)}`;
              pen = found ? 'L' : 'M';
            });
            attr(root, 'd', d);
          },
        };
      },
    );
    style(this.canvas, 'inset', `${MARGIN.top}px auto auto ${MARGIN.left}px`);
    style(this.canvas, 'inline-size', `${width}px`);
    style(this.canvas, 'block-size', `${height}px`);
    this.point_out();
  }

  /**
   * @param {number} low
   * @param {number} rows
   */
  fill(low, rows) {
    const { width, height } = this.inner;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [w, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== tall) [this.canvas.width, this.canvas.height] = [w, tall];
    const context = this.canvas.getContext('2d');
    if (!context) return;
    context.clearRect(0, 0, w, tall);
    if (this.shades.length === 0) this.shades = shades(this.root);
    let most = 1;
    for (const row of this.counts) for (const n of row ?? []) most = Math.max(most, n);
    const gap = w / this.length > 5 * ratio ? ratio : 0;
    this.counts.forEach((counts, column) => {
      const left = Math.round((column * w) / this.length);
      const right = Math.round(((column + 1) * w) / this.length);
      for (let row = 0; row < rows; row += 1) {
        const n = counts?.[low + row] ?? 0;
        if (n === 0) continue;
        // The root shows few slow requests beside many fast ones.
        const shade = Math.min(SHADES - 1, Math.floor(Math.sqrt(n / most) * SHADES));
        context.fillStyle = this.shades[shade] ?? '';
        const top = Math.round(tall - ((row + 1) * tall) / rows);
        const bottom = Math.round(tall - (row * tall) / rows);
        context.fillRect(left, top, Math.max(1, right - left - gap), Math.max(1, bottom - top - gap));
      }
    });
  }
}

/** @type {Set<WeakRef<HeatMap>>} */
const HEATMAPS = new Set();

/** Draws all heat maps in the colours of another theme. */
export function repaint() {
  for (const reference of HEATMAPS) {
    const map = reference.deref();
    if (!map) {
      HEATMAPS.delete(reference);
      continue;
    }
    map.shades = [];
    map.draw();
  }
}

/**
 * Colours between the stops of the theme.
 * @param {Element} element
 */
function shades(element) {
  const computed = getComputedStyle(element);
  const stops = [1, 2, 3, 4, 5].map((n) => {
    const hex = computed.getPropertyValue(`--heat-${n}`).trim();
    return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
  });
  return Array.from({ length: SHADES }, (_, n) => {
    const place = (n / (SHADES - 1)) * (stops.length - 1);
    const [from, to] = [stops[Math.floor(place)] ?? [], stops[Math.ceil(place)] ?? []];
    const mixed = from.map((value, part) => Math.round(value + ((to[part] ?? value) - value) * (place % 1)));
    return `rgb(${mixed.join(' ')})`;
  });
}

/** Line without axes beside a figure that says the same. */
export function sparkline() {
  const area = s('path', { class: 'area' });
  const edge = s('path', { class: 'edge' });
  const root = s(
    'svg',
    { class: 'spark', viewBox: '0 0 100 28', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    area,
    edge,
  );
  return {
    root,
    /** @param {(number | null)[]} values */
    set(values) {
      const most = Math.max(1e-9, ...values.map((value) => value ?? 0));
      const last = Math.max(1, values.length - 1);
      const points = values.map(
        (value, n) => `${((n / last) * 100).toFixed(1)} ${(26 - ((value ?? 0) / most) * 24).toFixed(1)}`,
      );
      attr(edge, 'd', points.length < 2 ? '' : `M${points.join('L')}`);
      attr(area, 'd', points.length < 2 ? '' : `M0 28L${points.join('L')}L100 28Z`);
    },
  };
}

/**
 * @typedef {object} Course
 * @property {{x: number, y: number | null, low?: number | null, high?: number | null}[]} points
 * @property {number | null} [limit] Line of a limit.
 * @property {number | null} [zero] Line of no effect.
 * @property {'above' | 'below' | null} [worse] Side of the limit that is bad.
 * @property {(value: number) => string} format
 * @property {string} label Text alternative.
 */

/** Sizes of a course: width, height, room for labels at the left and below, in pixels. */
const SIZES = { normal: [320, 120, 44, 18], wide: [860, 220, 52, 20], small: [140, 36, 0, 0] };

/**
 * Small chart of values over time with a limit, and a band where bounds are known. The small size has no labels.
 * @param {keyof typeof SIZES} [size]
 */
export function course(size = 'normal') {
  const [w = 0, tall = 0, left = 0, foot = 0] = SIZES[size];
  const zone = s('rect', { class: 'zone' });
  const band = s('path', { class: 'band' });
  const line = s('path', { class: 'edge' });
  const dot = s('circle', { class: 'dot', r: 3 });
  const limit = s('line', { class: 'limit', x1: left, x2: w });
  const zero = s('line', { class: 'zero', x1: left, x2: w });
  const labels = s('g');
  const root = s(
    'svg',
    { class: `course ${size}`, viewBox: `0 0 ${w} ${tall}`, role: 'img' },
    zone,
    zero,
    band,
    limit,
    line,
    dot,
    labels,
  );
  return {
    root,
    /** @param {Course} data */
    set({ points, limit: at, zero: none, worse, format, label }) {
      attr(root, 'aria-label', label);
      const numbers = points
        .flatMap((point) => [point.y, point.low, point.high])
        .concat([at, none])
        .filter(known);
      let [least, most] = [Math.min(...numbers), Math.max(...numbers)];
      if (!known(least)) [least, most] = [0, 1];
      const fromZero = none === undefined && size !== 'small';
      if (fromZero) least = Math.min(0, least);
      const room = (most - least || Math.abs(most) || 1) * 0.12;
      most += room;
      if (!fromZero) least -= room;
      const [first, last] = [points[0]?.x ?? 0, points.at(-1)?.x ?? 1];
      const x = (/** @type {number} */ value) =>
        left + 4 + (last > first ? ((value - first) / (last - first)) * (w - left - 10) : w - left - 10);
      const y = (/** @type {number} */ value) => 6 + (tall - foot - 10) * (1 - (value - least) / (most - least));
      const drawn = points.filter((point) => known(point.y));
      attr(
        line,
        'd',
        drawn.length < 2
          ? ''
          : `M${drawn.map((point) => `${x(point.x).toFixed(1)} ${y(point.y ?? 0).toFixed(1)}`).join('L')}`,
      );
      const end = drawn.at(-1);
      attr(dot, 'visibility', end ? 'visible' : 'hidden');
      if (end) {
        attr(dot, 'cx', x(end.x).toFixed(1));
        attr(dot, 'cy', y(end.y ?? 0).toFixed(1));
      }
      const bounded = points.filter((point) => known(point.low) || known(point.high));
      const high = bounded.map((point) => `${x(point.x).toFixed(1)} ${y(point.high ?? most).toFixed(1)}`);
      const low = bounded.map((point) => `${x(point.x).toFixed(1)} ${y(point.low ?? least).toFixed(1)}`);
      attr(band, 'd', bounded.length < 2 ? '' : `M${high.join('L')}L${low.reverse().join('L')}Z`);
      for (const [element, value] of /** @type {[SVGElement, number | null | undefined][]} */ ([
        [limit, at],
        [zero, none],
      ])) {
        attr(element, 'visibility', known(value) ? 'visible' : 'hidden');
        if (!known(value)) continue;
        attr(element, 'y1', y(value).toFixed(1));
        attr(element, 'y2', y(value).toFixed(1));
      }
      const bad =
        known(at) && worse
          ? { from: worse === 'above' ? 6 : y(at), to: worse === 'above' ? y(at) : tall - foot - 4 }
          : null;
      attr(zone, 'visibility', bad ? 'visible' : 'hidden');
      if (bad) {
        for (const [name, value] of [
          ['x', left],
          ['y', bad.from],
          ['width', w - left],
          ['height', Math.max(0, bad.to - bad.from)],
        ])
          attr(zone, String(name), value ?? 0);
      }
      // Beyond half a day the time needs its day.
      const time = (/** @type {number} */ value) =>
        last - first > 43_200 ? clock(value, true).slice(5, 16) : clock(value).slice(0, 5);
      const floor = fromZero ? least : least + room;
      const written = [
        { x: left - 4, y: y(most - room) + 4, anchor: 'end', label: format(most - room) },
        { x: left - 4, y: y(floor) + 3, anchor: 'end', label: format(floor) },
        { x: left + 4, y: tall - 4, anchor: 'start', label: drawn.length > 1 ? time(first) : '' },
        { x: w - 4, y: tall - 4, anchor: 'end', label: drawn.length > 0 ? time(last) : '' },
      ];
      keyed(
        labels,
        size === 'small' ? [] : written,
        (_, n) => String(n),
        () => {
          const element = s('text');
          return {
            root: element,
            update: (one) => {
              attr(element, 'x', one.x);
              attr(element, 'y', one.y.toFixed(1));
              attr(element, 'text-anchor', one.anchor);
              text(element, one.label);
            },
          };
        },
      );
    },
  };
}

/** Interval of an effect on a line with the places of no effect and of the threshold. */
export function interval() {
  const [w, tall, mid] = [200, 30, 15];
  const zone = s('rect', { class: 'zone', y: 2, height: tall - 4 });
  const axis = s('line', { class: 'axis', x1: 0, x2: w, y1: mid, y2: mid });
  const zero = s('line', { class: 'zero', y1: 3, y2: tall - 3 });
  const limit = s('line', { class: 'limit', y1: 2, y2: tall - 2 });
  const bar = s('rect', { class: 'bounds', y: mid - 4, height: 8, rx: 4 });
  const dot = s('circle', { class: 'dot', cy: mid, r: 4.5 });
  const root = s(
    'svg',
    { class: 'interval', viewBox: `0 0 ${w} ${tall}`, role: 'img' },
    zone,
    axis,
    zero,
    bar,
    limit,
    dot,
  );
  return {
    root,
    /** @param {{effect: number | null, lower: number | null, upper: number | null, zero: number | null, limit: number | null, worse: 'above' | 'below', label: string, finding: string}} data */
    set({ effect, lower, upper, zero: none, limit: at, worse, label, finding }) {
      attr(root, 'aria-label', label);
      attr(root, 'data-finding', finding);
      const near = [effect, none, at].filter(known);
      // Bounds may be far away in the beginning: the threshold sets the scale, and bars run to the edge.
      const reach = Math.max(1e-9, ...near.map((value) => Math.abs(value - (none ?? 0)))) * 2;
      const centre = none ?? 0;
      const x = (/** @type {number} */ value) => Math.min(w, Math.max(0, w / 2 + ((value - centre) / reach) * (w / 2)));
      const place = (
        /** @type {SVGElement} */ element,
        /** @type {number | null} */ value,
        /** @type {string[]} */ ...names
      ) => {
        attr(element, 'visibility', known(value) ? 'visible' : 'hidden');
        if (known(value)) names.forEach((name) => attr(element, name, x(value).toFixed(1)));
      };
      place(zero, none, 'x1', 'x2');
      place(limit, at, 'x1', 'x2');
      place(dot, effect, 'cx');
      const [from, to] = [known(lower) ? x(lower) : 0, known(upper) ? x(upper) : w];
      attr(bar, 'visibility', known(lower) || known(upper) ? 'visible' : 'hidden');
      attr(bar, 'x', from.toFixed(1));
      attr(bar, 'width', Math.max(2, to - from).toFixed(1));
      attr(zone, 'visibility', known(at) ? 'visible' : 'hidden');
      if (known(at)) {
        attr(zone, 'x', worse === 'above' ? x(at).toFixed(1) : 0);
        attr(zone, 'width', Math.max(0, worse === 'above' ? w - x(at) : x(at)).toFixed(1));
      }
    },
  };
}

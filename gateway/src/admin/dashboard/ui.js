/** Parts that several pages share: pills, meters, tables, dialogs, messages, and the states of a panel. */

import { attr, byId, h, keyed, newId, s, show, style, text } from './dom.js';
import { known } from './format.js';

/** @typedef {'good' | 'warn' | 'bad' | 'info' | 'spill' | 'idle'} Tone */

/**
 * Coloured word for a state. The word says it all; the colour helps.
 * @returns {{root: HTMLElement, set: (label: string, tone: Tone) => void}}
 */
export function pill() {
  const root = h('span', { class: 'pill' });
  return {
    root,
    set(label, tone) {
      text(root, label);
      attr(root, 'data-tone', tone);
    },
  };
}

/**
 * Bar of a use against its limit, with both as text.
 * @param {string} label What is measured, for screen readers.
 */
export function meter(label) {
  const fill = h('span', { class: 'meter-fill' });
  const bar = h('span', { class: 'meter-bar', 'aria-hidden': 'true' }, fill);
  const figures = h('span', { class: 'meter-text' });
  const root = h('span', { class: 'meter' }, h('span', { class: 'hidden' }, `${label}: `), figures, bar);
  return {
    root,
    /**
     * @param {number | null | undefined} used
     * @param {number | null | undefined} limit
     * @param {string} written
     */
    set(used, limit, written) {
      text(figures, written);
      const share = known(used) && known(limit) && limit > 0 ? Math.min(1, Math.max(0, used / limit)) : null;
      show(bar, share !== null);
      style(fill, 'inline-size', `${((share ?? 0) * 100).toFixed(1)}%`);
      attr(bar, 'data-tone', share === null || share < 0.75 ? 'info' : share < 0.95 ? 'warn' : 'bad');
    },
  };
}

/**
 * @template T
 * @typedef {object} Column
 * @property {string} label
 * @property {string} [cls] `num` for figures, `grow` for the column that takes the rest, `action` for buttons.
 * @property {boolean} [heads] The cell names its row.
 * @property {(item: T) => string} [value] Text of the cell.
 * @property {(cell: HTMLElement) => (item: T) => void} [make] Builds the cell once, and returns what updates it.
 * @property {(item: T) => number | string} [sort] Makes the column sortable.
 */

/**
 * Table with a caption whose rows keep their elements. Below 640 px each row is shown as a card.
 * @template T
 */
export class DataTable {
  /**
   * @param {object} options
   * @param {string} options.caption
   * @param {boolean} [options.captionHidden]
   * @param {Column<T>[]} options.columns
   * @param {(item: T) => string} options.keyOf
   * @param {string} [options.empty] Text for no rows.
   */
  constructor({ caption, captionHidden, columns, keyOf, empty }) {
    this.columns = columns;
    this.keyOf = keyOf;
    /** @type {{column: number, down: boolean} | null} */
    this.order = null;
    /** @type {readonly T[]} */
    this.items = [];
    /** Most rows that are shown, of the sorted ones the first. */
    this.most = Infinity;
    this.body = h('tbody', { role: 'rowgroup' });
    this.heads = columns.map((column, index) => this.head(column, index));
    const table = h(
      'table',
      { class: 'data', role: 'table' },
      h('caption', { class: captionHidden ? 'hidden' : null }, caption),
      h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, this.heads)),
      this.body,
    );
    this.empty = h('p', { class: 'none', hidden: true }, empty ?? 'Nothing here.');
    this.root = h(
      'div',
      { class: 'table-wrap', role: 'region', 'aria-label': caption, tabindex: '0' },
      table,
      this.empty,
    );
    // Only a region that scrolls needs to be a stop of the Tab key.
    new ResizeObserver(() => this.fit()).observe(this.root);
  }

  fit() {
    attr(this.root, 'tabindex', this.root.scrollWidth > this.root.clientWidth + 1 ? '0' : null);
  }

  /**
   * @param {Column<T>} column
   * @param {number} index
   */
  head(column, index) {
    const label = column.label || h('span', { class: 'hidden' }, 'Actions');
    const content = column.sort
      ? h('button', { type: 'button', class: 'sort', onclick: () => this.sortBy(index) }, label)
      : label;
    return h('th', { scope: 'col', role: 'columnheader', class: column.cls }, content);
  }

  /** @param {number} column */
  sortBy(column) {
    const same = this.order?.column === column;
    this.order = same && !this.order?.down ? null : { column, down: !same };
    this.heads.forEach((head, index) => {
      const down = this.order?.column === index ? this.order.down : null;
      attr(head, 'aria-sort', down === null ? null : down ? 'descending' : 'ascending');
    });
    this.update(this.items);
  }

  /** @param {readonly T[]} items */
  update(items) {
    this.items = items;
    const by = this.order && this.columns[this.order.column]?.sort;
    const down = this.order?.down ? -1 : 1;
    const sorted = by
      ? [...items].sort((a, b) => {
          const [x, y] = [by(a), by(b)];
          return (x < y ? -1 : x > y ? 1 : 0) * down;
        })
      : items;
    const first = sorted.length > this.most ? sorted.slice(0, this.most) : sorted;
    keyed(this.body, first, this.keyOf, () => this.row());
    show(this.empty, items.length === 0);
  }

  row() {
    const updates = /** @type {((item: T) => void)[]} */ ([]);
    const cells = this.columns.map((column) => {
      const attributes = { class: column.cls, 'data-label': column.label || null };
      const cell = column.heads
        ? h('th', { ...attributes, scope: 'row', role: 'rowheader' })
        : h('td', { ...attributes, role: 'cell' });
      updates.push(column.make ? column.make(cell) : (item) => text(cell, column.value?.(item) ?? ''));
      return cell;
    });
    const root = h('tr', { role: 'row' }, cells);
    return { root, update: (/** @type {T} */ item) => updates.forEach((set) => set(item)) };
  }
}

/**
 * Line below a table of which the first rows are shown, with a button that shows more.
 * @template T
 * @param {DataTable<T>} table
 * @param {number} rows Rows that are shown at first, and more with each wish for more.
 * @param {(hidden: number) => string} words Text for so many hidden rows.
 */
export function paged(table, rows, words) {
  table.most = rows;
  const left = h('span', { class: 'muted' });
  const update = () => {
    const hidden = table.items.length - table.most;
    show(root, hidden > 0);
    text(left, hidden > 0 ? words(hidden) : '');
  };
  const more = button(
    'Show more',
    () => {
      table.most += rows;
      table.update(table.items);
      update();
    },
    'small',
  );
  const root = h('p', { class: 'line' }, left, more);
  return { root, update };
}

/**
 * Panel with a heading.
 * @param {string} title
 * @param {{note?: string, cls?: string, tools?: import('./dom.js').Child[]}} [options]
 * @param {...import('./dom.js').Child} children
 */
export function panel(title, options = {}, ...children) {
  const id = newId('panel');
  const head = h('h2', { id }, title);
  return h(
    'section',
    { class: `panel ${options.cls ?? ''}`.trim(), 'aria-labelledby': id },
    h(
      'div',
      { class: 'panel-head' },
      head,
      options.note && h('p', { class: 'note' }, options.note),
      options.tools ?? [],
    ),
    ...children,
  );
}

/**
 * Place of a page that loads, is empty, or failed; beside it the content, which is hidden until it is ready.
 * @param {HTMLElement} content
 */
export function stateful(content) {
  const title = h('p', { class: 'state-title' });
  const detail = h('p', { class: 'muted' });
  const skeleton = h('div', { class: 'skeleton', 'aria-hidden': 'true' }, h('i'), h('i'), h('i'));
  const box = h('div', { class: 'state' }, skeleton, title, detail);
  const root = h('div', { class: 'stateful' }, box, content);
  /**
   * @param {string} kind
   * @param {string} first
   * @param {string} second
   */
  const set = (kind, first, second) => {
    attr(box, 'data-kind', kind);
    text(title, first);
    text(detail, second);
    show(skeleton, kind === 'loading');
    show(box, kind !== 'ready');
    show(content, kind === 'ready' || kind === 'stale');
  };
  set('loading', 'Loading', '');
  let ready = false;
  return {
    root,
    ready() {
      ready = true;
      set('ready', '', '');
    },
    /**
     * @param {string} first
     * @param {string} second
     */
    empty(first, second) {
      ready = false;
      set('empty', first, second);
    },
    /** @param {import('./api.js').ApiError} error */
    fail(error) {
      if (error.status === 503 && !ready) set('wait', 'Not ready yet', error.message);
      // What was shown stays, with the error above it.
      else set(ready ? 'stale' : 'error', 'This part could not be loaded', error.message);
    },
  };
}

/**
 * Asks for a confirmation, and for a reason where one is kept. Resolves to null if the person declines.
 * @param {{title: string, body: string, action: string, danger?: boolean, reason?: boolean}} options
 * @returns {Promise<{reason: string} | null>}
 */
export function confirm({ title, body, action, danger, reason }) {
  const [titleId, bodyId, fieldId] = [newId('dialog'), newId('dialog'), newId('dialog')];
  const field = h('input', { id: fieldId, maxlength: '500', autocomplete: 'off', name: 'reason' });
  const form = h(
    'form',
    { method: 'dialog' },
    h('h2', { id: titleId }, title),
    h('p', { id: bodyId }, body),
    reason ? h('label', { for: fieldId }, 'Reason, kept in the history') : null,
    reason ? field : null,
    h(
      'div',
      { class: 'dialog-actions' },
      h('button', { type: 'button', class: 'button', onclick: () => dialog.close('') }, 'Cancel'),
      h('button', { type: 'submit', class: `button ${danger ? 'danger' : 'primary'}`, value: 'yes' }, action),
    ),
  );
  const dialog = h('dialog', { class: 'dialog', 'aria-labelledby': titleId, 'aria-describedby': bodyId }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      const agreed = dialog.returnValue === 'yes';
      dialog.remove();
      resolve(agreed ? { reason: field.value.trim() } : null);
    });
    dialog.showModal();
  });
}

/**
 * Field with its label above and a hint below.
 * @param {string} label
 * @param {HTMLElement} input
 * @param {string} [hint]
 */
export function stacked(label, input, hint = '') {
  const [id, hintId] = [newId('field'), newId('hint')];
  input.id = id;
  if (hint) attr(input, 'aria-describedby', hintId);
  return h(
    'div',
    { class: 'stacked' },
    h('label', { for: id }, label),
    input,
    hint ? h('span', { id: hintId }, hint) : null,
  );
}

/**
 * Asks for fields in a dialog. It stays open with the error while what is asked for is refused; resolves when it is closed.
 * @param {{title: string, body: string, action: string, danger?: boolean, children: import('./dom.js').Child[], act: () => Promise<void>}} options
 * @returns {Promise<void>}
 */
export function form({ title, body, action, danger, children, act }) {
  const [titleId, bodyId] = [newId('dialog'), newId('dialog')];
  const problem = h('p', { class: 'field-error', role: 'alert' });
  const send = h('button', { type: 'submit', class: `button ${danger ? 'danger' : 'primary'}` }, action);
  const content = h(
    'form',
    null,
    h('h2', { id: titleId }, title),
    h('p', { id: bodyId }, body),
    ...children,
    problem,
    h(
      'div',
      { class: 'dialog-actions' },
      h('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Cancel'),
      send,
    ),
  );
  content.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (send.getAttribute('aria-busy') === 'true') return;
    attr(send, 'aria-busy', 'true');
    text(problem, '');
    try {
      await act();
      dialog.close();
    } catch (error) {
      text(problem, error instanceof Error ? error.message : String(error));
    } finally {
      attr(send, 'aria-busy', null);
    }
  });
  const dialog = h('dialog', { class: 'dialog', 'aria-labelledby': titleId, 'aria-describedby': bodyId }, content);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve();
    });
    dialog.showModal();
  });
}

/**
 * Shows content in a dialog with a heading, until the person closes it.
 * @param {string} title
 * @param {...import('./dom.js').Child} children
 */
export function sheet(title, ...children) {
  const id = newId('dialog');
  const close = h('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Close');
  const dialog = h(
    'dialog',
    { class: 'dialog wide', 'aria-labelledby': id },
    h('div', { class: 'dialog-head' }, h('h2', { id }, title), close),
    ...children,
  );
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** Most messages that are shown at once, and time that each stays, in milliseconds. */
const TOASTS = 3;
const TOAST_STAYS = 6000;

/**
 * Says what became of a change.
 * @param {string} message
 * @param {Tone} [tone]
 */
export function toast(message, tone = 'good') {
  const box = byId('toasts');
  while (box.childElementCount >= TOASTS) box.firstElementChild?.remove();
  const one = h('p', { class: 'toast', 'data-tone': tone }, message);
  box.append(one);
  setTimeout(() => one.remove(), TOAST_STAYS);
}

/**
 * Group of choices of which one holds.
 * @param {string} label
 * @param {{value: string, label: string}[]} choices
 * @param {string} value
 * @param {(value: string) => void} chosen
 */
export function segmented(label, choices, value, chosen) {
  const name = newId('choice');
  const inputs = choices.map((choice) =>
    h('input', { type: 'radio', name, value: choice.value, id: newId('choice'), onchange: () => chosen(choice.value) }),
  );
  inputs.forEach((input) => (input.checked = input.value === value));
  return h(
    'fieldset',
    { class: 'segmented' },
    h('legend', { class: 'hidden' }, label),
    choices.flatMap((choice, index) => [
      /** @type {HTMLElement} */ (inputs[index]),
      h('label', { for: inputs[index]?.id }, choice.label),
    ]),
  );
}

/**
 * List of choices with a label before it. `options` may change; the choice stays while it is among them.
 * @param {string} label
 * @param {string} all Text of the choice for everything; empty for none.
 * @param {string} value
 * @param {(value: string) => void} chosen
 */
export function select(label, all, value, chosen) {
  const id = newId('select');
  const element = h('select', { id, onchange: () => chosen(element.value) });
  const root = h('div', { class: 'field' }, h('label', { for: id }, label), element);
  let wanted = value;
  element.addEventListener('change', () => (wanted = element.value));
  /**
   * @param {string[]} names
   * @param {(name: string) => string} [written]
   */
  const options = (names, written = (name) => name) => {
    const listed = all === '' ? names : ['', ...names];
    // A choice that is gone stays in the list, so that the page keeps saying what it shows.
    if (wanted !== '' && !listed.includes(wanted)) listed.push(wanted);
    keyed(
      element,
      listed,
      (name) => name || '\u0001',
      (name) => ({ root: h('option', { value: name }, name === '' ? all : written(name)) }),
    );
    if (element.value !== wanted) element.value = wanted;
  };
  options([]);
  return {
    root,
    element,
    options,
    /** @param {string} choice */
    set(choice) {
      wanted = choice;
      if (element.value !== choice) element.value = choice;
    },
  };
}

/**
 * Field for a filter.
 * @param {string} label
 * @param {(value: string) => void} changed
 */
export function search(label, changed) {
  const id = newId('search');
  const element = h('input', { id, type: 'search', autocomplete: 'off', spellcheck: 'false', placeholder: label });
  element.addEventListener('input', () => changed(element.value.trim().toLowerCase()));
  return { root: h('div', { class: 'field' }, h('label', { class: 'hidden', for: id }, label), element), element };
}

/**
 * Button.
 * @param {string} label
 * @param {() => void} act
 * @param {string} [cls]
 */
export function button(label, act, cls = '') {
  return h('button', { type: 'button', class: `button ${cls}`.trim(), onclick: act }, label);
}

/**
 * Runs a change with its button held; a failure is told.
 * @param {HTMLButtonElement} control
 * @param {() => Promise<void>} act
 */
export async function held(control, act) {
  if (control.getAttribute('aria-busy') === 'true') return;
  attr(control, 'aria-busy', 'true');
  try {
    await act();
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error), 'bad');
  } finally {
    attr(control, 'aria-busy', null);
  }
}

/**
 * Terms with their values, such as the facts of one thing. Values are updated in place.
 * @param {string} [cls]
 */
export function facts(cls = 'terms') {
  const root = h('dl', { class: cls });
  return {
    root,
    /** @param {[string, string][]} pairs */
    set(pairs) {
      keyed(
        root,
        pairs,
        ([name]) => name,
        ([name]) => {
          const value = h('dd');
          return { root: h('div', null, h('dt', null, name), value), update: ([, written]) => text(value, written) };
        },
      );
    },
  };
}

/** Arrow that stands for a link to another place. */
export function arrow() {
  return s(
    'svg',
    { viewBox: '0 0 12 12', class: 'arrow', 'aria-hidden': 'true' },
    s('path', { d: 'M3 9l6-6M4.5 3H9v4.5' }),
  );
}

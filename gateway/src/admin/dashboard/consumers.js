/** Consumers: what each has used of its limits and budgets, and what it cost. */

import { get } from './api.js';
import { h, keyed, show, text } from './dom.js';
import { count, known, plural, short, span } from './format.js';
import { button, DataTable, held, meter, panel, search, select, stateful } from './ui.js';

/** @typedef {{rule: string, window?: string | number | null, limit: number, used?: number | null, remaining?: number | null}} Limit */
/** @typedef {{window: string | number, limit: number, spent: number, unit: string}} Budget */
/** @typedef {{name: string, tenant?: string | null, requestsPerSecond?: number | null, limits?: Limit[], budgets?: Budget[], cost?: number | null}} Consumer */

/** Most further pages that are kept, so that the list stays bounded. */
const MAX_PAGES = 10;

/** @param {string | number | null | undefined} window */
function over(window) {
  if (window === null || window === undefined || window === '') return '';
  return ` per ${typeof window === 'number' ? span(window) : window}`;
}

/**
 * @param {number} value
 * @param {string} unit
 */
function amount(value, unit) {
  return unit === 'usd' ? `$${short(value)}` : short(value);
}

/** @param {Limit} limit */
function used(limit) {
  return limit.used ?? (known(limit.remaining) ? limit.limit - limit.remaining : null);
}

/**
 * Greatest share of a limit or budget that is used up.
 * @param {Consumer} one
 */
function tightest(one) {
  const shares = [...(one.limits ?? []).map((limit) => (used(limit) ?? 0) / limit.limit), ...(one.budgets ?? []).map((budget) => budget.spent / budget.limit)];
  return Math.max(0, ...shares.filter(known));
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  let tenant = context.query.get('tenant') ?? '';
  let wanted = '';
  /** @type {Consumer[]} */
  let first = [];
  /** Pages that the person asked for beyond the first. @type {Consumer[][]} */
  let further = [];
  let more = 0;
  const tenants = select('Tenant', 'All tenants', tenant, (value) => {
    tenant = value;
    further = [];
    context.remember({ tenant });
    context.refresh();
  });
  const filter = search('Filter consumers', (value) => {
    wanted = value;
    paint();
  });
  context.actions.append(tenants.root, filter.root);
  const table = new DataTable({
    caption: 'Consumers with their limits and budgets',
    captionHidden: true,
    keyOf: (/** @type {Consumer} */ one) => one.name,
    empty: 'No consumer fits the filter.',
    columns: [
      {
        label: 'Consumer',
        heads: true,
        sort: (one) => one.name,
        make: (cell) => {
          const [name, of] = [h('span'), h('span', { class: 'sub' })];
          cell.append(name, of);
          return (one) => {
            text(name, one.name);
            text(of, one.tenant ?? '');
          };
        },
      },
      { label: 'Requests a second', cls: 'num', value: (one) => short(one.requestsPerSecond), sort: (one) => one.requestsPerSecond ?? 0 },
      {
        label: 'Limits',
        cls: 'grow',
        sort: tightest,
        make: (cell) =>
          meters(
            cell,
            (one) =>
              (one.limits ?? []).map((limit) => ({
                name: `${limit.rule}${over(limit.window)}`,
                used: used(limit),
                limit: limit.limit,
                written: `${short(used(limit))} of ${short(limit.limit)} ${limit.rule}${over(limit.window)}`,
              })),
            'no limit',
          ),
      },
      {
        label: 'Budgets',
        cls: 'grow',
        make: (cell) =>
          meters(
            cell,
            (one) =>
              (one.budgets ?? []).map((budget) => ({
                name: `${budget.unit}${over(budget.window)}`,
                used: budget.spent,
                limit: budget.limit,
                written: `${amount(budget.spent, budget.unit)} of ${amount(budget.limit, budget.unit)}${budget.unit === 'usd' ? '' : ` ${budget.unit}`}${over(budget.window)}`,
              })),
            'no budget',
          ),
      },
      { label: 'Cost', cls: 'num', value: (one) => (known(one.cost) ? `$${short(one.cost)}` : '–'), sort: (one) => one.cost ?? -1 },
    ],
  });
  const rest = h('p', { class: 'line' });
  const left = h('span', { class: 'muted' });
  const control = button('Show more', () => void next(), 'small');
  rest.append(left, control);
  const state = stateful(panel('Use against limits', { note: 'of this process, or of all gateways that share a store' }, table.root, rest));

  const query = (/** @type {string} */ after) => {
    const parts = new URLSearchParams();
    if (tenant !== '') parts.set('tenant', tenant);
    if (after !== '') parts.set('after', after);
    const written = parts.toString();
    return `api/consumers${written && `?${written}`}`;
  };

  function next() {
    const last = (further.at(-1) ?? first).at(-1);
    return held(control, async () => {
      const answer = await get(query(last?.name ?? ''));
      further.push(answer.consumers);
      more = answer.more;
      paint();
    });
  }

  function paint() {
    const all = [...first, ...further.flat()];
    const names = all.flatMap((one) => (one.tenant ? [one.tenant] : []));
    tenants.options([...new Set(names)].sort());
    if (all.length === 0 && tenant === '') {
      state.empty('No consumers', 'Callers are anonymous. With `consumers` the gateway knows them, and holds each to its limits.');
      return;
    }
    table.update(all.filter((one) => wanted === '' || `${one.name} ${one.tenant ?? ''}`.toLowerCase().includes(wanted)));
    show(rest, more > 0);
    text(left, further.length >= MAX_PAGES ? `${plural(more, 'further consumer')}: choose a tenant to see them.` : `${count(more)} more. Those below the first page keep the figures of the time they were asked for.`);
    show(control, further.length < MAX_PAGES);
    state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => query(''),
        paint: (/** @type {{consumers: Consumer[], more: number}} */ answer) => {
          first = answer.consumers;
          if (further.length === 0) more = answer.more;
          paint();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
    ],
  };
}

/**
 * Meters in a cell.
 * @param {HTMLElement} cell
 * @param {(one: Consumer) => {name: string, used: number | null, limit: number, written: string}[]} of
 * @param {string} none
 */
function meters(cell, of, none) {
  const list = h('span', { class: 'stack tight' });
  const empty = h('span', { class: 'muted' }, none);
  cell.append(list, empty);
  return (/** @type {Consumer} */ one) => {
    const all = of(one);
    show(empty, all.length === 0);
    keyed(list, all, (each) => each.name, (each) => {
      const bar = meter(each.name);
      return { root: bar.root, update: (now) => bar.set(now.used, now.limit, now.written) };
    });
  };
}

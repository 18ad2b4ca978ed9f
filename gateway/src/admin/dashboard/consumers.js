/** Consumers: what each has used of its limits and budgets, and what it cost. */

import { get } from './api.js';
import { h, keyed, show, text } from './dom.js';
import { count, known, plural, short } from './format.js';
import { button, DataTable, held, meter, panel, search, select, stateful } from './ui.js';

/**
 * @typedef {object} Limit
 * @property {string} rule `requests`, `tokens` or `concurrency`.
 * @property {string} whose `consumer` or `tenant`: those who share it.
 * @property {string | null} window Period of a rate; null for requests at the same time.
 * @property {number} limit Most in a period, or at the same time.
 * @property {number | null} burst Most at once.
 * @property {number | null} used Part of the burst that has not come back; null where a shared store counts.
 * @property {boolean} shared
 */

/**
 * @typedef {object} Budget
 * @property {string} unit `tokens` or `usd`.
 * @property {string} whose
 * @property {string} window
 * @property {number | null} limit Null where the unit is counted and not limited.
 * @property {number} spent
 * @property {boolean} shared
 */

/** @typedef {{name: string, limits: Limit[], budgets: Budget[]}} Use */
/** @typedef {Use & {tenant?: string | null, priority?: number}} Consumer */
/** @typedef {{consumers: Consumer[], more: number, tenants?: Use[]}} Answer */

/** Most further pages that are kept, so that the list stays bounded. */
const MAX_PAGES = 10;

/**
 * @param {number} value
 * @param {string} unit
 */
function amount(value, unit) {
  return unit === 'usd' ? `$${short(value)}` : `${short(value)} ${unit}`;
}

/**
 * Greatest share of a limit or budget that is used up.
 * @param {Use} one
 */
function tightest(one) {
  const shares = [
    ...one.limits.map((limit) => (limit.used ?? 0) / (limit.burst ?? limit.limit)),
    ...one.budgets.map((budget) => budget.spent / (budget.limit ?? Infinity)),
  ];
  return Math.max(0, ...shares.filter(known));
}

/**
 * Who shares a rule of a consumer or a tenant.
 * @param {{whose: string, shared: boolean}} rule
 * @param {string} of
 */
function sharers(rule, of) {
  return `${rule.whose === of ? '' : `, of the ${rule.whose}`}${rule.shared ? ', of all gateways' : ''}`;
}

/**
 * @param {Limit} limit
 * @param {string} of
 */
function limitText(limit, of) {
  const noun = limit.rule === 'concurrency' ? 'requests at the same time' : limit.rule;
  const most = limit.burst ?? limit.limit;
  // Where the burst is the rate, one figure says both.
  const rate =
    limit.window === null
      ? ''
      : most === limit.limit
        ? ` per ${limit.window}`
        : ` at once, ${short(limit.limit)} per ${limit.window}`;
  return `${known(limit.used) ? `${short(limit.used)} of ${short(most)}` : short(most)} ${noun}${rate}${sharers(limit, of)}`;
}

/**
 * @param {Budget} budget
 * @param {string} of
 */
function budgetText(budget, of) {
  const when = budget.window === 'day' ? 'today' : `this ${budget.window}`;
  const spent =
    budget.limit === null
      ? amount(budget.spent, budget.unit)
      : `${amount(budget.spent, budget.unit).split(' ')[0]} of ${amount(budget.limit, budget.unit)}`;
  return `${spent} ${when}${sharers(budget, of)}`;
}

/**
 * Columns with the use of limits and budgets.
 * @template {Use} T
 * @param {'consumer' | 'tenant'} of
 * @returns {import('./ui.js').Column<T>[]}
 */
export function uses(of) {
  return [
    {
      label: 'Limits',
      cls: 'grow',
      sort: tightest,
      make: (cell) =>
        meters(
          cell,
          (one) =>
            one.limits.map((limit) => ({
              name: `${limit.rule} ${limit.whose} ${limit.window}`,
              used: limit.used,
              limit: limit.burst ?? limit.limit,
              written: limitText(limit, of),
            })),
          'no limit',
        ),
    },
    {
      label: 'Budgets and cost',
      cls: 'grow',
      sort: (one) =>
        Math.max(0, ...one.budgets.filter((budget) => budget.unit === 'usd').map((budget) => budget.spent)),
      make: (cell) =>
        meters(
          cell,
          (one) =>
            one.budgets.map((budget) => ({
              name: `${budget.unit} ${budget.whose} ${budget.window}`,
              used: budget.spent,
              limit: budget.limit,
              written: budgetText(budget, of),
            })),
          'no budget',
        ),
    },
  ];
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
  /** @type {Use[]} */
  let shared = [];
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
      ...uses('consumer'),
    ],
  });
  const rest = h('p', { class: 'line' });
  const left = h('span', { class: 'muted' });
  const control = button('Show more', () => void next(), 'small');
  rest.append(left, control);
  /** @type {DataTable<Use>} */
  const byTenant = new DataTable({
    caption: 'Tenants with their limits and budgets',
    captionHidden: true,
    keyOf: (one) => one.name,
    columns: [{ label: 'Tenant', heads: true, value: (one) => one.name, sort: (one) => one.name }, ...uses('tenant')],
  });
  const tenantsPanel = panel(
    'Tenants',
    { note: 'limits and budgets that the consumers of a tenant share' },
    byTenant.root,
  );
  const state = stateful(
    h(
      'div',
      { class: 'stack' },
      panel('Consumers', { note: 'what each has used of what it may' }, table.root, rest),
      tenantsPanel,
    ),
  );

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
    tenants.options([...new Set([...names, ...shared.map((one) => one.name)])].sort());
    byTenant.update(shared);
    show(tenantsPanel, shared.length > 0);
    if (all.length === 0 && shared.length === 0 && tenant === '') {
      state.empty(
        'No consumers',
        'Callers are anonymous. With `consumers` the gateway knows them, and holds each to its limits.',
      );
      return;
    }
    table.update(
      all.filter((one) => wanted === '' || `${one.name} ${one.tenant ?? ''}`.toLowerCase().includes(wanted)),
    );
    show(rest, more > 0);
    text(
      left,
      further.length >= MAX_PAGES
        ? `${plural(more, 'further consumer')}: choose a tenant to see them.`
        : `${count(more)} more. Those below the first page keep the figures of the time they were asked for.`,
    );
    show(control, further.length < MAX_PAGES);
    state.ready();
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => query(''),
        paint: (/** @type {Answer} */ answer) => {
          first = answer.consumers;
          shared = answer.tenants ?? [];
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
 * @template {Use} T
 * @param {HTMLElement} cell
 * @param {(one: T) => {name: string, used: number | null, limit: number | null, written: string}[]} of
 * @param {string} none
 */
function meters(cell, of, none) {
  const list = h('span', { class: 'stack tight' });
  const empty = h('span', { class: 'muted' }, none);
  cell.append(list, empty);
  return (/** @type {T} */ one) => {
    const all = of(one);
    show(empty, all.length === 0);
    keyed(
      list,
      all,
      (each) => each.name,
      () => {
        const bar = meter('used');
        return { root: bar.root, update: (now) => bar.set(now.used, now.limit, now.written) };
      },
    );
  };
}

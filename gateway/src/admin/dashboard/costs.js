/** Costs: what consumers, tenants, models and routes have cost since the gateway began, against budgets; use without a price. */

import { download, hasToken } from './api.js';
import { attr, h, show, text } from './dom.js';
import { ago, clock, count, dollars, percent, plural, short, unix } from './format.js';
import { uses } from './consumers.js';
import { DataTable, facts, paged, panel, segmented, stateful, toast } from './ui.js';

/**
 * @typedef {object} Used
 * @property {string} consumer Empty for anonymous callers.
 * @property {string} tenant
 * @property {string} route
 * @property {number} answers
 * @property {number} inputTokens
 * @property {number} cachedTokens
 * @property {number} outputTokens
 */

/** @typedef {Used & {model: string, usd: number}} Row */
/** @typedef {{since: string, costs: Row[], unpriced: Used[]}} Answer */
/** @typedef {{name: string, usd: number, answers: number, inputTokens: number, cachedTokens: number, outputTokens: number}} Sum */
/** @typedef {'consumer' | 'tenant' | 'model' | 'route'} By */

const WAYS = [
  { value: 'consumer', label: 'Consumer' },
  { value: 'tenant', label: 'Tenant' },
  { value: 'model', label: 'Model' },
  { value: 'route', label: 'Route' },
];
/** Rows that are shown at first, and more with each wish for more. */
const ROWS = 100;
const CSV = 'api/costs?format=csv';

/**
 * Name of a caller or of what it used.
 * @param {string} name
 */
function named(name) {
  return name === '' ? 'anonymous' : name;
}

/**
 * Sums of the rows, the dearest first.
 * @param {Row[]} rows
 * @param {By} by
 */
function sums(rows, by) {
  /** @type {Map<string, Sum>} */
  const found = new Map();
  for (const row of rows) {
    const name = row[by];
    const sum = found.get(name) ?? { name, usd: 0, answers: 0, inputTokens: 0, cachedTokens: 0, outputTokens: 0 };
    for (const key of /** @type {const} */ (['usd', 'answers', 'inputTokens', 'cachedTokens', 'outputTokens']))
      sum[key] += row[key];
    found.set(name, sum);
  }
  return [...found.values()].sort((a, b) => b.usd - a.usd);
}

/**
 * Columns with what was used.
 * @template {Pick<Used, 'answers' | 'inputTokens' | 'cachedTokens' | 'outputTokens'>} T
 * @returns {import('./ui.js').Column<T>[]}
 */
function use() {
  return [
    { label: 'Answers', cls: 'num', value: (one) => count(one.answers), sort: (one) => one.answers },
    { label: 'Tokens read', cls: 'num', value: (one) => short(one.inputTokens), sort: (one) => one.inputTokens },
    { label: 'Of them cached', cls: 'num', value: (one) => short(one.cachedTokens), sort: (one) => one.cachedTokens },
    { label: 'Tokens written', cls: 'num', value: (one) => short(one.outputTokens), sort: (one) => one.outputTokens },
  ];
}

/** @param {import('./main.js').Context} context */
export function mount(context) {
  const asked = context.query.get('by');
  let by = /** @type {By} */ (WAYS.some((one) => one.value === asked) ? asked : 'consumer');
  /** @type {Answer | null} */
  let shown = null;
  /** @type {import('./consumers.js').Answer | null} */
  let budgets = null;
  let total = 0;
  const choice = segmented('Costs by', WAYS, by, (value) => {
    by = /** @type {By} */ (value);
    table.most = ROWS;
    context.remember({ by: value === 'consumer' ? '' : value });
    paint();
  });
  const link = h('a', { class: 'button', href: CSV, download: 'spillway-costs.csv' }, 'Download CSV');
  link.addEventListener('click', (event) => {
    // A link cannot send the token.
    if (!hasToken()) return;
    event.preventDefault();
    download(CSV, 'spillway-costs.csv').catch((error) => toast(error.message, 'bad'));
  });
  show(link, false);
  context.actions.append(choice, link);

  const figures = facts('terms panel');
  const table = new DataTable({
    caption: 'Costs, the dearest first',
    captionHidden: true,
    keyOf: (/** @type {Sum} */ one) => one.name,
    empty: 'No answer has had a price.',
    columns: [
      { label: 'Name', heads: true, value: (one) => named(one.name), sort: (one) => one.name },
      { label: 'Cost', cls: 'num', value: (one) => dollars(one.usd), sort: (one) => one.usd },
      { label: 'Share', cls: 'num', value: (one) => percent(total > 0 ? one.usd / total : null), sort: (one) => one.usd },
      ...use(),
    ],
  });
  const rest = paged(table, ROWS, (hidden) => `${plural(hidden, 'more row')}; the CSV has all.`);
  const spent = (/** @type {'consumer' | 'tenant'} */ of) => {
    const budgetColumn = uses(of).filter((column) => column.label.startsWith('Budget'));
    const one = new DataTable({
      caption: `Budgets of ${of}s`,
      captionHidden: true,
      keyOf: (/** @type {import('./consumers.js').Use} */ each) => each.name,
      columns: [
        { label: of === 'tenant' ? 'Tenant' : 'Consumer', heads: true, value: (each) => each.name, sort: (each) => each.name },
        ...budgetColumn,
      ],
    });
    one.most = ROWS;
    return one;
  };
  const [ofConsumers, ofTenants] = [spent('consumer'), spent('tenant')];
  const cut = h('p', { class: 'muted' });
  const budgetPanel = panel(
    'Budgets',
    { note: 'of the present day or month; they outlive a restart' },
    h('div', { class: 'stack' }, ofConsumers.root, ofTenants.root, cut),
  );
  const unpriced = new DataTable({
    caption: 'Answers without a price',
    captionHidden: true,
    keyOf: (/** @type {Used} */ one) => `${one.consumer}\u0000${one.tenant}\u0000${one.route}`,
    columns: [
      { label: 'Route', heads: true, value: (one) => one.route, sort: (one) => one.route },
      { label: 'Consumer', value: (one) => named(one.consumer), sort: (one) => one.consumer },
      .../** @type {import('./ui.js').Column<Used>[]} */ (use()),
    ],
  });
  unpriced.most = ROWS;
  const unpricedPanel = panel(
    'Use without a price',
    { note: 'is in no cost and no budget in dollars: give its models an entry of `prices`' },
    unpriced.root,
  );
  const state = stateful(
    h(
      'div',
      { class: 'stack' },
      figures.root,
      panel('Costs', { note: 'of this gateway, since it began' }, table.root, rest.root),
      budgetPanel,
      unpricedPanel,
    ),
  );

  function paint() {
    if (!shown) return;
    const { since, costs } = shown;
    const without = shown.unpriced ?? [];
    show(link, costs.length > 0);
    if (costs.length === 0 && without.length === 0) {
      state.empty(
        'No costs yet',
        `No model has answered since ${clock(unix(since), true)}. An answer costs what \`prices\` or the catalogue says.`,
      );
      return;
    }
    total = costs.reduce((sum, row) => sum + row.usd, 0);
    const missed = without.reduce((sum, row) => sum + row.answers, 0);
    figures.set([
      ['Cost', dollars(total)],
      ['Since', `${clock(unix(since), true)}, ${ago(unix(since))}`],
      ['Answers with a price', count(costs.reduce((sum, row) => sum + row.answers, 0))],
      ['Answers without a price', missed === 0 ? 'none' : count(missed)],
    ]);
    const all = sums(costs, by);
    text(/** @type {HTMLElement} */ (table.heads[0]?.querySelector('button')), WAYS.find((way) => way.value === by)?.label ?? '');
    table.update(all);
    rest.update();
    unpriced.update([...without].sort((a, b) => b.answers - a.answers));
    show(unpricedPanel, without.length > 0);
    paintBudgets();
    state.ready();
  }

  function paintBudgets() {
    const inDollars = (/** @type {import('./consumers.js').Use[]} */ all) =>
      all
        .map((one) => ({ ...one, budgets: one.budgets.filter((budget) => budget.unit === 'usd' && budget.limit !== null) }))
        .filter((one) => one.budgets.length > 0);
    const [consumers, tenants] = [inDollars(budgets?.consumers ?? []), inDollars(budgets?.tenants ?? [])];
    ofConsumers.update(consumers);
    ofTenants.update(tenants);
    show(ofConsumers.root, consumers.length > 0);
    show(ofTenants.root, tenants.length > 0);
    const beyond = budgets?.more ?? 0;
    show(cut, beyond > 0);
    text(cut, `${plural(beyond, 'further consumer')} and their budgets are on the page of consumers.`);
    attr(budgetPanel, 'hidden', consumers.length === 0 && tenants.length === 0);
  }

  return {
    root: state.root,
    sources: [
      {
        address: () => 'api/costs',
        every: 2,
        paint: (/** @type {Answer} */ answer) => {
          shown = answer;
          paint();
        },
        fail: (/** @type {import('./api.js').ApiError} */ error) => state.fail(error),
      },
      {
        address: () => 'api/consumers',
        every: 2,
        paint: (/** @type {import('./consumers.js').Answer} */ answer) => {
          budgets = answer;
          paint();
        },
      },
    ],
  };
}

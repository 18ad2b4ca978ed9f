/** Frame of the dashboard: pages by hash, state of the gateway and of the connection, token, theme. */

import { ApiError, get, hasToken, post, setToken } from './api.js';
import { attr, byId, h, s, show, text } from './dom.js';
import { repaint } from './charts.js';
import { clock, plural, span } from './format.js';
import { button, pill, toast } from './ui.js';
import { Poller } from './updates.js';
import * as backends from './backends.js';
import * as configuration from './configuration.js';
import * as consumers from './consumers.js';
import * as costs from './costs.js';
import * as keys from './keys.js';
import * as live from './live.js';
import * as models from './models.js';
import * as overview from './overview.js';
import * as playground from './playground.js';
import * as quality from './quality.js';
import * as rollouts from './rollouts.js';

/**
 * What a page gets from the frame.
 * @typedef {object} Context
 * @property {string[]} path Parts of the hash after the page's name.
 * @property {URLSearchParams} query
 * @property {HTMLElement} actions Place beside the heading.
 * @property {() => import('./api.js').Overview | null} overview Last overview.
 * @property {(query: Record<string, string>) => void} remember Writes choices into the hash without a visit.
 * @property {() => void} refresh Asks all sources again.
 * @property {(traceId: string | undefined) => string | null} traceLink Address of a trace.
 */

/**
 * @typedef {object} View
 * @property {HTMLElement} root
 * @property {import('./updates.js').Source[]} sources
 * @property {(overview: import('./api.js').Overview) => void} [overview] Paints what the overview tells.
 * @property {() => void} [leave]
 */

/** @type {{name: string, title: string, group: string, icon: string, mount: (context: Context) => View}[]} */
const PAGES = [
  { name: 'overview', title: 'Overview', group: 'Traffic', icon: 'M2 13V9m4 4V4m4 9V7m4 6V2', mount: overview.mount },
  { name: 'live', title: 'Live', group: 'Traffic', icon: 'M1.5 8h3l2-5 3 10 2-5h3', mount: live.mount },
  {
    name: 'consumers',
    title: 'Consumers',
    group: 'Traffic',
    icon: 'M8 8a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM2.5 14c.6-2.6 2.8-4 5.5-4s4.9 1.4 5.5 4',
    mount: consumers.mount,
  },
  {
    name: 'keys',
    title: 'Keys',
    group: 'Traffic',
    icon: 'M10.500 2a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7zM8 8l-6 6m2-2l1.500 1.500M5.500 10.500L7 12',
    mount: keys.mount,
  },
  {
    name: 'costs',
    title: 'Costs',
    group: 'Traffic',
    icon: 'M8 1.500v13M11.500 4.500C11 3.500 9.800 3 8 3 6 3 4.700 4 4.700 5.500c0 3.500 6.800 1.500 6.800 5 0 1.500-1.500 2.500-3.500 2.500s-3.300-.7-3.800-2',
    mount: costs.mount,
  },
  {
    name: 'backends',
    title: 'Backends',
    group: 'Serving',
    icon: 'M2.5 2.5h11v4h-11zM2.5 9.5h11v4h-11zM5 4.5h.01M5 11.5h.01',
    mount: backends.mount,
  },
  {
    name: 'models',
    title: 'Models',
    group: 'Serving',
    icon: 'M8 1.5l5.5 3.200v6.600L8 14.5l-5.5-3.200V4.700zM2.5 4.700L8 8l5.5-3.300M8 8v6.5',
    mount: models.mount,
  },
  { name: 'rollouts', title: 'Rollouts', group: 'Change', icon: 'M2 13h3V9h3V6h3V3h3', mount: rollouts.mount },
  {
    name: 'quality',
    title: 'Quality',
    group: 'Change',
    icon: 'M1.5 12c3 0 3-8 6.5-8s3.5 8 6.5 8',
    mount: quality.mount,
  },
  {
    name: 'configuration',
    title: 'Configuration',
    group: 'Change',
    icon: 'M5.5 4L2 8l3.5 4m5-8L14 8l-3.5 4',
    mount: configuration.mount,
  },
  {
    name: 'playground',
    title: 'Playground',
    group: 'Try',
    icon: 'M2.5 3h11v8h-6l-3 2.5V11h-2z',
    mount: playground.mount,
  },
];

const content = byId('content');
const banner = byId('banner');
const state = pill();
byId('state').replaceWith(state.root);
state.set('connecting', 'idle');

/** @type {import('./api.js').Overview | null} */
let last = null;
let answeredAt = 0;
/** @type {View | null} */
let view = null;
let visited = false;

const poller = new Poller(get, report);

/** Parts of the hash. */
function place() {
  const [path = '', query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const parts = path
    .split('/')
    .filter(Boolean)
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
  return { name: parts[0] ?? '', path: parts.slice(1), query: new URLSearchParams(query) };
}

function visit() {
  const { name, path, query } = place();
  const next = PAGES.find((one) => one.name === name);
  if (!next) {
    history.replaceState(null, '', '#/overview');
    visit();
    return;
  }
  view?.leave?.();
  const actions = byId('actions');
  actions.replaceChildren();
  document.title = `${next.title} · Spillway`;
  text(byId('title'), next.title);
  for (const link of byId('nav').querySelectorAll('a')) {
    attr(link, 'aria-current', link.getAttribute('href') === `#/${next.name}` ? 'page' : null);
  }
  menu(false);
  view = next.mount({
    path,
    query,
    actions,
    overview: () => last,
    remember: (choices) => {
      for (const [key, value] of Object.entries(choices)) {
        if (value === '') query.delete(key);
        else query.set(key, value);
      }
      const written = query.toString();
      history.replaceState(null, '', location.hash.split('?')[0] + (written && `?${written}`));
    },
    refresh: () => poller.now(),
    traceLink,
  });
  content.replaceChildren(view.root);
  if (last) view.overview?.(last);
  poller.follow([{ address: () => 'api/overview', paint: paintOverview, fail: failOverview }, ...view.sources]);
  // A visit moves the focus to the heading, as a new page would; the first load leaves it where it is.
  if (visited) {
    window.scrollTo(0, 0);
    byId('title').focus({ preventScroll: true });
  }
  visited = true;
}

/** @param {string | undefined} traceId */
function traceLink(traceId) {
  if (!traceId || !last?.tracesUrl) return null;
  const address = last.tracesUrl.replaceAll('{trace_id}', encodeURIComponent(traceId));
  // A template of another scheme would be a script.
  return /^https?:\/\//i.test(address) ? address : null;
}

/** @param {import('./api.js').Overview} overview */
function paintOverview(overview) {
  last = overview;
  const tone = overview.state === 'ready' ? 'good' : 'warn';
  state.set(overview.state, tone);
  const parts = [
    `v${overview.version}`,
    `up ${span(overview.uptimeSeconds)}`,
    plural(overview.connections, 'connection'),
  ];
  text(byId('facts'), parts.join('  ·  '));
  view?.overview?.(overview);
}

/** @param {ApiError} error */
function failOverview(error) {
  state.set(error.status === 503 ? 'starting' : 'refused', 'warn');
}

/**
 * Shows whether the gateway answers.
 * @param {ApiError | null} error
 * @param {number} retryAt
 */
function report(error, retryAt) {
  const needsToken = error?.status === 401;
  askForToken(needsToken);
  if (!error) {
    answeredAt = Date.now();
    show(banner, false);
    banner.replaceChildren();
    attr(content, 'data-stale', null);
    attr(byId('pause'), 'data-off', null);
    return;
  }
  state.set(needsToken ? 'not signed in' : 'disconnected', needsToken ? 'warn' : 'bad');
  if (needsToken) {
    show(banner, false);
    return;
  }
  attr(content, 'data-stale', true);
  attr(byId('pause'), 'data-off', true);
  const since = answeredAt === 0 ? '' : ` What you see is of ${clock(answeredAt / 1000)}.`;
  const when = poller.paused ? '' : ` Trying again at ${clock(retryAt / 1000)}.`;
  // Only a change is announced: the text is the same while the wait is.
  const message = `${error.message}${since}`;
  if (banner.dataset.message !== message) {
    banner.dataset.message = message;
    banner.replaceChildren(
      h('span', null, message),
      h('span', { class: 'when', 'aria-hidden': 'true' }),
      button('Try now', () => poller.now(), 'small'),
    );
  }
  const wait = banner.querySelector('.when');
  if (wait) text(wait, when);
  show(banner, true);
}

/** Key under which the place is kept that a person has left to sign in. */
const PLACE = 'spillway-place';

/**
 * Proofs that the gateway takes, and the person who has signed in.
 * @type {{login: boolean, token: boolean, person: string | null}}
 */
let proofs = { login: false, token: true, person: null };

async function askForProofs() {
  try {
    proofs = await get('auth/session');
  } catch {
    // The page works with what it knows; the next refusal asks again.
  }
  show(byId('login'), proofs.login);
  show(byId('token-part'), proofs.token || !proofs.login);
  nameSignOut();
  // Where there is no field for a token, the link takes its place.
  if (proofs.login && !proofs.token && !byId('token').hidden) byId('login-link').focus();
}

function nameSignOut() {
  const person = hasToken() ? null : proofs.person;
  text(byId('sign-out'), person === null ? 'Forget token' : `Sign out ${person}`);
  show(byId('sign-out'), person !== null || hasToken());
}

/** @param {boolean} needed */
function askForToken(needed) {
  const box = byId('token');
  if (needed && box.hidden) {
    proofs.person = null;
    void askForProofs();
    view?.leave?.();
    const field = /** @type {HTMLInputElement} */ (byId('token-value'));
    text(byId('token-error'), hasToken() ? 'The gateway does not accept this token.' : '');
    setToken(null);
    field.value = '';
    show(box, true);
    field.focus();
  } else if (!needed && !box.hidden) {
    show(box, false);
    visit();
  }
  show(byId('token'), needed);
  show(content, !needed);
  show(byId('actions'), !needed);
  nameSignOut();
}

byId('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const field = /** @type {HTMLInputElement} */ (byId('token-value'));
  const value = field.value.trim();
  if (value === '') return;
  // A header cannot carry other characters; the gateway's tokens have none.
  if (!/^[\x21-\x7e]+$/.test(value)) {
    text(byId('token-error'), 'A token has no spaces and only letters, digits and signs of ASCII.');
    return;
  }
  setToken(value);
  const box = byId('token');
  text(byId('token-error'), '');
  box.hidden = true;
  askAgain();
});

/** Tries the token: the page is mounted anew, so that its streams begin with it. */
function askAgain() {
  show(content, true);
  show(byId('actions'), true);
  visit();
}

byId('sign-out').addEventListener('click', async () => {
  if (hasToken()) setToken(null);
  else {
    try {
      await post('auth/logout');
    } catch (error) {
      toast(error instanceof Error ? error.message : String(error), 'bad');
      return;
    }
  }
  await askForProofs();
  poller.now();
});

byId('login-link').addEventListener('click', () => {
  try {
    sessionStorage.setItem(PLACE, location.hash);
  } catch {
    // Without storage the person comes back to the first page.
  }
});

/** Goes back to where the person was before signing in. */
function restorePlace() {
  try {
    const kept = sessionStorage.getItem(PLACE);
    sessionStorage.removeItem(PLACE);
    if (kept && location.hash === '') history.replaceState(null, '', kept);
  } catch {
    // As above.
  }
}

byId('pause').addEventListener('click', () => {
  const paused = !poller.paused;
  poller.pause(paused);
  attr(byId('pause'), 'aria-pressed', String(paused));
  text(byId('pause-text'), paused ? 'Paused' : 'Live');
});

// Theme: system, light, dark.

const THEMES = ['system', 'light', 'dark'];

function theme() {
  try {
    return localStorage.getItem('spillway-theme') ?? 'system';
  } catch {
    return 'system';
  }
}

function nameTheme() {
  attr(byId('theme'), 'aria-label', `Theme: ${theme()}`);
  attr(byId('theme'), 'title', `Theme: ${theme()}`);
}

byId('theme').addEventListener('click', () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length] ?? 'system';
  try {
    if (next === 'system') localStorage.removeItem('spillway-theme');
    else localStorage.setItem('spillway-theme', next);
  } catch {
    // Without storage the system's theme holds.
  }
  document.dispatchEvent(new Event('spillway-theme-chosen'));
  nameTheme();
});
document.addEventListener('spillway-theme', repaint);
nameTheme();

// Navigation

/** @param {boolean} open */
function menu(open) {
  attr(byId('nav'), 'data-open', open);
  attr(byId('menu'), 'aria-expanded', String(open));
}

byId('menu').addEventListener('click', () => {
  const open = byId('menu').getAttribute('aria-expanded') !== 'true';
  menu(open);
  if (open) byId('nav').querySelector('a')?.focus();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && byId('menu').getAttribute('aria-expanded') === 'true') {
    menu(false);
    byId('menu').focus();
  }
});
byId('page').addEventListener('pointerdown', () => menu(false));
// The link of the page that is shown changes no address, and closes the menu too.
byId('nav').addEventListener(
  'click',
  (event) => event.target instanceof Element && event.target.closest('a') && menu(false),
);

document.querySelector('.skip')?.addEventListener('click', (event) => {
  event.preventDefault();
  byId('title').focus();
});

for (const group of new Set(PAGES.map((one) => one.group))) {
  const links = PAGES.filter((one) => one.group === group).map((one) =>
    h(
      'li',
      null,
      h(
        'a',
        { href: `#/${one.name}` },
        s('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' }, s('path', { d: one.icon })),
        one.title,
      ),
    ),
  );
  const id = `nav-${group.toLowerCase()}`;
  byId('nav').append(h('h2', { id }, group), h('ul', { 'aria-labelledby': id }, links));
}

restorePlace();
void askForProofs();
window.addEventListener('hashchange', visit);
visit();

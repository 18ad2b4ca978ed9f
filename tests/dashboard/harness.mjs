// What the tests of the dashboard share: Chromium, a gateway as a process of its own, servers before which it stands, and the
// checks that hold for every page.

import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import assert from 'node:assert/strict';

/** Value of an environment variable that scripts/test-dashboard.sh sets. */
function needed(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run the tests by \`make test-dashboard\``);
  return value;
}

const packages = createRequire(`${needed('SPILLWAY_TEST_DASHBOARD')}/`);
const { chromium } = packages('playwright-core');
export const { parse: parseYaml } = packages('yaml');
const axe = readFileSync(packages.resolve('axe-core/axe.min.js'), 'utf8');

/** Folder for screenshots. */
export const SHOTS = needed('SPILLWAY_TEST_SHOTS');
mkdirSync(SHOTS, { recursive: true });

/** All pages, with the heading that each must show. */
export const PAGES = {
  overview: 'Overview',
  live: 'Live',
  consumers: 'Consumers',
  keys: 'Keys',
  costs: 'Costs',
  backends: 'Backends',
  models: 'Models',
  rollouts: 'Rollouts',
  quality: 'Quality',
  configuration: 'Configuration',
  playground: 'Playground',
};

/** Views in which each page is checked. */
export const VIEWS = {
  light: { viewport: { width: 1360, height: 860 }, colorScheme: 'light' },
  dark: { viewport: { width: 1360, height: 860 }, colorScheme: 'dark' },
  phone: { viewport: { width: 360, height: 740 }, colorScheme: 'light', hasTouch: true },
  'phone-dark': { viewport: { width: 360, height: 740 }, colorScheme: 'dark', hasTouch: true },
};

export function launch() {
  const sandbox = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  return chromium.launch({
    executablePath: needed('SPILLWAY_TEST_CHROMIUM'),
    args: [...sandbox, '--disable-dev-shm-usage', '--js-flags=--expose-gc'],
  });
}

/**
 * Opens a page. What it says on its console, its errors and breaches of its policy are collected in `complaints`.
 */
export async function visit(browser, address, options = VIEWS.light) {
  const context = await browser.newContext({ reducedMotion: 'reduce', ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(`${message.text()} (${message.location().url})`);
  });
  page.on('pageerror', (error) => complaints.push(String(error.stack ?? error)));
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`),
    );
  });
  await page.goto(address);
  return { page, context, complaints, close: () => context.close() };
}

/** Goes to a page by its link, as a person would, and waits until it shows something. */
export async function go(page, name) {
  const menu = page.getByRole('button', { name: 'Pages' });
  if (await menu.isVisible()) await menu.click();
  await page.getByRole('navigation', { name: 'Pages' }).getByRole('link', { name: PAGES[name], exact: true }).click();
  await page.getByRole('heading', { level: 1, name: PAGES[name] }).waitFor();
  await settled(page);
}

/** Waits until no part of the page is loading. */
export async function settled(page) {
  await page.waitForFunction(
    () => ![...document.querySelectorAll('.state[data-kind="loading"]')].some((one) => one.checkVisibility()),
  );
}

/** Checks the page with axe, and that nothing is wider than the screen. */
export async function accessible(page, what) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  const said = found.violations.map(
    (one) => `${one.id}: ${one.help}\n  ${one.nodes.map((node) => node.html.slice(0, 200)).join('\n  ')}`,
  );
  assert.deepEqual(said, [], `axe finds faults of ${what}`);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(over <= 0, `${what} is ${over} px wider than the screen`);
}

export async function shot(page, name) {
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}

/** Port that is free now. */
export async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Address of this machine that is not on loopback. */
export function outward() {
  const found = Object.values(networkInterfaces())
    .flat()
    .find((one) => one && one.family === 'IPv4' && !one.internal);
  if (!found) throw new Error('this machine has no IPv4 address besides loopback, which the test of the token needs');
  return found.address;
}

/** Server with OpenAI's API that answers each chat with its name. */
export async function chatServer(name) {
  const server = createServer((request, response) => {
    request.resume();
    request.on('end', () => {
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(
        JSON.stringify({
          id: 'c',
          object: 'chat.completion',
          created: 1,
          model: name,
          choices: [{ index: 0, message: { role: 'assistant', content: name }, finish_reason: 'stop' }],
          usage: { prompt_tokens: 8, completion_tokens: 3, total_tokens: 11 },
        }),
      );
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

/**
 * Issuer of OpenID Connect (oidc-provider) with one client, whose pages ask for any name. `groups` are those of its persons.
 */
export async function loginIssuer(redirectUri) {
  const { Provider } = await import(pathToFileURL(packages.resolve('oidc-provider')).href);
  const port = await freePort();
  const self = { url: `http://localhost:${port}`, groups: [], close: () => {} };
  const provider = new Provider(self.url, {
    clients: [{ client_id: 'spillway', client_secret: 'a secret & more', redirect_uris: [redirectUri] }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    conformIdTokenClaims: false,
    cookies: { keys: ['of this test'] },
    pkce: { required: () => true },
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, groups: self.groups }),
    }),
  });
  const server = await new Promise((resolve) => {
    const listening = provider.listen(port, 'localhost', () => resolve(listening));
  });
  self.close = () => {
    server.closeAllConnections();
    server.close();
  };
  return self;
}

/**
 * Starts a gateway with a configuration, in which PORT stands for a free port and ADMIN for that of the admin address.
 */
export async function gateway(configuration, admin = 0) {
  const folder = mkdtempSync(join(tmpdir(), 'spillway-dashboard-'));
  const port = await freePort();
  admin ||= await freePort();
  const file = join(folder, 'spillway.yaml');
  const write = (text) =>
    writeFileSync(
      file,
      text
        .replaceAll('PORT', port)
        .replaceAll('ADMIN', admin)
        .replaceAll('FOLDER', folder)
        .replaceAll('MODEL', needed('SPILLWAY_TEST_MODEL')),
    );
  write(configuration);
  const child = spawn(needed('SPILLWAY_BIN'), ['serve', '-c', file], { stdio: ['ignore', 'pipe', 'pipe'] });
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (log = (log + chunk).slice(-20_000)));
  const ended = new Promise((resolve) => child.on('exit', resolve));
  const self = {
    address: `http://127.0.0.1:${admin}/`,
    admin,
    traffic: `http://127.0.0.1:${port}`,
    write,
    api: async (path, options) => (await fetch(`http://127.0.0.1:${admin}/${path}`, options)).json(),
    async close() {
      child.kill('SIGTERM');
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
  for (;;) {
    if (child.exitCode !== null) throw new Error(`the gateway ended:\n${log}`);
    const ready = await fetch(`${self.address}readyz`).then(
      (answer) => answer.ok,
      () => false,
    );
    if (ready) return self;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Sends a chat with the key `test`, and returns the answer's status and text. */
export async function chat(address, body, headers = {}) {
  const answer = await fetch(`${address}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-api-key': 'test', ...headers },
    body: JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'hello' }], ...body }),
  });
  return { status: answer.status, text: await answer.text() };
}

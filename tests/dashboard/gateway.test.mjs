// The dashboard of a real gateway: a built-in model, two servers, a rollout between them, consumers with limits.

import { after, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { accessible, chat, chatServer, freePort, gateway, go, launch, loginIssuer, outward, PAGES, shot, VIEWS, visit } from './harness.mjs';

const CONFIGURATION = `
listeners: [{name: public, address: "127.0.0.1:PORT"}]
admin: {address: "127.0.0.1:ADMIN"}
state: {store: "FOLDER/state.db"}
authentication: {keysByApi: {}}
prices: [{model: "v*", input: 2, output: 10}]
models: [{name: smollm2, source: "MODEL"}]
consumers:
  - name: acme
    tenant: acme
    keys: [{sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}]
    limits: {requests: 600/min}
backends:
  - {name: chat-v1, protocol: openai, endpoints: [{url: "FIRST"}]}
  - {name: chat-v2, protocol: openai, endpoints: [{url: "SECOND"}]}
routes:
  - name: inside
    hostnames: [inside.test]
    backendRefs: [{model: smollm2}]
  - name: chat
    matches: [{path: {prefix: /v1}}]
    backendRefs: [{name: chat-v1}, {name: chat-v2}]
    rollout:
      to: chat-v2
      steps: [{weight: 20, hold: {for: 1h}}, {weight: 50, hold: {for: 1h}}]
      abortWhen: {errorRate: "+0.02", latencyP95: "1.3x"}
    quality: {sample: 1.0, reference: {window: 7d}, drift: {inputs: 0.2, outputs: 0.2}}
`;

let browser;
let servers;
let spillway;
let configuration;

before(async () => {
  browser = await launch();
  servers = [await chatServer('v1'), await chatServer('v2')];
  configuration = CONFIGURATION.replace('FIRST', servers[0].url).replace('SECOND', servers[1].url);
  spillway = await gateway(configuration);
});
after(async () => {
  await spillway?.close();
  servers?.forEach((one) => one.close());
  await browser?.close();
});

/** Opens the dashboard; it closes with the test. */
async function open(t, at = '', view = VIEWS.light, address = spillway.address) {
  const visited = await visit(browser, address + at, view);
  t.after(visited.close);
  return visited;
}

test('the page is served to browsers alone, with its policy', async () => {
  const page = await fetch(spillway.address, { headers: { accept: 'text/html' } });
  assert.match(page.headers.get('content-type'), /^text\/html/);
  const policy = page.headers.get('content-security-policy');
  for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"])
    assert.ok(policy.includes(part), policy);
  assert.match(await (await fetch(spillway.address)).text(), /\/api\/backends/);
  const script = await fetch(`${spillway.address}assets/main.js`);
  assert.match(script.headers.get('content-type'), /javascript/);
  const again = await fetch(`${spillway.address}assets/main.js`, {
    headers: { 'if-none-match': script.headers.get('etag') },
  });
  assert.equal(again.status, 304);
});

for (const [view, options] of Object.entries(VIEWS)) {
  test(`each page shows the gateway and is accessible: ${view}`, async (t) => {
    for (let n = 0; n < 5; n += 1) await chat(spillway.traffic, {});
    const { page, complaints } = await open(t, '', options);
    const says = {
      overview: 'chat',
      live: 'connected',
      consumers: 'acme',
      keys: 'No keys',
      costs: 'Costs',
      backends: 'chat-v1',
      models: 'smollm2',
      rollouts: 'chat-v2',
      quality: 'chat-v1',
      configuration: 'chat-v1',
      playground: 'The answer appears here',
    };
    for (const name of Object.keys(PAGES)) {
      await go(page, name);
      await page.locator('main').getByText(says[name]).filter({ visible: true }).first().waitFor();
      await shot(page, `gateway-${view}-${name}`);
      await accessible(page, `${name} in ${view}`);
    }
    assert.deepEqual(complaints, []);
  });
}

test('traffic is on the overview, with its latency', async (t) => {
  for (let n = 0; n < 20; n += 1) assert.equal((await chat(spillway.traffic, {})).status, 200);
  const { page } = await open(t, '#/overview?route=chat');
  const table = page.getByRole('figure').filter({ hasText: 'arrival to last byte' }).locator('table');
  await page.waitForFunction(() => /ms|µs| s/.test(document.querySelector('.tile:nth-child(4) dd')?.textContent ?? ''));
  assert.match(await table.textContent(), /p50/);
});

test('an endpoint is drained and returned', async (t) => {
  const { page, complaints } = await open(t, '#/backends');
  const name = servers[0].url;
  await page.getByRole('button', { name: `Drain ${name}` }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Drain' }).click();
  await page.getByText(`${name} is drained.`).waitFor();
  await page.getByRole('row', { name: name }).getByText('Drained').waitFor();
  const drained = async () =>
    (await spillway.api('api/backends')).backends.find((one) => one.name === 'chat-v1').endpoints[0].drained;
  assert.equal(await drained(), true);
  await page.getByRole('button', { name: `Return ${name}` }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Return to service' }).click();
  await page.getByRole('row', { name: name }).getByText('Open').waitFor();
  assert.equal(await drained(), false);
  assert.deepEqual(complaints, []);
});

test('a request made meanwhile is in the live tail', async (t) => {
  const { page, complaints } = await open(t, '#/live');
  await page.getByText('connected', { exact: true }).waitFor();
  await chat(spillway.traffic, {}, { 'x-request-id': 'seen-live' });
  await page.getByRole('rowheader', { name: 'POST /v1/chat/completions' }).first().getByRole('button').click();
  await page.getByRole('dialog').getByText('seen-live').waitFor();
  await page.keyboard.press('Escape');
  // The filter is the gateway's: what does not fit is not sent.
  await page.getByLabel('Status').selectOption('4xx');
  await page.getByText('connected', { exact: true }).waitFor();
  await chat(spillway.traffic, {}, { 'x-request-id': 'not-here' });
  await fetch(`${spillway.traffic}/nowhere`);
  await page.getByRole('rowheader', { name: 'GET /nowhere' }).waitFor();
  assert.equal(await page.getByRole('rowheader').count(), 1);
  // A paused tail keeps what it shows.
  await page.getByRole('button', { name: 'Pause' }).click();
  await fetch(`${spillway.traffic}/later`);
  await page.getByText('paused, 1 request since').waitFor();
  assert.equal(await page.getByRole('rowheader').count(), 1);
  await page.getByRole('button', { name: 'Resume' }).click();
  await page.getByRole('rowheader', { name: 'GET /later' }).waitFor();
  assert.deepEqual(complaints, []);
});

test('the playground streams an answer of the built-in model beside that of a server', async (t) => {
  const { page, complaints } = await open(t, '#/playground');
  await page.getByLabel('Beside another route').check();
  const [left, right] = [page.getByRole('region', { name: 'Answer' }), page.getByRole('region', { name: 'Beside it' })];
  await left.getByLabel('Route').selectOption('inside');
  await right.getByLabel('Route').selectOption('chat');
  await page.getByText('Key, model and settings').click();
  await page.getByLabel('Key of a consumer').fill('test');
  await page.getByLabel('Temperature').fill('0');
  await page.getByLabel('Message', { exact: true }).fill('What is the capital of France? Answer in one sentence.');
  await page.keyboard.press('Control+Enter');
  await left.getByText(/Paris/).waitFor({ timeout: 120_000 });
  await left.getByText('builtin/smollm2').waitFor();
  await right.getByText(/^Answer: v[12]$/).waitFor();
  await page.getByText('The answer of inside is complete.').waitFor({ state: 'attached', timeout: 120_000 });
  await accessible(page, 'two answers');
  await shot(page, 'gateway-playground-answers');
  assert.deepEqual(complaints, []);
});

test('mistakes and changes of an edit are shown', async (t) => {
  const { page, complaints } = await open(t, '#/configuration');
  await page.getByText('in use', { exact: true }).waitFor();
  spillway.write(configuration.replace('protocol: openai', 'protocol: opneai'));
  await page.getByText('unknown value `opneai`').first().waitFor();
  await page.getByText('backends[0].protocol').first().waitFor();
  await accessible(page, 'mistakes');
  spillway.write(`${configuration}    timeouts: {request: 31s}\n`);
  await page.getByText('in use', { exact: true }).waitFor();
  await page
    .getByText(/Show \d+ changed line/)
    .first()
    .click();
  await page.locator('[data-kind="add"]').getByText('31s').first().waitFor();
  await shot(page, 'gateway-edits');
  spillway.write(configuration);
  assert.deepEqual(complaints, []);
});

test('a rollout is aborted with a reason', async (t) => {
  const { page, complaints } = await open(t, '#/rollouts/chat');
  await page.getByRole('button', { name: 'Abort' }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('seen in <b>traces</b>');
  await page.getByRole('dialog').getByRole('button', { name: 'Abort' }).click();
  await page.getByText('Aborted').first().waitFor();
  await page.getByText('seen in <b>traces</b>').first().waitFor();
  await page.getByRole('button', { name: 'Start again' }).waitFor();
  assert.equal((await spillway.api('api/rollouts/chat')).state, 'aborted');
  await accessible(page, 'an aborted rollout');
  assert.deepEqual(complaints, []);
});

test('a key that the page makes opens the gateway, and what it costs is shown and saved', async (t) => {
  const { page, complaints } = await open(t, '#/keys');
  await page.getByRole('button', { name: 'Make a key' }).click();
  await page.getByRole('dialog').getByLabel('Consumer', { exact: true }).fill('acme');
  await page.getByRole('dialog').getByText('Limits and budget of the key').click();
  await page.getByRole('dialog').getByLabel('Requests', { exact: true }).fill('1000/min');
  await page.getByRole('button', { name: 'Make the key' }).click();
  const key = await page.getByRole('dialog').getByLabel('Key', { exact: true }).inputValue();
  assert.match(key, /^sk-spillway-/);
  await page.getByRole('button', { name: 'Close' }).click();
  assert.equal((await chat(spillway.traffic, {}, { 'x-api-key': key })).status, 200);
  await page.getByText('1000/min requests').waitFor();
  await page.getByText(/^(now|.* ago)$/).nth(1).waitFor();
  await accessible(page, 'a key of a gateway');
  await shot(page, 'gateway-keys');
  await page.getByRole('button', { name: /^Revoke key-/ }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Revoke' }).click();
  await page.getByText('No keys', { exact: true }).waitFor();
  assert.equal((await chat(spillway.traffic, {}, { 'x-api-key': key })).status, 401);
  await go(page, 'costs');
  await page.getByRole('rowheader', { name: 'acme' }).waitFor();
  await accessible(page, 'costs of a gateway');
  const saving = page.waitForEvent('download');
  await page.getByRole('link', { name: 'Download CSV' }).click();
  const saved = await (await saving).path();
  assert.match(readFileSync(saved, 'utf8'), /^consumer,tenant,route,model,.*\r\nacme,acme,chat,v\*,/);
  assert.deepEqual(complaints, []);
});

test('a person logs in at an issuer, changes something and signs out', async (t) => {
  const admin = await freePort();
  // The browser goes to another site, localhost, and comes back, as it does with an issuer on the internet.
  const issuer = await loginIssuer(`http://127.0.0.1:${admin}/auth/callback`);
  t.after(issuer.close);
  process.env.SPILLWAY_TEST_TOKEN = 'a-token-of-this-test';
  process.env.SPILLWAY_TEST_CLIENT_SECRET = 'a secret & more';
  const other = await gateway(
    CONFIGURATION.replace('FIRST', servers[0].url)
      .replace('SECOND', servers[1].url)
      .replace(
        'admin: {address: "127.0.0.1:ADMIN"}',
        `admin:
  address: "127.0.0.1:ADMIN"
  token: {env: SPILLWAY_TEST_TOKEN}
  oidc:
    issuer: ${issuer.url}
    clientId: spillway
    clientSecret: {env: SPILLWAY_TEST_CLIENT_SECRET}
    publicUrl: http://127.0.0.1:ADMIN
    scopes: [email, groups]
    allow: [{claim: groups, values: [operators]}]`,
      ),
    admin,
  );
  t.after(() => other.close());
  const { page, context, complaints } = await open(t, '#/backends', VIEWS.light, other.address);
  const link = page.getByRole('link', { name: 'Sign in' });
  issuer.groups = ['guests'];
  await link.click();
  await page.getByPlaceholder('Enter any login').fill('ann');
  await page.getByPlaceholder('and password').fill('any');
  await page.getByRole('button', { name: 'Sign-in' }).click();
  await page.getByRole('button', { name: 'Continue' }).click();
  await page.getByText('You are known to the issuer, and not among those who may use this gateway').waitFor();
  await accessible(page, 'a login that is refused');
  await shot(page, 'gateway-login-refused');
  issuer.groups = ['operators'];
  await page.getByRole('link', { name: 'Sign in again' }).click();
  const out = page.getByRole('button', { name: 'Sign out ann@example.com' });
  await out.waitFor();
  const session = (await context.cookies()).find((one) => one.name === 'spillway-session');
  assert.deepEqual([session.httpOnly, session.sameSite], [true, 'Strict']);
  await page.goto(`${other.address}#/backends`);
  const name = servers[0].url;
  await page.getByRole('button', { name: `Drain ${name}` }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Drain' }).click();
  await page.getByText(`${name} is drained.`).waitFor();
  await shot(page, 'gateway-login');
  await out.click();
  await link.waitFor();
  await page.reload();
  await link.waitFor();
  // The console lists the refusals, and what the pages of the issuer lack.
  const own = complaints.filter((one) => one.includes(other.address) && !/40[13]|favicon|Cross-Origin-Opener/.test(one));
  assert.deepEqual(own, []);
});

test('off loopback the page asks for the token', async (t) => {
  const host = outward();
  process.env.SPILLWAY_TEST_TOKEN = 'a-token-of-this-test';
  const other = await gateway(
    CONFIGURATION.replace('FIRST', servers[0].url)
      .replace('SECOND', servers[1].url)
      .replace(
        'admin: {address: "127.0.0.1:ADMIN"}',
        'admin: {address: "0.0.0.0:ADMIN", token: {env: SPILLWAY_TEST_TOKEN}}',
      ),
  );
  t.after(() => other.close());
  const { page, complaints } = await open(t, '#/backends', VIEWS.light, `http://${host}:${other.admin}/`);
  const field = page.getByLabel('Token', { exact: true });
  await field.waitFor();
  await accessible(page, 'the form for the token');
  await shot(page, 'gateway-token');
  await field.fill('a wrong one');
  await field.press('Enter');
  await page.getByText('A token has no spaces').waitFor();
  await field.fill('a-wrong-one');
  await field.press('Enter');
  await page.getByText('The gateway does not accept this token.').waitFor();
  await field.fill('a-token-of-this-test');
  await field.press('Enter');
  const name = servers[1].url;
  await page.getByRole('button', { name: `Drain ${name}` }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Drain' }).click();
  await page.getByText(`${name} is drained.`).waitFor();
  // The token outlives a reload of the tab, and not the tab.
  await page.reload();
  await page.getByRole('button', { name: `Return ${name}` }).waitFor();
  // A link cannot send the token: the page fetches the file and saves it.
  await chat(other.traffic, {});
  await go(page, 'costs');
  const saving = page.waitForEvent('download');
  await page.getByRole('link', { name: 'Download CSV' }).click();
  assert.match(readFileSync(await (await saving).path(), 'utf8'), /^consumer,tenant/);
  await page.getByRole('button', { name: 'Forget token' }).click();
  await field.waitFor();
  // The console lists refusals of the token (401), and that a browser heeds one header of the answers with TLS alone.
  const expected = /401|Cross-Origin-Opener-Policy header has been ignored/;
  assert.deepEqual(
    complaints.filter((one) => !expected.test(one)),
    [],
  );
});

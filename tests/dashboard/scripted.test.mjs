// The page before scripted answers: states, names and moments that a real gateway does not have on demand.

import { after, before, test } from 'node:test';
import assert from 'node:assert/strict';
import { accessible, go, launch, PAGES, parseYaml, settled, shot, VIEWS, visit } from './harness.mjs';
import { busy, empty, scripted } from './scripted.mjs';

let browser;
before(async () => (browser = await launch()));
after(() => browser.close());

/** Serves scripted answers and opens the page before them; both end with the test. */
async function start(t, { data = busy(), at = '', view = VIEWS.light } = {}) {
  const server = await scripted(data);
  t.after(server.close);
  const visited = await visit(browser, at.startsWith('about:') ? at : server.address + at, view);
  t.after(visited.close);
  return { server, ...visited };
}

for (const [view, options] of Object.entries(VIEWS)) {
  test(`each page of a busy gateway is accessible: ${view}`, async (t) => {
    const { page, complaints } = await start(t, { view: options });
    for (const name of Object.keys(PAGES)) {
      await go(page, name);
      if (name === 'live')
        await page
          .getByRole('link', { name: /^Trace/ })
          .first()
          .waitFor();
      await shot(page, `${view}-${name}`);
      await accessible(page, `${name} in ${view}`);
    }
    assert.deepEqual(complaints, []);
  });
}

test('each page of an empty gateway says what is not there', async (t) => {
  const { page, complaints } = await start(t, { data: empty() });
  const says = {
    overview: 'No traffic in this window',
    live: 'No request has ended',
    consumers: 'Callers are anonymous',
    keys: 'No keys',
    costs: 'No costs yet',
    backends: 'No backends',
    models: 'No built-in models',
    rollouts: 'No rollouts',
    quality: 'No route is watched',
    configuration: 'The process runs what it began with.',
    playground: 'The playground is off',
  };
  for (const [name, text] of Object.entries(says)) {
    await go(page, name);
    await page.getByText(text).first().waitFor();
    await accessible(page, `empty ${name}`);
    await shot(page, `empty-${name}`);
  }
  assert.deepEqual(complaints, []);
});

test('names and errors of the API never become HTML', async (t) => {
  const hostile = (name) => `${name}<img src=x onerror="globalThis.hit=1"><script>globalThis.hit=1</script>`;
  const { page, complaints } = await start(t, { data: busy(hostile) });
  for (const name of Object.keys(PAGES)) {
    await go(page, name);
    if (name === 'configuration') await page.getByText('Show 3 changed lines').click();
    if (name === 'quality')
      for (const more of await page.getByText('Distribution, before and now').all()) await more.click();
    await page.getByText('onerror=').first().waitFor({ state: 'attached' });
    assert.equal(await page.locator('main img, main script, dialog img').count(), 0, name);
    assert.equal(await page.evaluate(() => globalThis.hit), undefined, name);
    if (name === 'backends') {
      await page
        .getByRole('button', { name: /^Drain/ })
        .first()
        .click();
      await page.getByRole('dialog').getByText('onerror=').waitFor();
      await page.keyboard.press('Escape');
    }
    if (name === 'live') {
      await page.getByRole('rowheader').first().getByRole('button').click();
      await page.getByRole('dialog').getByText('onerror=').first().waitFor();
      await accessible(page, 'the details of a request');
      await page.keyboard.press('Escape');
    }
  }
  // What a model answers is text too.
  await page.getByLabel('Message', { exact: true }).fill('hello');
  await page.getByRole('button', { name: 'Send' }).click();
  await page.getByText('That is plain text.').waitFor();
  assert.equal(await page.locator('main img').count(), 0);
  assert.equal(await page.title(), 'Playground · Spillway');
  assert.deepEqual(complaints, []);
});

for (const [view, options] of Object.entries({ light: VIEWS.light, phone: VIEWS.phone })) {
  test(`long names stay within the screen: ${view}`, async (t) => {
    const { page } = await start(t, { data: busy((name) => name + 'x'.repeat(160)), view: options });
    for (const name of Object.keys(PAGES)) {
      await go(page, name);
      if (name === 'live') await page.getByRole('rowheader').first().waitFor();
      await shot(page, `long-${view}-${name}`);
      await accessible(page, `long names of ${name} in ${view}`);
    }
  });
}

test('a trace is linked to by http alone', async (t) => {
  const data = busy();
  const overview = data['/api/overview'];
  data['/api/overview'] = () => ({ ...overview(), tracesUrl: 'javascript:alert({trace_id})' });
  const { page } = await start(t, { data });
  await go(page, 'live');
  await page.getByRole('rowheader').first().waitFor();
  assert.equal(await page.locator('a[href^="javascript"]').count(), 0);
});

test('a gateway that is gone is said, what was shown stays, and it comes back', async (t) => {
  const { page, context } = await start(t, { at: '#/backends' });
  await page.getByRole('rowheader', { name: /10\.0\.4\.11/ }).waitFor();
  await context.setOffline(true);
  await page.getByText('The gateway does not answer.').waitFor();
  assert.ok(await page.getByRole('rowheader', { name: /10\.0\.4\.11/ }).isVisible());
  await accessible(page, 'a page without its gateway');
  await shot(page, 'disconnected');
  await page.getByRole('button', { name: 'Try now' }).click();
  await page.getByText('The gateway does not answer.').waitFor();
  await context.setOffline(false);
  await page.getByText('The gateway does not answer.').waitFor({ state: 'hidden' });
  await page.getByLabel('State of the gateway').getByText('ready').waitFor();
});

test('a refusal of one part leaves the page in use', async (t) => {
  const { server, page } = await start(t, { at: 'assets/icon.svg' });
  server.fail(503);
  await page.goto(`${server.address}#/rollouts`);
  await page.getByText('the gateway is starting').first().waitFor();
  await accessible(page, 'a page that is refused');
  await shot(page, 'starting');
  server.fail(null);
  await page.getByRole('button', { name: 'Abort' }).waitFor();
});

test('updates keep focus, selection and open details', async (t) => {
  const { server, page } = await start(t, { at: '#/backends' });
  const drain = page.getByRole('button', { name: 'Drain 10.0.4.12:8000' });
  await drain.focus();
  await page.evaluate(() => {
    const name = [...document.querySelectorAll('tbody th span')].find((one) => one.textContent === '10.0.4.11:8000');
    getSelection().selectAllChildren(name);
    globalThis.kept = document.querySelector('tbody tr');
  });
  const polls = server.polls();
  await page.waitForFunction(() => document.querySelector('#facts').textContent.includes('connections'));
  while (server.polls() < polls + 6) await page.waitForTimeout(100);
  assert.ok(await drain.evaluate((element) => element === document.activeElement));
  assert.equal(await page.evaluate(() => String(getSelection())), '10.0.4.11:8000');
  assert.ok(await page.evaluate(() => globalThis.kept === document.querySelector('tbody tr')));
});

test('everything works by keyboard', async (t) => {
  const { server, page } = await start(t, { at: '#/overview' });
  await settled(page);
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the content');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'title');
  // A chart is read step by step.
  const chart = page.getByRole('slider', { name: 'Latency' });
  await chart.focus();
  await page.keyboard.press('End');
  const last = await chart.getAttribute('aria-valuetext');
  await page.keyboard.press('ArrowLeft');
  const before = await chart.getAttribute('aria-valuetext');
  assert.match(before, /^\d\d:\d\d:\d\d: p50 .*, p95 .*, requests \d+/);
  assert.notEqual(before, last);
  // A window is chosen with the arrows, and kept in the address.
  await page.getByRole('radio', { name: '10 min' }).focus();
  await page.keyboard.press('ArrowRight');
  await page.waitForURL(/window=3h/);
  // A dialog takes the focus and gives it back.
  await go(page, 'backends');
  const drain = page.getByRole('button', { name: 'Drain 10.0.4.11:8000' });
  await drain.focus();
  await page.keyboard.press('Enter');
  await page.getByRole('dialog', { name: 'Drain 10.0.4.11:8000?' }).waitFor();
  await accessible(page, 'a question');
  await shot(page, 'question');
  await page.keyboard.press('Escape');
  assert.ok(await drain.evaluate((element) => element === document.activeElement));
  assert.equal(await page.getByRole('button', { name: 'Return 10.0.4.11:8000' }).count(), 0);
});

test('the pages are behind a menu on a phone', async (t) => {
  const { page } = await start(t, { view: VIEWS.phone });
  const menu = page.getByRole('button', { name: 'Pages' });
  await menu.focus();
  await page.keyboard.press('Enter');
  assert.equal(await menu.getAttribute('aria-expanded'), 'true');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Overview');
  await accessible(page, 'the open menu');
  await shot(page, 'phone-menu');
  await page.keyboard.press('Escape');
  assert.equal(await menu.getAttribute('aria-expanded'), 'false');
  assert.ok(await menu.evaluate((element) => element === document.activeElement));
});

test('the theme is that of the system until one is chosen', async (t) => {
  const { page } = await start(t, { view: VIEWS.dark });
  const theme = () => page.evaluate(() => document.documentElement.dataset.theme);
  assert.equal(await theme(), 'dark');
  await page.emulateMedia({ colorScheme: 'light' });
  await page.waitForFunction(() => document.documentElement.dataset.theme === 'light');
  await page.getByRole('button', { name: 'Theme: system' }).click();
  await page.getByRole('button', { name: 'Theme: light' }).click();
  assert.equal(await theme(), 'dark');
  await page.reload();
  assert.equal(await theme(), 'dark');
  await page.getByRole('button', { name: 'Theme: dark' }).click();
  assert.equal(await theme(), 'light');
});

test('updates come at most four times a second, and none while the tab is hidden', async (t) => {
  const { server, page } = await start(t, { at: 'assets/icon.svg' });
  server.tail(200);
  await page.goto(`${server.address}#/live`);
  await page.getByRole('rowheader').first().waitFor();
  await page.evaluate(() => {
    globalThis.begins = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries())
        if (entry.name === 'spillway-update') globalThis.begins.push(entry.startTime);
    }).observe({ entryTypes: ['measure'] });
  });
  await page.waitForFunction(() => globalThis.begins.length > 8);
  const begins = await page.evaluate(() => globalThis.begins);
  // A timer may come late and never early, so this holds on any machine.
  begins.slice(1).forEach((begin, n) => assert.ok(begin - begins[n] > 245, `updates ${begin - begins[n]} ms apart`));
  assert.ok((await page.getByRole('rowheader').count()) <= 200);
  await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: true, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await page.waitForTimeout(300);
  const polls = server.polls();
  const updates = await page.evaluate(() => globalThis.begins.length);
  await page.waitForTimeout(2500);
  assert.equal(server.polls(), polls);
  assert.equal(await page.evaluate(() => globalThis.begins.length), updates);
  await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: false, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await page.waitForFunction((n) => globalThis.begins.length > n, updates);
});

test('a person signs in, comes back to the page, and signs out', async (t) => {
  const data = busy();
  data.person = 'ann@example.com <img src=x>';
  data.proofs = { login: true, token: true, person: null };
  const { page, complaints } = await start(t, { data, at: '#/backends' });
  const link = page.getByRole('link', { name: 'Sign in' });
  await link.waitFor();
  await page.getByLabel('Token', { exact: true }).waitFor();
  await accessible(page, 'the choice of token or login');
  await shot(page, 'login');
  await link.click();
  await page.getByRole('rowheader', { name: /10\.0\.4\.11/ }).waitFor();
  assert.match(page.url(), /#\/backends$/);
  const out = page.getByRole('button', { name: 'Sign out ann@example.com' });
  await out.waitFor();
  await accessible(page, 'a page of a person');
  data.proofs.token = false;
  await out.click();
  await link.waitFor();
  assert.ok(!(await page.getByLabel('Token', { exact: true }).isVisible()), 'a gateway without a token asks for none');
  assert.deepEqual(
    complaints.filter((one) => !one.includes('401')),
    [],
  );
});

/** Row of a table by the name in its head. */
const rowOf = (page, name, within = page) =>
  within.getByRole('row').filter({ has: page.getByRole('rowheader', { name }) });

test('a key is made, shown once and copied', async (t) => {
  const { page, context, complaints } = await start(t, { at: '#/keys' });
  await context.grantPermissions(['clipboard-read', 'clipboard-write']);
  const make = page.getByRole('button', { name: 'Make a key' });
  await make.focus();
  await page.keyboard.press('Enter');
  const dialog = page.getByRole('dialog', { name: 'Make a key' });
  const consumer = dialog.getByLabel('Consumer', { exact: true });
  assert.ok(await consumer.evaluate((element) => element === document.activeElement));
  await dialog.getByText('Limits and budget of the key').click();
  await accessible(page, 'the form of a key');
  await shot(page, 'key-form');
  await consumer.fill('nobody');
  await page.keyboard.press('Enter');
  await dialog.getByRole('alert').getByText('there is no such consumer').waitFor();
  await consumer.fill('research');
  await dialog.getByLabel('Expires').fill('2199-01-31T10:00');
  await dialog.getByLabel('Requests', { exact: true }).fill('100/min');
  await dialog.getByLabel('Budget in dollars').fill('25');
  await dialog.getByRole('button', { name: 'Make the key' }).click();
  const shown = page.getByRole('dialog', { name: 'The key is made' });
  assert.equal(await shown.getByLabel('Key', { exact: true }).inputValue(), 'sk-spillway-first');
  await accessible(page, 'a key that was made');
  await shot(page, 'key-made');
  await shown.getByRole('button', { name: 'Copy' }).click();
  await shown.getByText('Copied.').waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'sk-spillway-first');
  await page.keyboard.press('Escape');
  await rowOf(page, 'key-new').getByText('100/min requests').waitFor();
  await rowOf(page, 'key-new').getByText('$25.00 a month').waitFor();
  assert.ok(!(await page.content()).includes('sk-spillway'), 'the key is gone with its dialog');
  assert.ok(await make.evaluate((element) => element === document.activeElement));
  // The console lists the refusal.
  assert.deepEqual(
    complaints.filter((one) => !one.includes('400')),
    [],
  );
});

test('a key is ended, rotated and revoked, each after a question', async (t) => {
  const { page, complaints } = await start(t, { at: '#/keys' });
  await page.getByRole('button', { name: 'Rotate key-0a1' }).click();
  const question = page.getByRole('dialog');
  await question.getByLabel('The secret before is accepted').selectOption('1h');
  await accessible(page, 'the question before a rotation');
  await question.getByRole('button', { name: 'Rotate' }).click();
  const shown = page.getByRole('dialog', { name: 'The key is rotated' });
  assert.equal(await shown.getByLabel('Key', { exact: true }).inputValue(), 'sk-spillway-second');
  await shown.getByRole('button', { name: 'Close' }).click();
  await page.getByRole('button', { name: 'Set expiry of key-0a2' }).click();
  await question.getByLabel('Expires').fill('2199-01-31T10:00');
  await question.getByRole('button', { name: 'Set expiry' }).click();
  await rowOf(page, 'key-0a2').getByText('2199-01-31 10:00:00').waitFor();
  await page.getByRole('button', { name: 'Set expiry of key-0a2' }).click();
  await question.getByLabel('Now').check();
  await question.getByRole('button', { name: 'Set expiry' }).click();
  await rowOf(page, 'key-0a2').getByText('Expired').waitFor();
  assert.equal(await page.getByRole('button', { name: 'Rotate key-0a2' }).count(), 0, 'an expired key is over');
  const revoke = page.getByRole('button', { name: 'Revoke key-0a2' });
  await revoke.click();
  await page.keyboard.press('Escape');
  assert.ok(await revoke.evaluate((element) => element === document.activeElement));
  await revoke.click();
  await question.getByRole('button', { name: 'Revoke' }).click();
  await page.getByText('key-0a2 is revoked.').waitFor();
  await rowOf(page, 'key-0a2').waitFor({ state: 'detached' });
  assert.deepEqual(complaints, []);
});

test('the page of keys says what turns it on, and that its store is lost', async (t) => {
  const data = busy();
  const { server, page } = await start(t, { data, at: '#/keys' });
  const { keys } = data['/api/keys']();
  await rowOf(page, 'key-0a1').waitFor();
  data['/api/keys'] = () => ({ keys, maxKeys: 10_000, storeAnswers: false });
  server.set(data);
  await page.reload();
  await page.getByText('Nothing can be changed until it does').waitFor();
  await accessible(page, 'keys without their store');
  await shot(page, 'keys-lost');
  data['/api/keys'] = () => ({ keys: [], maxKeys: 10_000, storeAnswers: false });
  await page.reload();
  await page.getByText('What keys there are is not known').waitFor();
  const detail = 'keys are not made at run time here: add `authentication: {keysByApi: {}}` to the configuration';
  data['/api/keys'] = () => ({ problem: { status: 409, detail } });
  await page.reload();
  await page.getByText(detail).waitFor();
  assert.equal(await page.getByRole('button', { name: 'Make a key' }).count(), 0);
  await accessible(page, 'keys that are off');
  await shot(page, 'keys-off');
});

test('of many keys and costs some are shown, and the rest when asked for', async (t) => {
  const data = busy();
  const made = (n) => new Date(Date.UTC(2026, 0, 1) + n * 60_000).toISOString();
  const keys = Array.from({ length: 5000 }, (_, n) => ({
    id: `key-${n}`,
    consumer: `consumer-${n % 900}`,
    state: 'active',
    createdAt: made(n),
    createdBy: 'token 10.0.0.9',
  }));
  data['/api/keys'] = () => ({ keys, maxKeys: 10_000, storeAnswers: true });
  const [row] = data['/api/costs']().costs;
  const costs = Array.from({ length: 900 }, (_, n) => ({ ...row, consumer: `consumer-${n}`, usd: n }));
  data['/api/costs'] = () => ({ since: made(0), costs, unpriced: [] });
  const { page } = await start(t, { data, at: '#/keys' });
  await page.getByRole('rowheader', { name: 'key-4999' }).waitFor();
  assert.equal(await page.getByRole('rowheader').count(), 100);
  await page.getByText('4,900 more keys.').waitFor();
  await page.getByRole('button', { name: 'Show more' }).click();
  assert.equal(await page.getByRole('rowheader').count(), 200);
  await page.getByLabel('Filter keys').fill('key-4321');
  await page.getByRole('rowheader', { name: 'key-4321' }).waitFor();
  assert.equal(await page.getByRole('rowheader').count(), 1);
  await go(page, 'costs');
  await page.getByRole('rowheader', { name: 'consumer-899', exact: true }).waitFor();
  await page.getByText('800 more rows; the CSV has all.').waitFor();
});

test('costs are summed by consumer, tenant, model and route, beside budgets and use without a price', async (t) => {
  const { page, complaints } = await start(t, { at: '#/costs' });
  const costs = page.getByRole('region', { name: 'Costs', exact: true }).getByRole('table');
  await rowOf(page, 'acme-prod', costs).getByText('$2,024.75').waitFor();
  await rowOf(page, 'anonymous', costs).getByText('$0.02').waitFor();
  await page.getByText(/3121 of/).waitFor();
  await page
    .getByRole('table', { name: 'Answers without a price' })
    .getByRole('rowheader', { name: 'code-assist' })
    .waitFor();
  for (const [by, name, sum] of [
    ['Tenant', 'acme', '$2,426.87'],
    ['Model', 'gpt-*', '$1,814.37'],
    ['Route', 'code-assist', '$612.50'],
  ]) {
    await page.getByText(by, { exact: true }).first().click();
    await page.waitForURL(new RegExp(`by=${by.toLowerCase()}`));
    await rowOf(page, name, costs).getByText(sum).waitFor();
  }
  await accessible(page, 'costs by route');
  const saved = page.waitForEvent('download');
  await page.getByRole('link', { name: 'Download CSV' }).click();
  assert.equal((await saved).suggestedFilename(), 'spillway-costs.csv');
  assert.deepEqual(complaints, []);
});

for (const name of ['overview', 'live', 'rollouts', 'models', 'keys', 'costs']) {
  test(`ten minutes of ${name} take no more memory`, async (t) => {
    const { server, page, context } = await start(t, { at: 'about:blank' });
    server.tail(60);
    // The page's clock runs as fast as the answers come: 300 rounds of two seconds are ten minutes.
    await page.clock.install();
    await page.goto(`${server.address}#/${name}`);
    await settled(page);
    const devtools = await context.newCDPSession(page);
    await devtools.send('Performance.enable');
    const used = async () => {
      for (let n = 0; n < 3; n += 1) await devtools.send('HeapProfiler.collectGarbage');
      const { metrics } = await devtools.send('Performance.getMetrics');
      const of = (wanted) => metrics.find((one) => one.name === wanted).value;
      return { heap: of('JSHeapUsedSize'), nodes: of('Nodes'), listeners: of('JSEventListeners') };
    };
    const rounds = async (n) => {
      for (let round = 0; round < n; round += 1) {
        const polls = server.polls();
        await page.clock.runFor(2000);
        const end = Date.now() + 5000;
        while (server.polls() === polls && Date.now() < end) await page.waitForTimeout(2);
      }
    };
    // The first part fills the buffers, which are bounded.
    await rounds(170);
    const first = await used();
    await rounds(130);
    const last = await used();
    console.log(
      `    ${name}: ${(first.heap / 1e6).toFixed(2)} MB and ${first.nodes} nodes after 170 rounds, ${(last.heap / 1e6).toFixed(2)} MB and ${last.nodes} after 300`,
    );
    assert.ok(last.heap < first.heap + 700_000, `the heap grew from ${first.heap} to ${last.heap} bytes`);
    assert.ok(last.nodes < first.nodes * 1.1 + 50, `the nodes grew from ${first.nodes} to ${last.nodes}`);
    assert.ok(
      last.listeners < first.listeners * 1.1 + 20,
      `the listeners grew from ${first.listeners} to ${last.listeners}`,
    );
  });
}

test('the running configuration is shown as YAML that says the same', async (t) => {
  const { page } = await start(t);
  const value = {
    texts: [
      '',
      ' a',
      'a ',
      'yes',
      'No',
      '~',
      'null',
      '1',
      '1e3',
      '0x1f',
      '12:30:00',
      '-',
      '- a',
      '? b',
      ': c',
      'a: b',
      'a #b',
      '#c',
      'a:',
      '*x',
      '&y',
      '!z',
      '%d',
      '@e',
      '`f',
      '[g',
      '{h',
      '"i',
      "'j",
      'k\nl',
      'tab\there',
      '\u0007',
      'é ü 漢字',
      '=',
      '<<',
      '.inf',
      '.NaN',
      '2026-12-01',
      '127.0.0.1:8080',
      '10s',
      '1m',
      '32KiB',
      '1:30',
      '1:8080',
      '0.5x',
      '5e',
      '1e',
      '.5',
      '5.',
      '0b11',
      '017',
      '089',
      '-0x1f',
      '[::1]:80',
      '::1',
      '190:20:30.15',
      '2026-12-01T00:00:00Z',
      'http://a:1/b?c=d#e',
      '\u2028',
      '---',
      '...',
      '|',
      '>',
      'on',
      'plain words',
      '😀',
      '+1',
      '0o17',
      '1_000',
      'y',
      'N',
    ],
    numbers: [0, -1, 1.5, 1e21, 1e-9],
    truths: [true, false, null],
    empty: { list: [], map: {}, lists: [[], [[]], [1, [2, { a: [3] }]]] },
    nested: [{ a: { b: [{ c: 1, d: [{ e: null }] }] }, f: 2 }, [{ g: 1 }, 'h']],
    'key: odd': { '': 1, '- x': 2, yes: 3, 'a\nb': 4 },
  };
  const written = await page.evaluate(async (it) => (await import('/assets/configuration.js')).yaml(it), value);
  assert.deepEqual(parseYaml(written), value);
  assert.deepEqual(parseYaml(written, { version: '1.1' }), value);
});

test('keys that are not set are left out of the configuration until they are asked for', async (t) => {
  const data = busy();
  const config = data['/api/config'];
  data['/api/config'] = () => {
    const answer = config();
    answer.running.listeners[0] = {
      ...answer.running.listeners[0],
      tls: null,
      limits: { most: null, kinds: [] },
      via: false,
      port: 0,
    };
    return answer;
  };
  const { page } = await start(t, { data, at: '#/configuration' });
  const shown = page.getByRole('region', { name: 'Text of the running configuration' });
  await shown.getByText('via: false').waitFor();
  assert.doesNotMatch(await shown.textContent(), /tls|limits/);
  assert.match(await shown.textContent(), /port: 0/);
  await page.getByLabel('Keys that are not set').check();
  await shown.getByText('tls: null').waitFor();
  await page.getByText('JSON', { exact: true }).click();
  await shown.getByText('"tls": null').waitFor();
});

test('quantiles are those of the histogram', async (t) => {
  const { page } = await start(t);
  const of = (counts, bounds, level) =>
    page.evaluate(
      async (it) => (await import('/assets/charts.js')).quantile(...it)?.value ?? null,
      [counts, bounds, level],
    );
  assert.equal(await of([0, 0, 0], [1, 2], 0.5), null);
  assert.equal(await of(null, [1, 2], 0.5), null);
  assert.equal(await of([10, 0, 0], [1, 2], 0.5), 0.5);
  assert.equal(await of([5, 10, 0], [1, 2], 0.9), 1.85);
  // Beyond the last bound nothing is known but that.
  assert.equal(await of([0, 0, 4], [1, 2], 0.5), 2);
});

test('commands of a rollout ask for a reason', async (t) => {
  const { page, complaints } = await start(t, { at: '#/rollouts' });
  await page.getByRole('button', { name: 'Pause', exact: true }).click();
  await page.getByRole('dialog').getByLabel('Reason').fill('a look first');
  await page.getByRole('dialog').getByRole('button', { name: 'Pause' }).click();
  await page.getByText('a look first').waitFor();
  await page.getByRole('button', { name: 'Resume', exact: true }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Resume' }).click();
  await page.getByRole('button', { name: 'Pause', exact: true }).waitFor();
  await page.getByLabel('Metric', { exact: true }).selectOption('firstTokenP95');
  await page.getByRole('img', { name: /^First token p95: effect 1.15×, bounds 0.96× to 1.38×/ }).waitFor();
  assert.deepEqual(complaints, []);
});

test('an event stream is read however it is cut', async (t) => {
  const { page } = await start(t);
  const read = (chunks) =>
    page.evaluate(async (parts) => {
      const { events } = await import('/assets/api.js');
      const bytes = parts.map((part) =>
        typeof part === 'string' ? new TextEncoder().encode(part) : new Uint8Array(part),
      );
      const stream = new ReadableStream({
        start(controller) {
          bytes.forEach((one) => controller.enqueue(one));
          controller.close();
        },
      });
      const seen = [];
      for await (const one of events(stream)) seen.push([one.event, one.data]);
      return seen;
    }, chunks);
  const whole =
    ': hello\nevent: request\ndata: {"a":1}\n\ndata: x\ndata:  y\n\nevent: missed\r\ndata: 2\r\n\r\ndata: é\n\ndata: cut';
  const expected = [
    ['request', '{"a":1}'],
    ['message', 'x\n y'],
    ['missed', '2'],
    ['message', 'é'],
  ];
  assert.deepEqual(await read([whole]), expected);
  // Byte by byte, so that a character and a line break are cut too.
  assert.deepEqual(await read([...new TextEncoder().encode(whole)].map((byte) => [byte])), expected);
});

test('a tail that is too fast says how many requests are not shown', async (t) => {
  const data = busy();
  data.missed = 1234;
  const { page } = await start(t, { data, at: '#/live' });
  await page.getByText('1,234 not shown, because they came too fast').waitFor();
});

test('one route has no figures of tokens, and the page says why', async (t) => {
  const { page } = await start(t, { at: '#/overview?route=chat' });
  await page.getByText('Tokens and first tokens are counted by model and server').waitFor();
  assert.equal(await page.getByRole('slider', { name: 'Tokens' }).count(), 0);
  await page.getByLabel('Route', { exact: true }).selectOption('');
  await page.getByRole('slider', { name: 'Tokens' }).waitFor();
});

test('an address that is no page leads to one', async (t) => {
  const { page, complaints } = await start(t, { at: '#/rollouts/%ZZ?x=%' });
  await page.getByText('This part could not be loaded').waitFor();
  await page.goto(page.url().replace(/#.*/, '#/nowhere'));
  await page.getByRole('heading', { level: 1, name: 'Overview' }).waitFor();
  // The console lists the answer 404 for a rollout that is not there.
  assert.deepEqual(
    complaints.filter((one) => !one.includes('404')),
    [],
  );
});

test('a model is named for each route of the playground', async (t) => {
  const { page } = await start(t);
  const of = (running, route) =>
    page.evaluate(async (it) => (await import('/assets/playground.js')).modelOf(...it), [running, route]);
  const running = {
    backends: [{ name: 'b', model: 'own' }, { name: 'c' }],
    routes: [
      { name: 'asked', matches: [{ model: 'gpt-*' }, { model: 'gpt-4' }], backendRefs: [{ name: 'b' }] },
      { name: 'inside', backendRefs: [{ model: 'smollm2' }] },
      { name: 'server', backendRefs: [{ name: 'c' }, { name: 'b' }] },
      { name: 'unknown', backendRefs: [{ name: 'c' }] },
    ],
  };
  for (const [route, model] of [
    ['asked', 'gpt-4'],
    ['inside', 'smollm2'],
    ['server', 'own'],
    ['unknown', 'unknown'],
    ['gone', 'gone'],
  ])
    assert.equal(await of(running, route), model);
  assert.equal(await of(null, 'x'), 'x');
});

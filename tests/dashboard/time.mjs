// Prints how long the browser's main thread works for an update of each page, while a gateway answers about 1,000 requests a
// second. Nothing is asserted: the figures are of this machine, on which the gateway and its load run too.

import { Agent, request } from 'node:http';
import { gateway, go, launch, PAGES, visit } from './harness.mjs';

const PER_SECOND = 1000;
const SECONDS = 10;
const spillway = await gateway(`
listeners: [{name: public, address: "127.0.0.1:PORT"}]
admin: {address: "127.0.0.1:ADMIN"}
routes:
${Array.from({ length: 20 }, (_, n) => `  - {name: route-${n}, matches: [{path: {prefix: /${n}/}}], filters: [{respond: {body: ok}}]}`).join('\n')}
`);
const agent = new Agent({ keepAlive: true, maxSockets: 32 });
let sent = 0;
let answered = 0;
const begin = performance.now();
const load = setInterval(() => {
  // What a late timer has missed is sent at once.
  const due = Math.min(PER_SECOND / 10, Math.floor(((performance.now() - begin) / 1000) * PER_SECOND) - sent);
  for (let n = 0; n < due; n += 1) {
    sent += 1;
    request(`${spillway.traffic}/${sent % 20}/x`, { agent }, (answer) => {
      answered += 1;
      answer.resume();
    })
      .on('error', () => {})
      .end();
  }
}, 10);

const browser = await launch();
const { page } = await visit(browser, spillway.address);
await page.evaluate(() => {
  globalThis.updates = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries())
      if (entry.name === 'spillway-update') globalThis.updates.push(entry.duration);
  }).observe({ entryTypes: ['measure'] });
});
console.log('page            updates/s   median ms   p95 ms   longest ms');
for (const name of Object.keys(PAGES)) {
  await go(page, name);
  await page.waitForTimeout(1000);
  await page.evaluate(() => (globalThis.updates.length = 0));
  const from = performance.now();
  await page.waitForTimeout(SECONDS * 1000);
  const took = (performance.now() - from) / 1000;
  const all = (await page.evaluate(() => globalThis.updates)).sort((a, b) => a - b);
  const at = (level) => (all[Math.min(all.length - 1, Math.floor(level * all.length))] ?? 0).toFixed(2);
  console.log(
    `${name.padEnd(15)} ${(all.length / took).toFixed(2).padStart(9)} ${at(0.5).padStart(11)} ${at(0.95).padStart(8)} ${at(1).padStart(12)}`,
  );
}
console.log(`load: ${Math.round(answered / ((performance.now() - begin) / 1000))} requests a second were answered`);
clearInterval(load);
await browser.close();
await spillway.close();
agent.destroy();
process.exit(0);

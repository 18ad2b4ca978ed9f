// A scripted admin address: the files of the dashboard with the gateway's content policy, and answers that a test chooses. It is
// for what a real gateway cannot be brought to on demand: hostile names, a day of traffic, a failure at a moment.

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';

const FILES = fileURLToPath(new URL('../../gateway/src/admin/dashboard/', import.meta.url));
const TYPES = {
  html: 'text/html; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  css: 'text/css; charset=utf-8',
  svg: 'image/svg+xml',
};
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** Numbers that look random and are the same in each run. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return state / 4294967296;
  };
}

const BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60];

/** Shares of the buckets around a middle, in seconds, on a logarithmic scale. */
function spread(middle, width, total, next) {
  const weights = [...BOUNDS, 120].map((bound, n) => {
    const low = n === 0 ? 0.002 : BOUNDS[n - 1];
    const distance = Math.log(Math.sqrt(low * bound) / middle) / width;
    return Math.exp(-distance * distance) * (0.7 + 0.6 * next());
  });
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => Math.round((weight / sum) * total));
}

function evidence(name, threshold, finding, stable, candidate, effect, lower, upper, more, part) {
  return {
    name,
    threshold,
    finding,
    effect,
    lower,
    upper,
    more,
    stable: { requests: stable[0], estimate: stable[1], units: stable[0], capped: 0 },
    candidate: { requests: candidate[0], estimate: candidate[1], units: candidate[0], capped: 0 },
    lnWorse: part * 0.2,
    lnWorseNeeded: 6.2,
    lnFine: part * 3,
    lnFineNeeded: 3,
    designEffect: 1,
    sentence: `${name} is ${finding}: the effect is between ${lower} and ${upper}.`,
  };
}

/** Answers of a busy gateway. Names can be replaced, to see that they stay text. */
export function busy(hostile = (name) => name) {
  const began = Date.now() / 1000 - 273_600;
  const names = { chat: hostile('chat'), search: hostile('embed-search'), code: hostile('code-assist') };
  const data = {};
  const endpoint = (n, more) => ({
    endpoint: `10.0.4.${n}:8000`,
    url: `http://10.0.4.${n}:8000`,
    address: `10.0.4.${n}:8000`,
    weight: 1,
    priority: 0,
    state: 'open',
    healthy: true,
    ejected: false,
    drained: false,
    inFlight: 12 + (n % 10),
    connections: 20,
    limit: 32,
    latencyMs: 180 + 31 * (n % 10),
    waiting: n % 3,
    kvCache: 0.4 + (n % 10) / 20,
    ejections: 0,
    attempts: { success: 91_000 },
    ...more,
  });
  const at = (past) => new Date(Date.now() - past * 1000).toISOString();
  const drained = new Set();
  const state = { rollout: 'running', history: [] };

  data['/api/overview'] = () => ({
    now: Date.now() / 1000,
    version: '0.9.0',
    uptimeSeconds: Date.now() / 1000 - began,
    state: 'ready',
    generation: 14,
    inFlight: 87,
    connections: 212,
    requestsPerSecond: 41.3 + Math.sin(Date.now() / 4000),
    errorsPerSecond: 0.31,
    spillsPerSecond: 1.2,
    tokensPerSecond: 4210,
    listeners: [
      { address: '0.0.0.0:8080', tls: false },
      { address: '0.0.0.0:8443', tls: true },
    ],
    routes: [
      { name: names.chat, inFlight: 61, requestsPerSecond: 28.4, errorsPerSecond: 0.28 },
      { name: names.code, inFlight: 22, requestsPerSecond: 9.1, errorsPerSecond: 0.03 },
      { name: names.search, inFlight: 4, requestsPerSecond: 3.8, errorsPerSecond: 0 },
    ],
    tracesUrl: 'https://traces.example/trace/{trace_id}',
    playground: true,
  });
  data['/api/history'] = (query) => {
    const [step, length] = { '10m': [5, 120], '3h': [60, 180], '24h': [300, 288] }[query.get('window')] ?? [5, 120];
    const next = random(7);
    const share = query.get('route') ? 0.4 : 1;
    const wave = (n) => (1 + 0.35 * Math.sin(n / 17) + 0.18 * Math.sin(n / 5.3) + 0.1 * next()) * share;
    const burst = (n) => Math.max(0, 1 - Math.abs(n - length * 0.62) / (length * 0.07));
    const steps = Array.from({ length }, (_, n) => n);
    const requests = steps.map((n) => Math.round(step * 34 * wave(n) * (1 + burst(n))));
    return {
      stepSeconds: step,
      start: Math.floor(Date.now() / 1000 / step) * step - step * length,
      latencyBounds: BOUNDS,
      firstTokenBounds: BOUNDS,
      requests,
      errors: steps.map((n) => Math.round(step * (0.2 + 0.25 * next() + 2.2 * burst(n)) * share)),
      spills: {
        full: steps.map((n) => Math.round(step * (0.4 * next() + 6 * burst(n)) * share)),
        queue_timeout: steps.map((n) => Math.round(step * (0.2 * next() + 3 * burst(n)) * share)),
        unavailable: steps.map((n) => Math.round(step * (n > length * 0.3 && n < length * 0.36 ? 2.2 : 0) * share)),
      },
      refused: {
        rate_limited: steps.map(() => Math.round(step * 0.5 * next() * share)),
        no_room: steps.map((n) => Math.round(step * 1.4 * burst(n) * share)),
      },
      inputTokens: share < 1 ? null : requests.map((n) => n * 410),
      outputTokens: share < 1 ? null : requests.map((n) => n * 122),
      latency: steps.map((n) => spread(1.6 * (1 + 1.6 * burst(n)), 1.2, requests[n], next)),
      firstToken: share < 1 ? null : steps.map((n) => spread(0.19 * (1 + 3 * burst(n)), 0.9, requests[n] * 0.8, next)),
    };
  };
  const backends = () => [
    {
      name: hostile('chat-70b'),
      policy: 'leastLoad',
      available: true,
      panic: false,
      inFlight: 61,
      maxInFlight: 128,
      pending: 7,
      maxPending: 64,
      retries: 1,
      maxRetries: 12,
      endpoints: [
        endpoint(11),
        endpoint(12),
        endpoint(13, {
          state: 'ejected',
          ejected: true,
          retryInMs: 18_400,
          inFlight: 0,
          ejections: 3,
          lastError: { time: at(41), cause: hostile('status 503') },
        }),
        endpoint(14, { inFlight: 31 }),
      ],
    },
    {
      name: 'code-32b',
      policy: 'prefixHash',
      available: true,
      panic: false,
      inFlight: 22,
      pending: 0,
      retries: 0,
      maxRetries: 4,
      endpoints: [
        endpoint(21, { weight: 2 }),
        endpoint(22, { lastError: { time: at(5200), cause: 'connect_failure' } }),
      ],
    },
  ];
  data['/api/backends'] = () => ({
    backends: backends().map((backend) => ({
      ...backend,
      endpoints: backend.endpoints.map((one) =>
        drained.has(one.endpoint) ? { ...one, drained: true, state: 'drained' } : one,
      ),
    })),
  });
  const rollout = () => ({
    name: names.chat,
    candidate: 'chat-70b-v2',
    stable: ['chat-70b'],
    strategy: 'canary',
    identity: 'a1',
    run: 1,
    epoch: 3,
    state: state.rollout,
    step: 1,
    steps: 4,
    weight: state.rollout === 'aborted' ? 0 : 25,
    reason: 'Holds at 25% until 500 requests of the candidate and 30 min: 18 min to go.',
    startedAt: Date.now() / 1000 - 5400,
    stepAt: Date.now() / 1000 - 720,
    updatedAt: Date.now() / 1000 - 4,
    endedAt: state.rollout === 'aborted' ? Date.now() / 1000 : null,
    candidateRequests: 1834,
    stableRequests: 5502,
    falseAlarm: 0.01,
    verdict: 'inconclusive',
    pausedBy: state.rollout === 'paused' ? 'person' : null,
    passedAt: null,
    decided: false,
  });
  const judged = (part, n = (all) => Math.round(all * part)) => ({
    verdict: 'inconclusive',
    step: 1,
    falseAlarm: 0.01,
    level: 0.0025,
    sentence: 'Inconclusive: firstTokenP95 undecided, no metric worse.',
    metrics: [
      evidence(
        'errorRate',
        '+0.02',
        'fine',
        [n(5502), 0.0071],
        [n(1834), 0.0076],
        0.0005,
        -0.02 + 0.012 * part,
        0.03 - 0.019 * part,
        null,
        1,
      ),
      evidence(
        'latencyP95',
        '1.3x',
        'fine',
        [n(5480), 3.92],
        [n(1821), 4.04],
        1.03,
        0.7 + 0.21 * part,
        1.5 - 0.34 * part,
        null,
        1,
      ),
      evidence(
        'firstTokenP95',
        '1.3x',
        'undecided',
        [n(5480), 0.41],
        [n(1821), 0.47],
        1.15,
        0.6 + 0.36 * part,
        1.9 - 0.52 * part,
        910,
        0.66,
      ),
      evidence(
        'outputTokens',
        '0.8x',
        'fine',
        [n(5480), 122],
        [n(1821), 119],
        0.975,
        0.8 + 0.12 * part,
        1.2 - 0.17 * part,
        null,
        1,
      ),
    ],
  });
  data['/api/rollouts'] = () => ({
    rollouts: [
      rollout(),
      {
        ...rollout(),
        name: names.code,
        candidate: 'code-32b-fp8',
        stable: ['code-32b'],
        state: 'promoted',
        step: 3,
        weight: 100,
        endedAt: began,
        reason: 'All steps have passed.',
      },
    ],
  });
  data[`/api/rollouts/${encodeURIComponent(names.chat)}`] = () => ({
    ...rollout(),
    judgement: judged(1),
    history: [
      {
        at: Date.now() / 1000 - 5400,
        event: 'begun',
        state: 'running',
        step: 0,
        weight: 5,
        by: 'gateway',
        reason: 'The first step begins at 5%.',
      },
      ...[0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9].map((part, n) => ({
        at: Date.now() / 1000 - 5000 + n * 600,
        event: n === 6 ? 'stepUp' : 'resumed',
        state: 'running',
        step: n === 6 ? 1 : 0,
        weight: n === 6 ? 25 : 5,
        by: n === 6 ? 'gateway' : hostile('loopback 127.0.0.1'),
        reason:
          n === 6
            ? '5% has held for 10 min and 500 requests, and no metric is worse.'
            : hostile('Went on after a look at the traces.'),
        judgement: judged(part),
      })),
      ...state.history,
    ],
  });
  data[`/api/rollouts/${encodeURIComponent(names.code)}`] = () => ({
    ...rollout(),
    name: names.code,
    candidate: 'code-32b-fp8',
    stable: ['code-32b'],
    state: 'promoted',
    step: 3,
    weight: 100,
    endedAt: began,
    reason: 'All steps have passed.',
    judgement: null,
    history: [],
  });
  const course = (base, up, seed) => {
    const next = random(seed);
    return Array.from({ length: 48 }, (_, n) => [
      Math.round(Date.now() / 1000 - (48 - n) * 1800),
      Math.max(0, base + (up * Math.max(0, n - 30)) / 18 + 0.02 * (next() - 0.5)),
    ]);
  };
  const feature = (name, side, distance, up, limit, recipe, bars) => ({
    feature: name,
    side,
    recipe,
    distance,
    limit,
    judged: true,
    drifted: distance > limit,
    psi: 0.1,
    jensenShannon: 0.1,
    kolmogorovSmirnov: distance,
    wasserstein: 0.2,
    before: { count: 40_211, mean: 410 },
    recent: { count: 3120, mean: 460 },
    bars,
    course: course(distance - up, up, name.length),
  });
  const bars = ['0 to 120', '120 to 240', '240 to 480', '480 to 960', '960 and more'].map((name, n) => ({
    name,
    before: [0.3, 0.28, 0.22, 0.14, 0.06][n],
    recent: [0.2, 0.2, 0.24, 0.22, 0.14][n],
  }));
  data['/api/quality'] = () => ({
    routes: [
      {
        route: names.chat,
        at: Date.now() / 1000 - 14,
        sample: 0.1,
        reference: 'window',
        windowSeconds: 604_800,
        recentSeconds: 21_600,
        leastRows: 300,
        bytes: 91_000,
        counts: {
          sampled: 43_331,
          dropped: 4,
          unreadable: 11,
          kept: 0,
          embedded: 0,
          notEmbedded: 0,
          embeddingSeconds: 0,
        },
        targets: [
          {
            target: 'chat-70b',
            rows: 3120,
            since: Date.now() / 1000 - 30_000,
            referenceRows: 40_211,
            signals: { repeated: 12, rephrased: 31, gave_up: 4 },
            features: [
              feature('promptLength', 'inputs', 0.27, 0.2, 0.2, 'kolmogorovSmirnov', bars),
              feature('language', 'inputs', 0.06, 0.01, 0.2, 'jensenShannon', [
                { name: 'en', before: 0.71, recent: 0.66 },
                { name: 'de', before: 0.18, recent: 0.21 },
                { name: hostile('fr'), before: 0.11, recent: 0.13 },
              ]),
              feature('answerLength', 'outputs', 0.11, 0.03, 0.2, 'kolmogorovSmirnov', bars),
              feature('refusal', 'outputs', 0.03, 0, 0.2, 'jensenShannon', [
                { name: 'no', before: 0.98, recent: 0.97 },
                { name: 'yes', before: 0.02, recent: 0.03 },
              ]),
              feature('finishReason', 'outputs', 0.05, 0.01, 0.2, 'jensenShannon', [
                { name: 'stop', before: 0.93, recent: 0.91 },
                { name: 'length', before: 0.07, recent: 0.09 },
              ]),
            ],
          },
        ],
        probes: [
          {
            target: 'chat-70b',
            next: Date.now() / 1000 + 1440,
            results: { passed: 96 },
            changes: {},
            tokens: 81_200,
            providers: [{ asked: '', models: [{ value: 'llama-3.3-70b', first: 1, last: 2 }], fingerprints: [] }],
            probes: [
              {
                probe: 'capital',
                judgedBy: 'exact',
                passing: true,
                reason: null,
                similarity: null,
                mean: null,
                limit: null,
                seconds: 0.8,
                at: Date.now() / 1000 - 360,
                course: [],
              },
              {
                probe: hostile('summary'),
                judgedBy: 'similarity',
                passing: false,
                reason: hostile('similarity 0.71 is below 0.8'),
                similarity: 0.71,
                mean: 0.78,
                limit: 0.8,
                seconds: 2.1,
                at: Date.now() / 1000 - 360,
                course: course(0.9, -0.19, 3),
              },
            ],
          },
        ],
      },
    ],
  });
  data['/api/feedback'] = () => ({
    feedback: {
      memory: { requests: 81_200, capacity: 100_000, evicted: 0 },
      labels: {},
      routes: [
        {
          route: names.chat,
          targets: [
            {
              target: 'chat-70b',
              labelled: 1204,
              scores: { count: 1204, mean: 0.82, recentCount: 210, recentMean: 0.79 },
              labels: { helpful: 902, [hostile('wrong language')]: 61, 'too long': 40 },
              answers: { accuracy: 0.91 },
            },
          ],
        },
      ],
    },
  });
  const limit = (rule, window, most, used, more) => ({
    rule,
    whose: 'consumer',
    window,
    limit: most,
    burst: window ? most : null,
    used,
    shared: false,
    ...more,
  });
  const budget = (unit, window, most, spent, more) => ({
    unit,
    whose: 'consumer',
    window,
    limit: most,
    spent,
    shared: false,
    ...more,
  });
  data['/api/consumers'] = () => ({
    consumers: [
      {
        name: hostile('acme-prod'),
        tenant: 'acme',
        priority: 10,
        limits: [
          limit('requests', 'min', 2000, 1092),
          limit('tokens', 'min', 400_000, 391_000),
          limit('concurrency', null, 64, 41),
        ],
        budgets: [budget('usd', 'month', 5000, 3120.5)],
      },
      {
        name: 'acme-batch',
        tenant: 'acme',
        priority: 0,
        limits: [limit('requests', 'min', 600, 250)],
        budgets: [budget('tokens', 'day', 20_000_000, 17_100_000), budget('usd', 'month', null, 402.12)],
      },
      { name: 'research', tenant: 'lab', priority: 0, limits: [], budgets: [] },
    ],
    more: 0,
    tenants: [
      {
        name: 'acme',
        limits: [limit('requests', 'min', 2400, 1342, { whose: 'tenant' })],
        budgets: [budget('usd', 'month', 8000, 3522.62, { whose: 'tenant', shared: true })],
      },
    ],
  });
  const keys = [
    {
      id: 'key-0a1',
      consumer: hostile('acme-prod'),
      state: 'active',
      createdAt: at(86_400 * 12),
      createdBy: hostile('token 10.0.0.9'),
      expires: at(-86_400 * 200),
      lastUsed: at(4),
      rotatedAt: at(3000),
      previousUntil: at(-600),
      limits: { requests: '100/min', concurrency: 8, budget: { tokens: 2e6, usd: 25, per: 'month' } },
    },
    {
      id: 'key-0a2',
      consumer: 'research',
      state: 'active',
      createdAt: at(86_400 * 40),
      createdBy: 'loopback 127.0.0.1',
    },
    {
      id: 'key-0a3',
      consumer: 'gone',
      state: 'inactive',
      createdAt: at(86_400 * 90),
      createdBy: 'token 10.0.0.9',
      lastUsed: at(90_000),
    },
    {
      id: 'key-0a4',
      consumer: 'research',
      state: 'expired',
      createdAt: at(86_400 * 300),
      createdBy: 'token 10.0.0.9',
      expires: at(86_400),
    },
    { id: 'key-0a5', state: 'unreadable' },
  ];
  data['/api/keys'] = () => ({ keys, maxKeys: 10_000, storeAnswers: true });
  data['POST keys'] = (path, body) => {
    const [id, command] = path.split('/').slice(3).map(decodeURIComponent);
    const found = keys.find((one) => one.id === id);
    if (command === 'expire') return Object.assign(found, body?.at ? { expires: body.at } : { state: 'expired' });
    if (command === 'rotate') return { key: 'sk-spillway-second', ...found };
    if (body.consumer === 'nobody')
      return { problem: { status: 400, detail: 'there is no such consumer in the configuration' } };
    const { consumer, expires, limits } = body;
    const made = { id: 'key-new', consumer, state: 'active', createdAt: at(0), expires, limits };
    keys.push(made);
    return { key: 'sk-spillway-first', ...made };
  };
  data['DELETE keys'] = (path) => {
    const id = decodeURIComponent(path.split('/').at(-1));
    const place = keys.findIndex((one) => one.id === id);
    keys.splice(place, 1);
    return { id, revoked: true };
  };
  const cost = (consumer, tenant, route, model, answers, usd) => ({
    consumer,
    tenant,
    route,
    model,
    answers,
    inputTokens: answers * 410,
    cachedTokens: answers * 120,
    outputTokens: answers * 122,
    usd,
  });
  data['/api/costs'] = () => {
    const { model, usd, ...unpriced } = cost('research', 'lab', names.code, '', 41, 0);
    return {
      since: at(273_600),
      costs: [
        cost('', '', names.search, 'embed-*', 910, 0.0182),
        cost(hostile('acme-prod'), 'acme', names.chat, 'gpt-*', 81_200, 1412.25),
        cost(hostile('acme-prod'), 'acme', names.code, hostile('claude-*'), 9_100, 612.5),
        cost('acme-batch', 'acme', names.chat, 'gpt-*', 20_000, 402.12),
      ],
      unpriced: [unpriced],
    };
  };
  data['/api/models'] = () => ({
    models: [
      {
        name: hostile('smollm2'),
        device: 'CPU, 16 threads',
        loaded: true,
        ready: true,
        measuredTokensPerSecond: 260,
        generatedTokens: 412_000,
        promptTokens: 1.9e6,
        cachedTokens: 0.8e6,
        noRoom: 0,
        waitSeconds: 0.8,
        kvIdle: 2100,
        tokensPerSecond: 212 + 30 * Math.sin(Date.now() / 3000),
        running: 3,
        waiting: 1,
        kvUsed: 6144,
        kvTotal: 16_384,
        memoryBytes: 311e6,
      },
      {
        name: 'gemma-3-270m',
        device: 'NVIDIA H200',
        loaded: true,
        ready: true,
        measuredTokensPerSecond: 2100,
        generatedTokens: 9.1e6,
        promptTokens: 31e6,
        cachedTokens: 12e6,
        noRoom: 3,
        tokensPerSecond: 1843,
        running: 8,
        waiting: 0,
        kvUsed: 21_000,
        kvTotal: 65_536,
        memoryBytes: 1.1e9,
      },
      {
        name: 'minilm',
        device: 'CPU, 16 threads',
        loaded: false,
        ready: false,
        tokensPerSecond: 0,
        running: 0,
        waiting: 0,
        memoryBytes: 92e6,
      },
    ],
    memory: { used: 1.5e9, limit: 4e9 },
  });
  data['/api/config'] = () => ({
    generation: 14,
    running: {
      listeners: [{ name: 'public', address: '0.0.0.0:8080' }],
      admin: { address: '127.0.0.1:9901' },
      backends: backends().map((one) => ({
        name: one.name,
        protocol: 'openai',
        endpoints: one.endpoints.map((each) => ({ url: each.url })),
      })),
      routes: Object.values(names).map((name) => ({
        name,
        matches: [{ path: { prefix: '/v1' } }],
        backendRefs: [{ name: 'chat-70b', weight: 1 }],
      })),
    },
    lastEdit: {
      result: 'failed',
      at: Date.now() / 1000 - 61,
      file: '/etc/spillway/spillway.yaml',
      errors: [],
      diagnostics: [
        {
          severity: 'error',
          file: '/etc/spillway/spillway.yaml',
          line: 23,
          column: 17,
          path: 'backends[0].protocol',
          message: hostile('unknown value `opneai` for `protocol`; expected `http` or `openai`'),
          help: 'did you mean `openai`?',
        },
      ],
    },
  });
  data['/api/config/history'] = () => ({
    edits: [
      {
        generation: null,
        at: began + 270_000,
        result: 'failed',
        diagnostics: [
          {
            severity: 'error',
            file: 'spillway.yaml',
            line: 23,
            column: 17,
            path: 'backends[0].protocol',
            message: 'unknown value `opneai`',
          },
        ],
        errors: [],
        diff: null,
      },
      {
        generation: 14,
        at: began + 262_000,
        result: 'ok',
        diagnostics: [],
        errors: [],
        diffCut: false,
        diff: `-backends[chat-70b].endpoints[1].url: "http://10.0.4.10:8000"\n+backends[chat-70b].endpoints[1].url: "${hostile('http://10.0.4.12:8000')}"\n+backends[chat-70b].endpoints[3].url: "http://10.0.4.14:8000"\n`,
      },
    ],
  });
  data['POST drain'] = (path, body) => {
    const parts = path.split('/').map(decodeURIComponent);
    const is = parts.at(-1) === 'drain';
    drained[is ? 'add' : 'delete'](parts.at(-2));
    return { endpoints: [{ endpoint: parts.at(-2), drained: is, changed: true }], body };
  };
  data['POST rollout'] = (path, body) => {
    const command = path.split('/').at(-1);
    state.rollout = { abort: 'aborted', pause: 'paused', resume: 'running', promote: 'promoted', start: 'running' }[
      command
    ];
    state.history.push({
      at: Date.now() / 1000,
      event: state.rollout,
      state: state.rollout,
      step: 1,
      weight: 0,
      by: 'loopback 127.0.0.1',
      reason: body?.reason ?? 'by command',
    });
    return rollout();
  };
  let n = 0;
  data.request = () => {
    n += 1;
    const fine = n % 7 !== 0;
    return {
      timestamp: new Date().toISOString(),
      requestId: `r-${n}`,
      traceId: `4bf92f3577b34da6a3ce929d0e0e${String(n).padStart(4, '0')}`,
      client: '203.0.113.9',
      consumer: n % 3 ? 'acme-prod' : 'research',
      route: n % 2 ? names.chat : names.code,
      method: 'POST',
      path: hostile('/v1/chat/completions'),
      protocol: 'HTTP/2',
      status: fine ? 200 : 503,
      durationMs: 1420 + (n % 9) * 130,
      servedBy: n % 5 ? 'chat-70b' : 'builtin/smollm2',
      spilled: n % 5 ? undefined : 'full',
      ttftMs: fine ? 190 + (n % 5) * 21 : undefined,
      promptTokens: fine ? 412 : undefined,
      completionTokens: fine ? 120 : undefined,
      errorCode: fine ? undefined : hostile('no_room'),
    };
  };
  return data;
}

/** Answers of a gateway that has nothing yet. */
export function empty() {
  const zeros = (length) => Array.from({ length }, () => 0);
  return {
    '/api/overview': () => ({
      now: Date.now() / 1000,
      version: '0.9.0',
      uptimeSeconds: 4,
      state: 'ready',
      generation: 1,
      inFlight: 0,
      connections: 1,
      requestsPerSecond: 0,
      errorsPerSecond: 0,
      spillsPerSecond: 0,
      tokensPerSecond: 0,
      listeners: [],
      routes: [],
      tracesUrl: null,
      playground: false,
    }),
    '/api/history': () => ({
      stepSeconds: 5,
      start: Date.now() / 1000 - 600,
      latencyBounds: BOUNDS,
      requests: zeros(120),
      errors: zeros(120),
      spills: {},
      refused: {},
      inputTokens: zeros(120),
      outputTokens: zeros(120),
      latency: zeros(120).map(() => zeros(14)),
      firstToken: zeros(120).map(() => zeros(14)),
    }),
    '/api/backends': () => ({ backends: [] }),
    '/api/rollouts': () => ({ rollouts: [] }),
    '/api/quality': () => ({ routes: [] }),
    '/api/feedback': () => ({ feedback: null }),
    '/api/consumers': () => ({ consumers: [], more: 0, tenants: [] }),
    '/api/keys': () => ({ keys: [], maxKeys: 10_000, storeAnswers: true }),
    '/api/costs': () => ({ since: new Date().toISOString(), costs: [], unpriced: [] }),
    '/api/models': () => ({ models: [], memory: { used: 0, limit: null } }),
    '/api/config': () => ({
      generation: 1,
      running: {},
      lastEdit: { result: 'ok', at: Date.now() / 1000, file: 'spillway.yaml', diagnostics: [], errors: [] },
    }),
    '/api/config/history': () => ({ edits: [] }),
  };
}

/**
 * Serves the dashboard with scripted answers. `set` replaces them, `fail` makes all of them a problem, `polls` counts requests.
 * @returns {Promise<{address: string, set: (data: any) => void, fail: (status: number | null) => void, close: () => Promise<void>, polls: () => number, tail: (perSecond: number) => void}>}
 */
export async function scripted(first = busy()) {
  let data = first;
  let failing = null;
  let polls = 0;
  let perSecond = 8;
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, 'http://x');
    const send = (status, type, body) => {
      response.writeHead(status, {
        'content-type': type,
        'content-security-policy': POLICY,
        'x-content-type-options': 'nosniff',
        'cache-control': 'no-store',
      });
      response.end(body);
    };
    const json = (body, status = 200) => send(status, 'application/json', JSON.stringify(body));
    try {
      if (url.pathname === '/auth/session') return json(data.proofs ?? { login: false, token: false, person: null });
      if (url.pathname === '/auth/logout' && request.headers['x-spillway-admin'] === '1') {
        data.proofs = { ...data.proofs, person: null };
        return json({ signedOut: true });
      }
      if (data.proofs?.login && data.proofs.person === null && url.pathname.startsWith('/api/'))
        return json({ title: 'Unauthorized', status: 401, detail: 'log in at /auth/login' }, 401);
      if (url.pathname === '/auth/login') {
        data.proofs = { ...data.proofs, person: data.person };
        response.writeHead(303, { location: '/' });
        return response.end();
      }
      if (!url.pathname.startsWith('/api/')) {
        const name = url.pathname === '/' ? 'index.html' : url.pathname.replace('/assets/', '');
        return send(200, TYPES[name.split('.').at(-1)] ?? 'text/plain', await readFile(FILES + name));
      }
      polls += 1;
      if (failing !== null)
        return json(
          {
            title: 'Refused',
            status: failing,
            detail: failing === 503 ? 'the gateway is starting; /readyz says when it serves' : 'scripted failure',
          },
          failing,
        );
      let body = '';
      for await (const chunk of request) body += chunk;
      const parsed = body ? JSON.parse(body) : undefined;
      if (request.method !== 'GET' && request.headers['x-spillway-admin'] !== '1')
        return json({ title: 'Forbidden', detail: 'the header is missing' }, 403);
      if (url.pathname === '/api/requests') {
        response.writeHead(200, { 'content-type': 'text/event-stream', 'content-security-policy': POLICY });
        const tick = () => {
          const one = data.request?.();
          if (one) response.write(`event: request\ndata: ${JSON.stringify(one)}\n\n`);
        };
        for (let n = 0; n < 12; n += 1) tick();
        if (data.missed) response.write(`event: missed\ndata: {"missed": ${data.missed}}\n\n`);
        const timer = setInterval(tick, 1000 / perSecond);
        response.on('close', () => clearInterval(timer));
        return undefined;
      }
      if (url.pathname.startsWith('/api/playground/')) {
        response.writeHead(200, {
          'content-type': 'text/event-stream',
          'x-spillway-served-by': 'builtin/smollm2',
          'x-request-id': 'req-1',
        });
        for (const word of `The capital of France is Paris. <img src=x onerror="document.title='hit'"> That is plain text.`.split(
          ' ',
        )) {
          response.write(
            `data: ${JSON.stringify({ model: 'smollm2', choices: [{ delta: { content: `${word} ` } }] })}\n\n`,
          );
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        response.end('data: {"choices":[],"usage":{"completion_tokens":14}}\n\ndata: [DONE]\n\n');
        return undefined;
      }
      if (url.pathname.startsWith('/api/keys') && request.method !== 'GET') {
        const done = data[`${request.method} keys`](url.pathname, parsed);
        return done.problem ? json(done.problem, done.problem.status) : json(done);
      }
      if (url.searchParams.get('format') === 'csv') return send(200, 'text/csv', 'consumer,usd\r\n');
      if (request.method === 'POST')
        return json(
          url.pathname.includes('/endpoints/')
            ? data['POST drain'](url.pathname, parsed)
            : data['POST rollout'](url.pathname, parsed),
        );
      const answer = data[url.pathname];
      const said = answer?.(url.searchParams);
      if (said?.problem) return json(said.problem, said.problem.status);
      return answer
        ? json(said)
        : json({ title: 'Not Found', status: 404, detail: 'unknown page' }, 404);
    } catch (error) {
      return json({ title: 'Error', detail: String(error) }, 500);
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    address: `http://127.0.0.1:${server.address().port}/`,
    set: (next) => (data = next),
    fail: (status) => (failing = status),
    polls: () => polls,
    tail: (n) => (perSecond = n),
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(resolve);
      }),
  };
}

//! `admin-api.md` and its OpenAPI document: every path of the admin address. The rows are written here; the routes of the
//! sources have one each, and a test asks each of a running gateway.

use std::fmt::Write;

use serde_json::{Value, json};

use super::source::{calls, files, json_fields, literal, module};
use super::{GENERATED, cell, compare};

/// A method of a path.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub method: &'static str,
    /// Path as OpenAPI writes it, such as `/api/backends/{backend}`.
    pub path: &'static str,
    pub text: &'static str,
    /// True if `admin.token`, or a loopback `Host`, is needed.
    pub guarded: bool,
    /// Statuses with what each means; the first is that of success.
    pub answers: &'static [(u16, &'static str)],
    /// Content type of success.
    pub content_type: &'static str,
}

const DRAINED: &[(u16, &str)] = &[
    (200, "The endpoints of that name, each with whether the request changed it."),
    (403, "The header `x-spillway-admin: 1` is missing."),
    (404, "There is no such backend or endpoint."),
];

const COMMANDED: &[(u16, &str)] = &[
    (200, "The rollout after the command."),
    (400, "The body is not as expected."),
    (403, "The header `x-spillway-admin: 1` is missing."),
    (404, "There is no such rollout or command."),
    (409, "The state of the rollout does not allow the command."),
    (413, "The body is longer than 4096 bytes."),
    (503, "The store of rollouts does not answer, or the gateway is starting."),
];

const NO_KEYS: &str = "`authentication.keysByApi` is not configured.";

const NO_LOGIN: &str = "`admin.oidc` is not configured.";

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "GET",
        path: "/auth/login",
        text: "Sends a browser to the issuer of [`admin.oidc`](../how-to/admin-login.md) to log in.",
        guarded: false,
        answers: &[(303, "To the issuer."), (404, NO_LOGIN), (502, "The issuer does not answer.")],
        content_type: "",
    },
    Operation {
        method: "GET",
        path: "/auth/callback",
        text: "Takes a browser back from the issuer, with `code` and `state`, and begins a session.",
        guarded: false,
        answers: &[
            (303, "To the page, with the cookie of the session."),
            (400, "The answer is of no login of this browser, or its time is over."),
            (403, "The issuer, its token or `admin.oidc.allow` refuses the person."),
            (404, NO_LOGIN),
            (502, "The issuer does not answer."),
            (503, "As many logins are being concluded as may."),
        ],
        content_type: "",
    },
    Operation {
        method: "POST",
        path: "/auth/logout",
        text: "Ends the session whose cookie the request has.",
        guarded: false,
        answers: &[
            (200, "The session is over."),
            (403, "The header `x-spillway-admin: 1` or the right `Origin` is missing."),
            (404, NO_LOGIN),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/auth/session",
        text: "Tells whether the gateway takes a `login` and a `token`, and the `person` of the session, or `null`.",
        guarded: false,
        answers: &[(200, "`login`, `token` and `person`.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/",
        text: "The paths, for a terminal; for a browser, whose `Accept` names `text/html`, the [dashboard](../how-to/dashboard.md), which comes without the token.",
        guarded: true,
        answers: &[(200, "Text, or the page."), (304, "The browser has the page.")],
        content_type: "text/plain; charset=utf-8",
    },
    Operation {
        method: "GET",
        path: "/assets/{name}",
        text: "A file of the dashboard, which comes without the token.",
        guarded: true,
        answers: &[(200, "The file."), (304, "The browser has the file."), (404, "There is no such file.")],
        content_type: "text/javascript; charset=utf-8",
    },
    Operation {
        method: "GET",
        path: "/healthz",
        text: "Reports that the process lives: for a liveness probe.",
        guarded: false,
        answers: &[(200, "`ok`")],
        content_type: "text/plain; charset=utf-8",
    },
    Operation {
        method: "GET",
        path: "/readyz",
        text: "Reports whether listeners and models are ready: for a readiness probe.",
        guarded: false,
        answers: &[(200, "`ready`"), (503, "`starting` or `draining`")],
        content_type: "text/plain; charset=utf-8",
    },
    Operation {
        method: "GET",
        path: "/metrics",
        text: "The metrics, as OpenMetrics text.",
        guarded: true,
        answers: &[(200, "The text.")],
        content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
    },
    Operation {
        method: "GET",
        path: "/api/config",
        text: "The running configuration without its secrets, and the result of the last edit.",
        guarded: true,
        answers: &[(
            200,
            "`generation` (a number that each edit raises), `running` (the configuration) and `lastEdit`.",
        )],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/config/history",
        text: "The last ten edits of the configuration, newest first, each with what it changed.",
        guarded: true,
        answers: &[(200, "`edits`, a list.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/overview",
        text: "The process as a whole: traffic of the last five seconds, listeners, and the 200 routes with the most of it.",
        guarded: true,
        answers: &[(200, "The report.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/history",
        text: "Traffic of `?window=`: `10m` (the default), `3h` or `24h`; of `&route=NAME` or of all. The 32 most used routes have a history of their own, the others share that of `_other`.",
        guarded: true,
        answers: &[
            (200, "The history."),
            (400, "The window is another one."),
            (404, "No request of the route was counted, or `_other` has it."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/models",
        text: "Every built-in model as it is now, and the memory of all of them.",
        guarded: true,
        answers: &[(200, "`models`, a list, and `memory`: `used` and `limit` in bytes.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/consumers",
        text: "The consumers of the file with what they have used of limits and budgets, in the order of their names: 200 of them, those of the tenant `?tenant=` or all, behind the name `?after=`.",
        guarded: true,
        answers: &[
            (200, "`consumers`, `more` (the number of those behind them) and `tenants`."),
            (503, "The gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/requests",
        text: "Requests as they end, as an event stream: each `request` has the line of the [access log](logs.md#access-log), at most twenty a second; `missed` has the number of others. `?route=`, `?consumer=` and `?status=` (`503`, `5xx`) choose. A stream ends after ten minutes.",
        guarded: true,
        answers: &[
            (200, "The stream."),
            (400, "`status` is none."),
            (503, "Eight streams are read already, or the gateway is starting."),
        ],
        content_type: "text/event-stream",
    },
    Operation {
        method: "GET",
        path: "/api/requests/recent",
        text: "Heads of the last 512 requests that the running configuration routed, newest first, at most sixteen of each second: what [`spillway diff`](../how-to/check.md#what-an-edit-would-change) tries an edit with. Without queries, bodies and credentials; of the headers only those that a match asks for, each with whether the request met it.",
        guarded: true,
        answers: &[
            (200, "`heads`, a list, and `most` and `perSecond`, its bounds."),
            (503, "The gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/playground/{route}",
        text: "Sends the body, a chat, to a route as a request of the caller whose key is in `x-spillway-playground-key`, and passes the answer on, whose header `x-spillway-playground` tells it from those below. `?host=` and `?path=` replace those of the route's first plain match. The body has a megabyte at most, the answer ends within five minutes.",
        guarded: true,
        answers: &[
            (200, "The answer of the route, which may have any other status, too."),
            (400, "The body is no object of JSON, or host or path cannot be sent."),
            (403, "`admin.playground` does not allow it, or the header `x-spillway-admin: 1` is missing."),
            (404, "There is no such route."),
            (409, "Another route would take the request."),
            (413, "The body is too long."),
            (502, "The route gave no answer."),
            (503, "Four chats run already, or the gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/backends",
        text: "Every backend and its endpoints as they are now.",
        guarded: true,
        answers: &[(200, "`backends`, a list.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/costs",
        text: "What consumers have used and what that costs, since the process began, by consumer, tenant, route and price ([costs](../how-to/costs.md)). CSV for `?format=csv`, and for `Accept: text/csv`.",
        guarded: true,
        answers: &[
            (200, "`since`, `costs`, a list, and `unpriced`, the answers of servers without a price."),
            (400, "The format is unknown."),
            (503, "The gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/keys",
        text: "Every API key that was made at run time, without the key ([API keys](../how-to/api-keys.md#make-keys-at-run-time)).",
        guarded: true,
        answers: &[
            (200, "`keys`, a list, `maxKeys`, and `storeAnswers`: false while the list is that of the last reading."),
            (409, NO_KEYS),
            (503, "The gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/keys",
        text: "Makes an API key: `consumer`, and where wanted `expires` (RFC 3339) and `limits`, as a consumer has them. The answer alone has the key.",
        guarded: true,
        answers: &[
            (201, "`key`, and what is known of it."),
            (400, "The body is not as expected, or there is no such consumer."),
            (403, "The header `x-spillway-admin: 1` is missing."),
            (409, "There are `maxKeys` keys, or `authentication.keysByApi` is not configured."),
            (413, "The body is longer than 4096 bytes."),
            (503, "The store of keys does not answer, or the gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/keys/{id}",
        text: "One API key that was made at run time, without the key.",
        guarded: true,
        answers: &[(200, "The key's record."), (404, "There is no such key."), (409, NO_KEYS)],
        content_type: "application/json",
    },
    Operation {
        method: "DELETE",
        path: "/api/keys/{id}",
        text: "Revokes an API key: it is refused at once here, and within a second by every gateway that shares the store.",
        guarded: true,
        answers: &[
            (200, "`id`, and `revoked`."),
            (403, "The header `x-spillway-admin: 1` is missing."),
            (404, "There is no such key."),
            (409, NO_KEYS),
            (503, "The store of keys does not answer; the key is as it was, unless the list says otherwise."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/keys/{id}/{command}",
        text: "`rotate` gives a key another secret, which the answer alone has; the body may have `grace`, the time for which the secret before is accepted too. `expire` ends a key, now or at `at` (RFC 3339); it stays in the list.",
        guarded: true,
        answers: &[
            (200, "What is known of the key; of `rotate` with `key`."),
            (400, "The body is not as expected."),
            (403, "The header `x-spillway-admin: 1` is missing."),
            (404, "There is no such key or command."),
            (409, "The key has expired, or `authentication.keysByApi` is not configured."),
            (413, "The body is longer than 4096 bytes."),
            (503, "The store of keys does not answer, or the gateway is starting."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/feedback",
        text: "Labels of answers by route and target, and the memory of requests that may be labelled ([feedback](../how-to/feedback.md)).",
        guarded: true,
        answers: &[(
            200,
            "`feedback`: `memory`, `labels` (by result) and `routes`, each with its `targets`; `null` where the file takes no labels.",
        )],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/caches/{route}/purge",
        text: "Forgets the answers that the [caches](../how-to/cache.md#forget-answers) of a route keep, and those on their way; with `?dryRun=true` only counts those that are kept.",
        guarded: true,
        answers: &[
            (200, "`route`, `dryRun`, `answers` (their number) and `bytes` (their memory)."),
            (400, "The query has something else than `dryRun=true` or `dryRun=false`."),
            (403, "The header `x-spillway-admin: 1` is missing."),
            (404, "There is no such route, or it has no filter `cache`."),
            (503, "The store of `state.cache.redis` did not confirm it: some answers may still be given. Ask again."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/quality",
        text: "What callers ask and targets answer, beside the reference, and the answers to probes, for each route with `quality`.",
        guarded: true,
        answers: &[(200, "`routes`, a list.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/quality/examples",
        text: "Newest hundred texts of requests and answers that were kept, of the route `?route=` or of all ([examples](../how-to/examples.md)).",
        guarded: true,
        answers: &[
            (200, "`examples`, a list."),
            (403, "`admin.token` is not configured: texts of callers are shown only with a token."),
            (503, "The file cannot be read, or the texts were not there in time."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "DELETE",
        path: "/api/quality/examples",
        text: "Deletes the texts that were kept, of the route `?route=` or of all.",
        guarded: true,
        answers: &[
            (200, "`deleted`, their number."),
            (403, "`admin.token` is not configured, or the header `x-spillway-admin: 1` is missing."),
            (503, "The file cannot be written, or the texts were not deleted in time."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/quality/{route}/reference",
        text: "Sketches of a route, for the file of `quality.reference`.",
        guarded: true,
        answers: &[
            (200, "The content of the file."),
            (404, "There is no route of that name with `quality`."),
            (503, "The sketches were not there in time."),
        ],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/backends/{backend}/endpoints/{endpoint}/drain",
        text: "Drains an endpoint: it gets no new requests, running ones finish. It stays drained over reloads.",
        guarded: true,
        answers: DRAINED,
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/backends/{backend}/endpoints/{endpoint}/undrain",
        text: "Returns a drained endpoint to service.",
        guarded: true,
        answers: DRAINED,
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/rollouts",
        text: "Every rollout, without its evidence and history.",
        guarded: true,
        answers: &[(200, "`rollouts`, a list.")],
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/rollouts/{name}",
        text: "One rollout with its evidence and history: flat, fit for the `web` metric of Argo Rollouts.",
        guarded: true,
        answers: &[(200, "The rollout."), (404, "There is no such rollout.")],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/rollouts/{name}/{command}",
        text: "Gives a command: `start`, `pause`, `resume`, `promote` or `abort`. The body may have a `reason` of at most 500 characters.",
        guarded: true,
        answers: COMMANDED,
        content_type: "application/json",
    },
    Operation {
        method: "GET",
        path: "/api/upgrade",
        text: "The process that serves, the one that is to follow it, and the last hand-over that failed ([upgrade](../how-to/upgrade.md)).",
        guarded: true,
        answers: &[(200, "The process and its hand-overs.")],
        content_type: "application/json",
    },
    Operation {
        method: "POST",
        path: "/api/upgrade",
        text: "Begins a hand-over to a new process. It is under way when the answer comes; `GET` shows how it goes.",
        guarded: true,
        answers: &[
            (202, "The new process is started; `successor` is its number."),
            (403, "The header `x-spillway-admin: 1` is missing."),
            (409, "A hand-over is under way, or this is process 1 of its container."),
            (500, "The program cannot be started."),
            (503, "The gateway starts, or ends."),
        ],
        content_type: "application/json",
    },
];

const ROLLOUT: &[(&str, &str)] = &[
    ("name", "Name, which is that of its route."),
    ("candidate", "Name of the candidate."),
    ("stable", "Names of the other targets, which are the stable version."),
    ("strategy", "`canary`, `blueGreen` or `shadow`."),
    ("identity", "Hash of `rollout`, of the candidate and of the names of the others."),
    ("run", "Number of the run of this identity, from 1; `start` begins another."),
    ("epoch", "Number of the present weight; grows with each change of it."),
    ("state", "`waiting`, `running`, `paused`, `inconclusive`, `promoted` or `aborted`."),
    ("step", "Present step, from 0."),
    ("steps", "Number of steps."),
    ("weight", "Candidate's share of the requests, in percent."),
    ("reason", "Reason for the state, in a sentence."),
    ("startedAt", "Time of the first step, in Unix seconds; `null` before."),
    ("stepAt", "Time at which the present step began, in Unix seconds."),
    ("updatedAt", "Time of the last change, in Unix seconds."),
    ("endedAt", "Time of the end, in Unix seconds; `null` before."),
    ("candidateRequests", "Requests concluded at the candidate since its share last grew; the pairs of a shadow."),
    ("stableRequests", "Requests concluded at the stable version since then."),
    ("falseAlarm", "Highest probability that a candidate within all thresholds is aborted."),
    ("verdict", "Verdict of the last look: `promote`, `abort` or `inconclusive`."),
    ("pausedBy", "`step` or `person`, while it is paused."),
    ("passedAt", "Time at which the step was passed, while something else delays the next one."),
    ("decided", "True if it never begins by itself again."),
    (
        "judgement",
        "Evidence of the last look: `metrics`, each with `finding`, `effect`, `lower`, `upper`, `more` and `sentence`.",
    ),
    ("history", "The last 256 transitions, oldest first, each with its time, reason, author and evidence."),
];

const LAST_EDIT: &[(&str, &str)] = &[
    ("result", "`ok` or `failed`."),
    ("at", "Unix time in seconds."),
    ("file", "The configuration file."),
    ("diagnostics", "Mistakes and warnings, each with its path and line."),
    ("errors", "Errors of compiling the configuration, where the file itself is valid."),
];

const OVERVIEW: &[(&str, &str)] = &[
    ("now", "Unix time in seconds."),
    ("version", "Version of the program."),
    ("uptimeSeconds", "Time since the process began, in seconds."),
    ("state", "`ready`, `starting` or `draining`."),
    ("generation", "Number of the running configuration; `null` while the gateway is starting."),
    ("inFlight", "Requests in flight."),
    ("connections", "Open connections of clients."),
    ("requestsPerSecond", "Requests that ended, by the second."),
    ("errorsPerSecond", "Those with a status from 500 on, or without an answer."),
    ("spillsPerSecond", "Those that a fallback answered."),
    ("tokensPerSecond", "Tokens of answers."),
    ("listeners", "Open listeners, each with `name`, `address` and `tls`."),
    (
        "routes",
        "Routes, those with the most requests first, each with `name`, `inFlight`, `requestsPerSecond` and `errorsPerSecond`.",
    ),
    ("moreRoutes", "Number of further routes."),
    ("tracesUrl", "`admin.tracesUrl`."),
    ("playground", "Whether chats are allowed."),
];

const HISTORY: &[(&str, &str)] = &[
    ("stepSeconds", "Length of a step, in seconds."),
    ("start", "Beginning of the first step, in Unix seconds."),
    ("routes", "Routes with a history of their own."),
    ("latencyBounds", "Upper bounds of the buckets of `latency`, in seconds."),
    ("firstTokenBounds", "Upper bounds of the buckets of `firstToken`, in seconds."),
    ("requests", "Requests that ended, by step."),
    ("errors", "Those with a status from 500 on, or without an answer."),
    ("spills", "Requests that a fallback answered, by reason and step."),
    ("refused", "Requests that a filter ended, by its name, and those that no target could answer, by reason."),
    ("latency", "Requests by step and bucket of their duration; the last bucket is for those above all bounds."),
    (
        "inputTokens",
        "Tokens of prompts, by step; `null` for one route, since model calls are counted by backend and model.",
    ),
    ("outputTokens", "Tokens of answers, likewise."),
    ("firstToken", "Model calls by step and bucket of the time to their first content, likewise."),
];

const BUILTIN: &[(&str, &str)] = &[
    ("name", "Name."),
    ("loaded", "Whether it is loaded."),
    ("ready", "Whether it can run now."),
    ("device", "Name of its device; `null` while it is not loaded."),
    ("deviceKind", "Kind of the device."),
    ("tokensPerSecond", "Tokens that it wrote in a second of the last five."),
    ("measuredTokensPerSecond", "Those that one answer got when the model was loaded."),
    ("running", "Answers that are being written."),
    ("waiting", "Requests that wait."),
    ("waitSeconds", "Estimated wait for a first token, in seconds."),
    ("kvUsed", "Tokens in the KV cache."),
    ("kvIdle", "Tokens in it that no answer uses."),
    ("kvTotal", "Tokens that fit it."),
    ("memoryBytes", "Memory on the device."),
    ("generatedTokens", "Tokens written since it was loaded."),
    ("promptTokens", "Tokens read since then."),
    ("cachedTokens", "Prompt tokens that the KV cache already held."),
    ("preemptions", "Answers that lost their part of the KV cache and were read again."),
    ("faults", "Faults of the device."),
    ("evictions", "Number of times that it was unloaded for another model."),
    ("noRoom", "Number of times that it could not be loaded for want of memory."),
];

const LIMIT: &[(&str, &str)] = &[
    ("rule", "`requests`, `tokens` or `concurrency`."),
    ("whose", "`consumer` or `tenant`: those who share it."),
    ("window", "Period of the rate, as written; `null` for `concurrency`."),
    ("limit", "Most in the period, or at the same time."),
    ("burst", "Most at once; `null` for `concurrency`."),
    (
        "used",
        "Part of the burst, or of the requests at the same time, that is used now; `null` where a shared store counts.",
    ),
    ("shared", "Whether a shared store counts for several gateways."),
];

const BUDGET: &[(&str, &str)] = &[
    ("unit", "`tokens` or `usd`."),
    ("whose", "`consumer` or `tenant`."),
    ("window", "`day` or `month`, in UTC."),
    ("limit", "Most in the window; `null` where this unit is counted and not limited."),
    ("spent", "Amount spent in the present window; with a shared store, what went through this gateway."),
    ("shared", "Whether a shared store counts for several gateways."),
];

const BACKEND: &[(&str, &str)] = &[
    ("name", "Name."),
    ("policy", "How an endpoint is picked (`loadBalancing.policy`)."),
    ("available", "Whether an endpoint may receive requests."),
    ("panic", "Whether ejections are ignored, because too few endpoints are left."),
    ("inFlight", "Requests in flight at all endpoints."),
    ("maxInFlight", "Their limit; left out where there is none."),
    ("pending", "Requests that wait for it, in the queues of all routes."),
    ("maxPending", "Their limit; left out where there is none."),
    ("retries", "Retries and hedges on their way."),
    ("maxRetries", "Their limit; left out where there is none."),
    ("endpoints", "Its endpoints."),
];

const ENDPOINT: &[(&str, &str)] = &[
    ("endpoint", "Name in logs and metrics, by which it can be drained."),
    ("url", "URL as configured."),
    ("address", "IP and port, by which it can be drained; left out while its name is not resolved."),
    ("weight", "Share of the requests."),
    ("priority", "Tier."),
    (
        "state",
        "`open`, or the reason why it gets no further request: `drained`, `unhealthy`, `ejected`, `unresolved`, or the signal that says full.",
    ),
    (
        "healthy",
        "`false` while the active check fails, and where the last attempts all failed, as many as `outlierDetection.consecutiveErrors`.",
    ),
    ("ejected", "Whether it is ejected for its errors."),
    ("drained", "Whether an operator drained it."),
    ("retryInMs", "Milliseconds until it is tried again, after an ejection or an answer that meant full."),
    ("inFlight", "Requests in flight."),
    ("connections", "Connections that are open, idle ones too."),
    ("limit", "Requests that may be in flight; left out where there is no limit."),
    ("latencyMs", "Smoothed time to the first token or head, milliseconds."),
    ("waiting", "Requests that wait at the server, as it says."),
    ("kvCache", "Used share of its KV cache, as it says."),
    ("ejections", "Ejections since the process began."),
    (
        "lastError",
        "Last failure of an attempt or a check: `time` (RFC 3339) and `cause`, as in the [log](logs.md) with its details; left out where there was none.",
    ),
    ("attempts", "Attempts since the process began, by how they ended."),
];

/// Every operation.
pub fn operations() -> &'static [Operation] {
    OPERATIONS
}

/// Asserts that the rows are what the sources have.
fn check() {
    let files = files(&["gateway/src"]);
    let mut routes = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with("gateway/src/admin")) {
        // A handle on the series of a route has a method of that name, without arguments.
        for call in calls(&file.code, ".route").into_iter().filter(|call| call.arguments.len() > 1) {
            let method = call.arguments[1].split('(').next().unwrap().to_ascii_uppercase();
            routes.push(format!("{method} {}", literal(&call.arguments[0]).unwrap()));
        }
    }
    let rows: Vec<String> = OPERATIONS.iter().map(|row| format!("{} {}", row.method, row.path)).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    compare("paths of the admin address", &rows, routes.iter().map(String::as_str));
    for (file, nth, rows) in [
        ("edits", 0, LAST_EDIT),
        ("admin/overview", 0, OVERVIEW),
        ("admin/overview", 2, BUILTIN),
        ("admin/history", 0, HISTORY),
        ("limits/shown", 0, LIMIT),
        ("limits/shown", 1, BUDGET),
        ("admin/backends", 0, BACKEND),
        ("admin/backends", 1, ENDPOINT),
        ("rollout/record", 5, ROLLOUT),
    ] {
        let found = json_fields(module(&files, file), nth);
        let rows: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
        compare("fields of the admin address", &rows, found.iter().map(String::as_str));
    }
}

fn table(page: &mut String, title: &str, rows: &[(&str, &str)]) {
    write!(page, "\n{title}\n\n| field | |\n|---|---|\n").unwrap();
    for (name, text) in rows {
        writeln!(page, "| `{name}` | {} |", cell(text)).unwrap();
    }
}

/// Renders the page.
pub(super) fn page() -> String {
    check();
    let mut page = format!(
        "# Admin API

{GENERATED}

The paths of the [admin address](configuration/admin.md); [admin-api.openapi.json](admin-api.openapi.json) is the same for programs. On
loopback, `Host` must be a loopback name or one of `admin.hosts`. Elsewhere, and wherever `admin.token` or `admin.oidc` is written,
everything but `/healthz`, `/readyz`, `/auth` and the files of the dashboard needs `Authorization: Bearer TOKEN`, or the cookie of a
[session](../how-to/admin-login.md). A change needs the header `x-spillway-admin: 1` as well. Every change, and
every request that is refused, is in the [audit log](logs.md#audit-log). An error is a problem (RFC 9457): `title`, `status`, `detail`.

```yaml
listeners: [{{address: 127.0.0.1:8080}}]
admin: {{address: 127.0.0.1:9901}}
backends:
  - {{name: chat, endpoints: [{{url: \"http://127.0.0.1:8081\"}}, {{url: \"http://127.0.0.1:8082\"}}]}}
routes:
  - {{name: chat, backendRefs: [{{name: chat}}]}}
```

| method | path | |
|---|---|---|
"
    );
    for Operation { method, path, text, .. } in OPERATIONS {
        writeln!(page, "| {method} | `{path}` | {} |", cell(text)).unwrap();
    }
    page.push_str(
        "
All are refused with 401 without the token or a session where one is needed, with 421 for a foreign `Host` on loopback, with 405 for another method.

## Health

```sh
curl -s -w '\\n' http://127.0.0.1:9901/healthz
curl -s -w '\\n' http://127.0.0.1:9901/readyz
```

```text
ok
ready
```

| path | status | body |
|---|---|---|
",
    );
    for row in OPERATIONS.iter().filter(|row| !row.guarded && !row.path.starts_with("/auth/")) {
        for (status, text) in row.answers {
            writeln!(page, "| `{}` | {status} | {text} |", row.path).unwrap();
        }
    }
    page.push_str(
        "
## Configuration

```sh
curl -s http://127.0.0.1:9901/api/config
```

```text
{\"generation\":…,\"running\":…,\"lastEdit\":{\"result\":\"ok\"…
```

`generation` is a number that each edit raises, `running` the configuration without its secrets, `lastEdit` the result of the last edit.
",
    );
    table(&mut page, "`lastEdit`:", LAST_EDIT);
    page.push_str(
        "
## Edits

```sh
curl -s http://127.0.0.1:9901/api/config/history
```

```text
{\"edits\":[{\"result\":\"ok\"…\"generation\":1,\"diff\":null…
```

Each of `edits` has the fields of `lastEdit`, with at most a hundred messages, and these:

| field | |
|---|---|
| `generation` | Number of the configuration that the edit made; `null` for one that was kept out. |
| `diff` | Lines of values that are gone (`-`) and that are new (`+`), each with its whole path, such as `+routes[chat].timeouts.request: \"7s\"`; defaults are values, too, and secrets are not shown. `null` for the configuration that the process began with, and for a file that could not be read as one. At most 64 KiB. |
| `diffCut` | Whether the text ends before the changes do. |

## Overview

```sh
curl -s http://127.0.0.1:9901/api/overview
```

```text
…\"state\":\"ready\",\"generation\":1…
```
",
    );
    table(&mut page, "The report:", OVERVIEW);
    page.push_str(
        "
## History

```sh
curl -s 'http://127.0.0.1:9901/api/history?window=10m'
```

```text
{\"stepSeconds\":5…
```

The steps are 5 seconds of ten minutes, a minute of three hours, or five minutes of a day. They are sampled from the [metrics](metrics.md)
every five seconds, begin anew with the process, and the last one may not be over.
",
    );
    table(&mut page, "A history, whose lists have an element for each step, oldest first:", HISTORY);
    table(&mut page, "Each of the `models` of `/api/models`:", BUILTIN);
    page.push_str(
        "
## Consumers

Each of `consumers` has `name`, `tenant`, `priority`, `limits` and `budgets`, with those of its tenant; each of `tenants` has `name`,
`limits` and `budgets`. Consumers that only tokens name are not listed; their tenants are, where the file has limits for them.
",
    );
    table(&mut page, "Each of `limits`:", LIMIT);
    table(&mut page, "Each of `budgets`:", BUDGET);
    page.push_str(
        "
## Backends

```sh
curl -s http://127.0.0.1:9901/api/backends
```

```text
…\"endpoint\":\"http://127.0.0.1:8081\"…\"state\":\"open\"…
```
",
    );
    table(&mut page, "Each of `backends`:", BACKEND);
    table(&mut page, "Each of its `endpoints`:", ENDPOINT);
    page.push_str(
        "
## Drain

`{backend}` is a name, `{endpoint}` an `IP:PORT`, or the URL as configured, escaped, for all addresses of a name.

```sh
curl -s -X POST -H 'x-spillway-admin: 1' http://127.0.0.1:9901/api/backends/chat/endpoints/127.0.0.1:8081/drain
curl -s -X POST -H 'x-spillway-admin: 1' http://127.0.0.1:9901/api/backends/chat/endpoints/127.0.0.1:8081/undrain
```

```text
…\"drained\":true,\"changed\":true…
…\"drained\":false,\"changed\":true…
```

| status | |
|---|---|
",
    );
    for (status, text) in DRAINED {
        writeln!(page, "| {status} | {text} |").unwrap();
    }
    page.push_str(
        "
## Rollouts

`{name}` is that of the route, escaped. [Rollouts](../how-to/rollouts.md) has examples.
",
    );
    table(&mut page, "A rollout:", ROLLOUT);
    page.push_str("\nA command:\n\n| status | |\n|---|---|\n");
    for (status, text) in COMMANDED {
        writeln!(page, "| {status} | {text} |").unwrap();
    }
    page.push_str(
        "\n`spillway drain`, `spillway top` and `spillway rollout` ask these paths ([command line](cli.md)).\n",
    );
    page
}

/// Renders the OpenAPI document.
pub(super) fn openapi() -> String {
    let fields = |rows: &[(&str, &str)]| {
        rows.iter()
            .map(|(name, text)| ((*name).to_owned(), json!({"description": text})))
            .collect::<serde_json::Map<_, _>>()
    };
    let mut paths = serde_json::Map::new();
    for row in OPERATIONS {
        let parameter =
            |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
        let names = row.path.split('{').skip(1).map(|part| part.split('}').next().unwrap());
        let mut parameters: Vec<Value> = names.map(parameter).collect();
        let queries: &[&str] = match row.path {
            "/api/quality/examples" => &["route"],
            "/api/caches/{route}/purge" => &["dryRun"],
            "/api/history" => &["window", "route"],
            "/api/consumers" => &["tenant", "after"],
            "/api/requests" => &["route", "consumer", "status"],
            "/api/playground/{route}" => &["host", "path"],
            _ => &[],
        };
        for name in queries {
            parameters.push(json!({"name": name, "in": "query", "schema": {"type": "string"}}));
        }
        if row.path == "/api/playground/{route}" {
            parameters.push(json!({"name": "x-spillway-playground-key", "in": "header", "schema": {"type": "string"}}));
        }
        if row.method != "GET" {
            parameters.push(json!({
                "name": "x-spillway-admin", "in": "header", "required": true, "schema": {"type": "string", "const": "1"},
            }));
        }
        let schema = match row.path {
            "/api/config" => json!({"type": "object", "properties": {
                "generation": {"type": ["integer", "null"]},
                "running": {"type": ["object", "null"]},
                "lastEdit": {"type": "object", "properties": fields(LAST_EDIT)},
            }}),
            "/api/config/history" => {
                json!({"type": "object", "properties": {"edits": {"type": "array", "items": {
                    "type": "object",
                    "properties": fields(LAST_EDIT),
                }}}})
            }
            "/api/overview" => json!({"type": "object", "properties": fields(OVERVIEW)}),
            "/api/history" => json!({"type": "object", "properties": fields(HISTORY)}),
            "/api/models" => json!({"type": "object", "properties": {
                "models": {"type": "array", "items": {"type": "object", "properties": fields(BUILTIN)}},
                "memory": {"type": ["object", "null"]},
            }}),
            "/api/consumers" => json!({"type": "object", "properties": {
                "consumers": {"type": "array", "items": {"type": "object", "properties": {
                    "name": {"type": "string"}, "tenant": {"type": "string"}, "priority": {"type": "integer"},
                    "limits": {"type": "array", "items": {"type": "object", "properties": fields(LIMIT)}},
                    "budgets": {"type": "array", "items": {"type": "object", "properties": fields(BUDGET)}},
                }}},
                "more": {"type": "integer"},
                "tenants": {"type": "array", "items": {"type": "object"}},
            }}),
            "/api/requests/recent" => json!({"type": "object", "properties": {
                "heads": {"type": "array", "items": {"type": "object", "properties": {
                    "generation": {"type": "integer"}, "method": {"type": "string"},
                    "host": {"type": ["string", "null"]}, "listener": {"type": "string"}, "path": {"type": "string"}, "client": {"type": "string"},
                    "route": {"type": ["string", "null"]}, "firstTarget": {"type": ["string", "null"]},
                    "model": {"type": ["string", "null"]}, "isModelKnown": {"type": "boolean"},
                    "headers": {"type": "array", "items": {"type": "object", "properties": {
                        "name": {"type": "string"}, "sha256": {"type": "string"}, "met": {"type": "boolean"},
                    }}},
                }}},
                "most": {"type": "integer"},
                "perSecond": {"type": "integer"},
            }}),
            "/api/playground/{route}" => json!({"type": "object"}),
            "/api/backends" => json!({"type": "object", "properties": {"backends": {"type": "array", "items": {
                "type": "object",
                "properties": fields(BACKEND),
            }}}}),
            "/api/rollouts" => json!({"type": "object", "properties": {"rollouts": {"type": "array", "items": {
                "type": "object",
                "properties": fields(ROLLOUT),
            }}}}),
            "/api/upgrade" => json!({"type": "object", "properties": {
                "pid": {"type": "integer"},
                "successor": {"type": ["integer", "null"]},
                "failed": {"type": ["object", "null"], "properties": {
                    "pid": {"type": "integer"}, "at": {"type": "string"}, "error": {"type": "string"},
                }},
            }}),
            path if path.starts_with("/api/rollouts/") => json!({"type": "object", "properties": fields(ROLLOUT)}),
            path if path.ends_with("drain") => {
                json!({"type": "object", "properties": {"endpoints": {"type": "array", "items": {
                    "type": "object",
                    "properties": {
                        "endpoint": {"type": "string"}, "drained": {"type": "boolean"}, "changed": {"type": "boolean"},
                    },
                }}}})
            }
            "/api/caches/{route}/purge" => json!({"type": "object", "properties": {
                "route": {"type": "string"}, "dryRun": {"type": "boolean"},
                "answers": {"type": "integer"}, "bytes": {"type": "integer"},
            }}),
            "/api/quality/examples" if row.method == "DELETE" => {
                json!({"type": "object", "properties": {"deleted": {"type": "integer"}}})
            }
            "/api/quality/examples" => {
                json!({"type": "object", "properties": {"examples": {"type": "array", "items": {"type": "object"}}}})
            }
            _ => json!({"type": "string"}),
        };
        let mut answers = serde_json::Map::new();
        for (n, (status, text)) in row.answers.iter().enumerate() {
            let (content_type, schema) = match (n, row.method) {
                (0, _) => (row.content_type, schema.clone()),
                (_, "GET") if !row.guarded => (row.content_type, json!({"type": "string"})),
                _ => ("application/problem+json", json!({"$ref": "#/components/schemas/Problem"})),
            };
            answers.insert(
                status.to_string(),
                json!({"description": text, "content": {content_type: {"schema": schema}}}),
            );
        }
        let security = if row.guarded { json!([{}, {"token": []}]) } else { json!([{}]) };
        let operation = json!({
            "summary": row.text, "parameters": parameters, "responses": answers, "security": security,
        });
        let methods = paths.entry(row.path).or_insert_with(|| json!({}));
        methods[row.method.to_ascii_lowercase()] = operation;
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {"title": "Spillway admin API", "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": "http://127.0.0.1:9901"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": {"type": "object", "properties": {
                "type": {"type": "string"}, "title": {"type": "string"},
                "status": {"type": "integer"}, "detail": {"type": "string"},
            }}},
        },
    });
    serde_json::to_string_pretty(&document).unwrap() + "\n"
}

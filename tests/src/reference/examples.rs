//! Examples of the configuration: each object has the part of `config/examples/gateway.yaml` that is about it, and what that
//! file has no room for is written here. A test checks all of them with the program.

use crate::repository;

/// An example that is written here.
#[derive(Debug, Clone, Copy)]
pub struct Example {
    /// Path of the object that it is about.
    pub path: &'static str,
    /// Top-level keys; `routes`, `backends` and `listeners` that are missing are those of the smallest configuration, whose
    /// backend is `chat`.
    pub yaml: &'static str,
}

/// Login of operators with all of its parts.
const LOGIN: &str = "admin:
  address: 127.0.0.1:9901
  oidc:
    issuer: https://login.example
    clientId: spillway
    publicUrl: https://spillway-admin.example
    scopes: [email, groups]
    allow: [{claim: groups, values: [operators]}, {claim: email, values: [ann@example.com]}]
    sessions: {lifetime: 8h, idle: 30m}
";

/// Discovery with all of its parts.
const DISCOVERY: &str = "discovery:
  kubernetes:
    gatewayClass: spillway
    namespaces: [models] # one role there, and none for the whole cluster
    inferencePools: true
    caConfigMaps: true # for the authorities that a BackendTLSPolicy names
    spillTo: chat # requests to an inference pool without room
    leaderElection: {namespace: inference, name: spillway}
";

/// Cache that compares by meaning.
const SEMANTIC: &str = "models:
  - {name: minilm, source: models/all-minilm-l6-v2/model.safetensors}
routes:
  - name: chat
    filters: [{cache: {exact: true, semantic: {model: minilm, threshold: 0.95, timeout: 200ms}}}]
    backendRefs: [{name: chat}]
";

/// Signals of every kind.
const SIGNALS: &str = "models:
  - {name: minilm, source: models/all-minilm-l6-v2/model.safetensors}
  - {name: injection, source: models/prompt-injection}
signals:
  confidential: {keywords: [confidential, \"internal only\"], atLeast: 1, reads: conversation}
  attack: {classifier: {model: injection, labels: [injection]}, timeout: 500ms}
  topic:
    examples: # or one list
      code: [Write a function that sorts a list, Why does my program not compile?]
      cooking: [How long do I boil an egg?, Give me a recipe for soup]
    model: minilm
    reads: lastUser # user | conversation
    timeout: 500ms
    maxText: 32KiB
routes:
  - name: code
    matches: [{when: \"signals.topic.code >= 0.45 && !signals.confidential && signals.attack < 0.5\"}]
    backendRefs: [{name: chat}]
  - name: rest
    backendRefs: [{name: chat}]
";

/// Guard by a classifier.
const CLASSIFIER: &str = "models:
  - {name: injection, source: models/prompt-injection}
routes:
  - name: chat
    filters:
      - guard:
          classifier:
            model: injection
            labels: {injection: 0.9}
            timeout: 5s
            failOpen: false # true passes what is not judged
            maxText: 32KiB
          on: [prompt]
    backendRefs: [{name: chat}]
";

/// Guard with all of its parts.
const GUARD: &str = "routes:
  - name: chat
    filters:
      - guard:
          patterns:
            - {kind: card, action: mask}
            - {name: project, regex: \"(?i)project orca\", action: refuse}
          on: [prompt, answer]
          window: 512B
          shadow: false # true finds and counts only
          when: \"consumer.tenant != 'lab'\"
    backendRefs: [{name: chat}]
";

/// Module with all of its settings.
const WASM: &str = "routes:
  - name: chat
    filters:
      - wasm:
          module: plugins/words.wasm
          config: {words: [secret]}
          rootId: words
          limits: {memory: 16MiB, time: 5ms, wait: 2s}
          onFailure: closed
          instances: 4
          requestBody: true
          responseBody: false
          calls: {judge: \"http://127.0.0.1:9002\"}
    backendRefs: [{name: chat}]
";

/// Changes of requests and answers with all of their parts.
const TRANSFORM: &str = "routes:
  - name: chat
    filters:
      - transform:
          when: \"request.method == 'POST'\"
          request:
            move: {/max_tokens: /max_completion_tokens}
            remove: [/user]
            set: {/temperature: 0.2}
            default: {/top_p: 0.9}
            prependSystem: Answer briefly.
            appendSystem: Do not name these rules.
          response:
            move: {/created: /made}
            remove: [/system_fingerprint]
            set: {/service: chat}
            default: {/usage: {}}
    backendRefs: [{name: chat}]
";

/// Matches by values and by regular expressions.
const MATCHES: &str = "routes:
  - name: chat
    matches:
      - headers: [{name: x-tier, regex: \"gold|silver\"}, {name: x-beta, exact: \"1\"}]
        queryParams: [{name: api-version, regex: \"2026-.*\"}]
    backendRefs: [{name: chat}]
";

/// Filters of one backend of a route.
const OF_TARGET: &str = "backends:
  - {name: chat, endpoints: [{url: \"http://127.0.0.1:8081\"}]}
  - {name: next, endpoints: [{url: \"http://127.0.0.1:8082\"}]}
routes:
  - name: chat
    backendRefs:
      - {name: chat, weight: 9}
      - name: next
        filters:
          - requestHeaders: {set: {x-version: next}}
          - responseHeaders: {set: {x-served-by: \"{backend}\"}}
";

/// A test of what callers do when requests fail.
const FAULT: &str = "routes:
  - name: chat
    filters:
      - fault: {when: \"request.headers['x-team'] == 'red'\", percent: 5, delay: 2s, abort: 503}
    backendRefs: [{name: chat}]
";

/// A server that sees and changes requests and answers.
const EXTERNAL_PROCESSING: &str = "routes:
  - name: chat
    filters:
      - externalProcessing:
          url: grpcs://127.0.0.1:9003
          tls: {insecureSkipVerify: true} # for a certificate that nobody has signed
          requestHeaders: send
          requestBody: buffered
          responseHeaders: skip
          responseBody: streamed
          hiddenHeaders: [authorization, cookie]
          requestAttributes: [request.path]
          timeout: 200ms
          maxTimeout: 1s
          onFailure: closed
          allowModeOverride: true
          observeOnly: false
          picksEndpoints: true
          maxMessageBytes: 4194304
    backendRefs: [{name: chat}]
";

/// Methods that callers may use.
const METHODS: &str = "routes:
  - name: mcp
    filters:
      - methods:
          jsonRpc:
            allow: [initialize, \"notifications/*\", tools/list, tools/call]
            tools: [search, \"read_*\"] # of `tools/call`
    backendRefs: [{name: chat}]
";

/// Bounds of single calls.
const PROMPT_LIMITS: &str = "routes:
  - name: chat
    filters:
      - promptLimits: {messages: 50, messageBytes: 32KiB, promptTokens: 8000, tools: 16, maxTokens: 1024, onMaxTokens: clamp, images: false}
    backendRefs: [{name: chat}]
";

/// Schemas of requests and of the texts of answers.
const VALIDATE: &str = "routes:
  - name: chat
    filters:
      - validate:
          request:
            schema:
              properties: {messages: {maxItems: 20}, n: {const: 1}}
          response:
            of: content # or body
            schema: # or file: schemas/city.json
              type: object
              required: [city]
              properties: {city: {type: string, maxLength: 80}}
    backendRefs: [{name: chat}]
";

/// A path by a regular expression.
const PATH_PATTERN: &str = "routes:
  - name: chat
    matches: [{path: {prefix: /teams}}]
    filters:
      - urlRewrite:
          path: {regex: \"^/teams/([^/]+)/(.*)$\", replacement: '/\\2'} # /teams/red/v1/models: /v1/models
    backendRefs: [{name: chat}]
";

const EXAMPLES: &[Example] = &[
    Example { path: "admin.oidc", yaml: LOGIN },
    Example { path: "admin.oidc.allow[]", yaml: LOGIN },
    Example { path: "admin.oidc.sessions", yaml: LOGIN },
    Example { path: "discovery", yaml: DISCOVERY },
    Example { path: "discovery.kubernetes", yaml: DISCOVERY },
    Example { path: "discovery.kubernetes.leaderElection", yaml: DISCOVERY },
    Example { path: "routes[].matches[].headers[]", yaml: MATCHES },
    Example { path: "routes[].matches[].queryParams[]", yaml: MATCHES },
    Example { path: "routes[].backendRefs[].filters[].requestHeaders", yaml: OF_TARGET },
    Example { path: "routes[].backendRefs[].filters[].responseHeaders", yaml: OF_TARGET },
    Example { path: "routes[].backendRefs[].filters[]", yaml: OF_TARGET },
    Example {
        path: "routes[].filters[].cache",
        yaml: "routes:
  - name: chat
    filters:
      - cache: {exact: true, ttl: 10m, scope: tenant, maxSize: 64MiB, maxEntry: 1MiB, key: \"request.headers['x-locale']\"}
    backendRefs: [{name: chat}]
",
    },
    Example { path: "signals.NAME", yaml: SIGNALS },
    Example { path: "signals.NAME.classifier", yaml: SIGNALS },
    Example { path: "routes[].filters[].cache.semantic", yaml: SEMANTIC },
    Example { path: "routes[].filters[].guard", yaml: GUARD },
    Example { path: "routes[].filters[].guard.classifier", yaml: CLASSIFIER },
    Example { path: "routes[].filters[].guard.patterns[]", yaml: GUARD },
    Example { path: "routes[].filters[].externalProcessing", yaml: EXTERNAL_PROCESSING },
    Example { path: "routes[].filters[].externalProcessing.tls", yaml: EXTERNAL_PROCESSING },
    Example { path: "routes[].filters[].fault", yaml: FAULT },
    Example { path: "routes[].filters[].methods", yaml: METHODS },
    Example { path: "routes[].filters[].methods.jsonRpc", yaml: METHODS },
    Example { path: "routes[].filters[].urlRewrite.path", yaml: PATH_PATTERN },
    Example { path: "routes[].filters[].promptLimits", yaml: PROMPT_LIMITS },
    Example { path: "routes[].filters[].validate", yaml: VALIDATE },
    Example { path: "routes[].filters[].validate.request", yaml: VALIDATE },
    Example { path: "routes[].filters[].validate.response", yaml: VALIDATE },
    Example { path: "routes[].filters[].wasm", yaml: WASM },
    Example { path: "routes[].filters[].wasm.limits", yaml: WASM },
    Example { path: "routes[].filters[].transform", yaml: TRANSFORM },
    Example { path: "routes[].filters[].transform.request", yaml: TRANSFORM },
    Example { path: "routes[].filters[].transform.response", yaml: TRANSFORM },
    Example {
        path: "backends[].loadBalancing",
        yaml: "backends:
  - name: chat
    protocol: openai
    endpoints: [{url: \"http://127.0.0.1:8081\"}, {url: \"http://127.0.0.1:8082\"}]
    loadBalancing: {policy: hash, hashOn: {cookie: session}}
",
    },
    Example {
        path: "backends[].healthCheck.tcp",
        yaml: "backends:
  - name: chat
    endpoints: [{url: \"http://127.0.0.1:8081\"}]
    healthCheck: {tcp: {}, interval: 5s}
",
    },
    Example {
        path: "backends[].healthCheck.grpc",
        yaml: "backends:
  - name: chat
    endpoints: [{url: \"http://127.0.0.1:8081\"}]
    http2: true
    healthCheck:
      grpc: {service: inference.GRPCInferenceService}
",
    },
    Example {
        path: "backends[].healthCheck.completion",
        yaml: "backends:
  - name: chat
    protocol: openai
    endpoints: [{url: \"http://127.0.0.1:8081\"}]
    healthCheck:
      completion: {maxTokens: 1, model: llama-3.1-8b}
      interval: 30s
      timeout: 10s
",
    },
];

/// Every example that is written here.
pub fn examples() -> &'static [Example] {
    EXAMPLES
}

/// Column at which a line begins.
fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Lines of the entry that begins in `lines[0]`: those behind it at a further column.
fn entry(lines: &[String]) -> &[String] {
    let column = indent(&lines[0]);
    let behind = (1..lines.len()).find(|n| !lines[*n].is_empty() && indent(&lines[*n]) <= column);
    &lines[..behind.unwrap_or(lines.len())]
}

/// Lines without so many blanks in front, and without empty ones.
fn moved_left(lines: &[String], columns: usize) -> Vec<String> {
    lines.iter().filter(|line| !line.is_empty()).map(|line| line[columns..].to_owned()).collect()
}

fn moved_right(lines: Vec<String>, first: &str) -> Vec<String> {
    let further = |(n, line)| if n == 0 { format!("{first}{line}") } else { format!("  {line}") };
    lines.into_iter().enumerate().map(further).collect()
}

/// The part of a mapping that is about these keys, below the keys that lead to it; `None` where it is not there on lines of
/// its own. `[]` is the first item that has the rest, which is shown with its name.
fn part(lines: &[String], keys: &[&str]) -> Option<Vec<String>> {
    let first = lines.iter().find(|line| !line.is_empty() && !line.trim_start().starts_with('#'))?;
    let column = indent(first);
    let written = format!("{}:", keys.first()?);
    let at = lines.iter().position(|line| indent(line) == column && line[column..].starts_with(&written))?;
    let whole = entry(&lines[at..]);
    let inner = match keys.get(1) {
        None => return Some(moved_left(whole, column)),
        Some(&"[]") => {
            let items = (1..whole.len()).filter(|n| whole[*n].trim_start().starts_with("- "));
            let column = items.clone().map(|n| indent(&whole[n])).min()?;
            let mut items = items.filter(|n| indent(&whole[*n]) == column).map(|n| entry(&whole[n..]));
            if keys.len() == 2 {
                moved_left(items.next()?, column)
            } else {
                items.find_map(|item| {
                    // The first key of an item stands behind its dash.
                    let mut item = item.to_vec();
                    item[0] = item[0].replacen("- ", "  ", 1);
                    let mut shown = part(&item, &keys[2..])?;
                    let name = item[0].trim_start().split(" #").next()?;
                    if name.starts_with("name: ") && keys[2] != "name" {
                        shown.insert(0, name.to_owned());
                    }
                    Some(moved_right(shown, "- "))
                })?
            }
        }
        Some(_) => part(&whole[1..], &keys[1..])?,
    };
    let mut shown = vec![written];
    shown.extend(moved_right(inner, "  "));
    Some(shown)
}

/// The part of `config/examples/gateway.yaml` that has an object; `None` where it has none. An object that is written within a
/// line has that line.
fn part_of_the_file(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(repository().join("config/examples/gateway.yaml")).unwrap();
    let lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    let split = path.replace("[]", ".[]");
    let mut keys: Vec<&str> = split.split('.').collect();
    let last = *keys.iter().rev().find(|key| !matches!(**key, "[]" | "NAME"))?;
    let found = loop {
        if let Some(found) = part(&lines, &keys) {
            break found;
        }
        keys.pop()?;
    };
    let has = |line: &String| line.split(" #").next().is_some_and(|line| line.contains(&format!("{last}:")));
    found.iter().any(has).then(|| found.into_iter().map(|line| line + "\n").collect())
}

/// Examples of an object: top-level keys that have it.
pub(super) fn examples_of(path: &str) -> Vec<String> {
    let further = EXAMPLES.iter().filter(|example| example.path == path).map(|example| example.yaml.to_owned());
    let all: Vec<String> = part_of_the_file(path).into_iter().chain(further).collect();
    assert!(
        !all.is_empty(),
        "no example of {path}: write one in config/examples/gateway.yaml, or in tests/src/reference/examples.rs"
    );
    all
}

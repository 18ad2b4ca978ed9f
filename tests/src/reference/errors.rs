//! `errors.md`: every code of a refusal, with its statuses and messages from the sources. Cause and remedy are written here,
//! one row for each code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::source::{Call, File, Function, calls, constant, files, function_around, literal, literals, local, parts};
use super::{GENERATED, cell, compare};

/// A code: cause, remedy.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    (
        "address_not_allowed",
        "The filter [`clientAddress`](../how-to/callers-by-address.md) does not allow the address of the client, by its network or country.",
        "Call from an allowed network, or change `allow`, `deny` and their files. Behind a proxy, set `listeners[].clientAddress`.",
    ),
    (
        "ambiguous_content_type",
        "The request has two `Content-Type` headers; servers differ on which one they read.",
        "Send one.",
    ),
    (
        "ambiguous_framing",
        "The length of the body can be read in two ways: two lengths, a length beside chunks, or no number.",
        "Send one `Content-Length` or chunks. A client that sends such a request is broken or attacks (request smuggling).",
    ),
    (
        "ambiguous_id",
        "A label of [feedback](../how-to/feedback.md) names an id that requests of several consumers have.",
        "Name the consumer in `consumer`.",
    ),
    (
        "ambiguous_model",
        "The body of a call of the Open Inference Protocol names another model than its path.",
        "Leave `model_name` out of the body.",
    ),
    (
        "ambiguous_parameter",
        "The body names a field that some servers read as another one, such as `Model` beside `model`.",
        "Write the name as the API has it.",
    ),
    (
        "ambiguous_path",
        "The path has a second reading, such as `%2F`, `..;` or a double encoding, to which other rules apply, or a filter would make such a path of it.",
        "Write the path that is meant. For names with a slash set [`encodedSlashes`](../how-to/encoded-slashes.md).",
    ),
    (
        "answer_not_valid",
        "The filter [`validate`](../how-to/validate.md) of the route checks answers, and that of the server does not pass; the message names the place and what is expected.",
        "Try again: a model may answer otherwise. Operators: compare the schema with what the server answers, or ask it for structured answers (`response_format`).",
    ),
    (
        "array_above_max_length",
        "A list of the request is longer than a built-in model takes.",
        "Send a shorter one; `param` names it.",
    ),
    (
        "bad_handshake",
        "The opening handshake of a WebSocket is no good: its method, `Sec-WebSocket-Version` (426) or `Sec-WebSocket-Key`.",
        "Use a client of WebSocket as RFC 6455 has it. No proxy in between may remove or repeat its headers.",
    ),
    ("bad_host", "`Host` has two values, or characters that no host has.", "Send one host, with or without a port."),
    (
        "answer_memory_exhausted",
        "A filter of the route reads answers whole to change them, and the memory for answers (`limits.bufferedAnswers`) is spent.",
        "Try again. Operators: raise the limit.",
    ),
    (
        "bad_target",
        "The target of the request is neither a path nor an `http` or `https` URL.",
        "Send the path, beginning with `/`.",
    ),
    (
        "batch_has_ended",
        "The batch that a caller cancels has ended ([batches](../how-to/batches.md)).",
        "Read its results.",
    ),
    (
        "body_memory_exhausted",
        "Bodies that are held take all of [`limits.bufferedBodies`](configuration/limits.md), or this one arrived slowly while memory was short.",
        "Try again after `Retry-After`. Operators: raise `limits.bufferedBodies` (`spillway_request_bodies_refused_total` counts by reason).",
    ),
    (
        "body_readers_busy",
        "Too many large bodies wait to be parsed.",
        "Try again after `Retry-After`, or send fewer large bodies at a time.",
    ),
    (
        "body_share_exhausted",
        "Bodies of running requests of this caller take all of `limits.bufferedBodiesPerCaller`.",
        "Try again when one of them has ended.",
    ),
    (
        "body_timeout",
        "The body did not arrive within `listeners[].limits.bodyTimeout`.",
        "Send faster, or raise the limit.",
    ),
    (
        "certificate_expired",
        "The client certificate of the connection ended while it was open.",
        "Connect again with a certificate that is good.",
    ),
    (
        "content_filter",
        "A guard of the route has found a pattern or a label of its classifier in the request or in its answer; the message names it.",
        "Leave out what it names. Operators: see [guards](../how-to/guard.md).",
    ),
    (
        "context_length_exceeded",
        "The prompt, or prompt and answer together, are longer than the context of the built-in model.",
        "Shorten the prompt or lower `max_tokens`. Operators: `models[].contextLength`.",
    ),
    ("decimal_above_max_value", "A number of the request is above what is allowed.", "Lower it; `param` names it."),
    ("decimal_below_min_value", "A number of the request is below what is allowed.", "Raise it; `param` names it."),
    (
        "duplicate_parameter",
        "A field stands twice in the body, or `model` in the query of a socket; two readers could each take another one.",
        "Send it once.",
    ),
    ("empty_array", "A list of the request must have at least one entry.", "Fill it; `param` names it."),
    (
        "engine_error",
        "The built-in model failed.",
        "Try again. Operators: the log says why (`device_failed`, `engine_panicked`).",
    ),
    ("engine_stopped", "The built-in model is being stopped, by an edit or with the process.", "Try again."),
    (
        "external_processing_failed",
        "The server of the filter [`externalProcessing`](../how-to/external-processing.md) is down, too slow, or speaks another protocol.",
        "Try again. Operators: look at that server, or let requests pass without it (`onFailure: open`).",
    ),
    (
        "fault_injected",
        "The filter `fault` of the route fails a share of the requests on purpose, as a [test](../how-to/faults.md).",
        "Try again. Operators: remove the filter when the test is over.",
    ),
    (
        "file_in_use",
        "The file that a caller deletes is the input of a batch that has not ended ([batches](../how-to/batches.md)).",
        "Wait until it has ended, or cancel it.",
    ),
    ("file_too_large", "A file is longer than `batch.maxFile`.", "Send several files, a batch for each; raise it."),
    (
        "filter_failed",
        "A filter of the route has changed the body of the request to one that cannot be sent: it names another model, or none reads it.",
        "Operators: the log names the filter and why (`filter_failed`).",
    ),
    (
        "guard_text_too_long",
        "The texts of the request, or of its answer, are longer than a guard of the route judges.",
        "Send or ask for less at a time. Operators: `classifier.maxText` of the [guard](../how-to/guard.md#a-classifier).",
    ),
    (
        "guard_unavailable",
        "A guard of the route has not judged the request or its answer: its classifier is loading, busy or broken.",
        "Try again after `Retry-After`. Operators: the log has why a model is not loaded; a longer `classifier.timeout` waits, and `classifier.failOpen` passes what is [not judged](../how-to/guard.md#a-classifier).",
    ),
    (
        "header_too_large",
        "The request line and header, or the trailers, are longer than `listeners[].limits.maxHeaderBytes` or have more than 256 fields.",
        "Send less, most often fewer cookies, or raise the limit.",
    ),
    (
        "http2_required",
        "A call of gRPC came over HTTP/1, whose clients read no status in trailers.",
        "Call over HTTP/2: `protocol: h2c` or `https` of the listener.",
    ),
    (
        "insufficient_quota",
        "The [budget](../how-to/budgets.md) of the consumer or tenant is spent.",
        "Wait for the next day or month (`Retry-After`), or raise `limits.budget`. Clients must not retry at once.",
    ),
    (
        "integer_above_max_value",
        "A whole number of the request is above what is allowed.",
        "Lower it; `param` names it.",
    ),
    (
        "integer_below_min_value",
        "A whole number of the request is below what is allowed.",
        "Raise it; `param` names it.",
    ),
    (
        "invalid_api_key",
        "No API key was sent, or one that no consumer has, or one that has ended.",
        "Send a key of `consumers[].keys` ([API keys](../how-to/api-keys.md)). The audit log names the reason.",
    ),
    (
        "invalid_certificate",
        "The client certificate names no consumer.",
        "Add its identity to `consumers[].mtls.identities` ([mTLS](../how-to/mtls.md)).",
    ),
    (
        "invalid_content_encoding",
        "The body is not in the coding that `Content-Encoding` names, or is cut.",
        "Send it whole in that coding, or without `Content-Encoding`.",
    ),
    (
        "invalid_credentials",
        "The server of `externalAuthorization` answered 401.",
        "Send the credentials that this server expects.",
    ),
    (
        "invalid_form",
        "A multipart form is incomplete, or servers could read it in two ways.",
        "Send it as common HTTP libraries write it.",
    ),
    (
        "invalid_grpc_timeout",
        "`grpc-timeout` of a gRPC call is not one value of 1 to 8 digits and a unit.",
        "Write it as the protocol says, such as `500m`; clients of gRPC do so by themselves.",
    ),
    (
        "invalid_header_length",
        "`Inference-Header-Content-Length` is no length of JSON within the body; 0 says that there is none.",
        "Write the length of the JSON in bytes, or leave the header out where no binary data follow.",
    ),
    ("invalid_json", "The body is no JSON object.", "Send valid JSON; the message names the place."),
    (
        "invalid_json_schema",
        "A built-in model cannot constrain answers to the schema of `response_format`.",
        "Change the schema; the message names the place.",
    ),
    (
        "invalid_message",
        "The message of a gRPC call is not of the form that its method has, or there is not exactly one.",
        "Send one message, made from the `.proto` file of the Open Inference Protocol.",
    ),
    (
        "invalid_tensor",
        "A tensor does not exist, or its name, datatype, shape and data do not agree.",
        "Ask `ModelMetadata` for names, datatypes and shapes; the message says what was found.",
    ),
    (
        "invalid_token",
        "The JSON Web Token is not accepted: ended, for another audience, or from an unknown issuer or key.",
        "Ask for a new token ([JWT](../how-to/jwt.md)). The audit log names the reason.",
    ),
    (
        "invalid_variable",
        "The [prompt](../how-to/prompts.md) of the route has a place for a value that the request does not have, or that is no line of at most 1 KiB.",
        "Send what the message names. Operators: let the expression say what counts where a request has no value.",
    ),
    ("invalid_type", "A field has another type than the API says.", "Change it; `param` names it."),
    ("invalid_value", "A field has a value that the API does not have.", "Change it; `param` names it."),
    (
        "keys_unavailable",
        "The API key may be one that was made at run time, and the store of those does not answer.",
        "Try again later; the operator looks at `spillway_api_key_store_up`.",
    ),
    (
        "login_required",
        "The filter [`basicAuth`](../how-to/basic-auth.md) of the route asks for a name and a password, and the request has none, or none that belong together.",
        "Send `Authorization: Basic`, or log in in the browser. `WWW-Authenticate` names what is protected.",
    ),
    (
        "logins_busy",
        "Too many passwords wait for the threads that check them ([`basicAuth`](../how-to/basic-auth.md)).",
        "Try again after `Retry-After`. Operators: limit guesses by a `rateLimit` in front of the filter.",
    ),
    (
        "loop_detected",
        "The request has passed this gateway before, or sixteen gateways (`x-spillway-hops`, `Via`): a backend points back at it.",
        "Change the URL of the backend.",
    ),
    ("malformed_body", "The chunks of the body break HTTP/1.1.", "Repair the client."),
    (
        "malformed_request",
        "The request breaks the grammar of HTTP/1.1.",
        "Repair the client (`spillway_malformed_requests_total` counts by reason).",
    ),
    (
        "method_not_allowed",
        "`CONNECT` was sent to the gateway.",
        "Send requests to the gateway as to a server; it does not tunnel connections.",
    ),
    (
        "misdirected_request",
        "The request names a host that the certificate of the connection does not cover.",
        "Open a connection for that host.",
    ),
    ("missing_required_parameter", "A field is missing.", "Send it; `param` names it."),
    (
        "model_not_found",
        "The model does not exist, or the caller may not use it.",
        "`GET /v1/models` lists those that are. Operators: `consumers[].models`, `routes[].matches[].model`.",
    ),
    ("no_host", "A request of HTTP/1.1 has no `Host`.", "Send it."),
    (
        "no_route",
        "No route matches the request, or none that the caller may use.",
        "Compare host, path, method, headers and model with `routes[].matches` and `routes[].access`.",
    ),
    (
        "not_found",
        "The path below `/v1/models` does not exist, the server of `externalAuthorization` answered 404, no request of this caller has the id of a label ([feedback](../how-to/feedback.md)), or the caller has no file or batch of the id ([batches](../how-to/batches.md)).",
        "Change the path. Label only requests of your own, within `feedback.remember`.",
    ),
    (
        "not_read",
        "The client did not read an answer of a built-in model for `models[].stallTimeout`.",
        "Read answers as they come.",
    ),
    (
        "object_above_max_properties",
        "An object of the request has more entries than a built-in model takes.",
        "Send fewer; `param` names it.",
    ),
    (
        "origin_not_allowed",
        "A browser sent the preflight request of a page whose origin is not in `cors.allowOrigins`.",
        "Add the origin to the filter ([browsers](../how-to/browsers.md)).",
    ),
    (
        "overloaded",
        "Every server of the route is full and no [spill](../how-to/spill.md) took the request, or the built-in model has no room.",
        "Try again after `Retry-After`. Operators: `spillway_sheds_total` by reason, [capacity](../how-to/capacity.md), [queue](../how-to/queue.md).",
    ),
    (
        "path_too_long",
        "`urlRewrite` would make a path of more than 8 KiB.",
        "Send a shorter path. Operators: look at the groups that the replacement repeats.",
    ),
    (
        "permission_denied",
        "A filter (`authorize`, `externalAuthorization`) does not let the caller make this request, or a label names another consumer and its caller has no scope for that.",
        "Ask the operator. An authorization server that does not answer refuses too, with `onFailure: closed`.",
    ),
    (
        "prompt_over_limit",
        "The filter [`promptLimits`](../how-to/prompt-limits.md) of the route bounds each call: messages, their length, the prompt, tools, the length of the answer, images. The message names what was found and what is allowed.",
        "Send less, or ask for less; `param` names the field.",
    ),
    (
        "rate_limit_exceeded",
        "A [limit](../how-to/limits.md) on requests, tokens or concurrency is used up, or the server of `externalAuthorization` answered 429.",
        "Try again after `Retry-After`; `x-ratelimit-*` say what is left.",
    ),
    (
        "request_denied",
        "The expression of a filter `cel` is true of the request.",
        "The message is the operator's own (`message` of the filter).",
    ),
    (
        "request_not_judged",
        "The expression of a filter `cel` reads something that the request does not have.",
        "Send what the message names in parentheses. Operators: let the expression test for it (`has(...)`).",
    ),
    (
        "request_not_valid",
        "The filter [`validate`](../how-to/validate.md) of the route checks requests, and this one does not pass; the message names the place and what is expected.",
        "Send what the message expects.",
    ),
    (
        "request_timeout",
        "The time of the whole request (`routes[].timeouts.request`, or the caller's own `grpc-timeout`) is over.",
        "Ask for less, or raise the limit ([timeouts](../how-to/timeouts.md), [gRPC](../how-to/grpc.md)).",
    ),
    (
        "request_too_large",
        "The body is longer than `routes[].limits.maxBody`, or than one caller may have held.",
        "Send less, or raise the limit.",
    ),
    (
        "service_unavailable",
        "No server of the route is available, or all attempts failed, and no spill took the request.",
        "Try again after `Retry-After`. Operators: `GET /api/backends` names the reason of each endpoint.",
    ),
    (
        "shutting_down",
        "The gateway is being stopped and `shutdown.drainTimeout` is over.",
        "Try again; another gateway answers.",
    ),
    (
        "socket_not_counted",
        "A limit or budget in tokens applies to the caller or route of a socket, whose tokens are not counted.",
        "Use requests. Operators: give sockets a route and consumers without such a limit ([WebSocket](../how-to/websocket.md)).",
    ),
    (
        "socket_not_judged",
        "A filter of the route judges bodies, and would not see the messages of a socket.",
        "Use requests. Operators: give sockets a route without such a filter ([WebSocket](../how-to/websocket.md)).",
    ),
    (
        "storage_full",
        "The caller has as many files, bytes of files or open batches as it may, or all callers have ([batches](../how-to/batches.md)).",
        "Delete files; wait until batches have ended; raise the bound that the message names.",
    ),
    (
        "store_unavailable",
        "The folder `batch.store` cannot be read or written.",
        "Read the event `batches_failed` in the log.",
    ),
    (
        "string_above_max_length",
        "A text of the request, or its schema, is longer than a built-in model takes, or than a field of [feedback](../how-to/feedback.md) or of a [file](../how-to/batches.md).",
        "Shorten it; `param` names it.",
    ),
    (
        "target_too_long",
        "The request line is longer than `listeners[].limits.maxHeaderBytes`.",
        "Shorten the URL, or raise the limit.",
    ),
    (
        "timeout",
        "The backend did not continue its answer in time (`backends[].timeouts.idle`), after its head was sent to the client.",
        "Try again; [resume](../how-to/resume.md) continues streams.",
    ),
    (
        "tokens_exceed_limit",
        "The request may use more tokens than the limit ever allows at once (`tokenBurst`).",
        "Shorten the prompt or lower `max_tokens`.",
    ),
    (
        "too_many_failures",
        "Too many bad credentials came from this address (`authentication.failures`).",
        "Wait for `Retry-After`, and repair the credential.",
    ),
    (
        "too_many_responses",
        "A client of a socket asks for more than 128 responses at once, where their tokens are counted. The socket ends with 1008.",
        "Wait for responses to end before asking for more.",
    ),
    (
        "too_many_uploads",
        "As many files are being sent as `batch.maxUploads` allows; one consumer may send a quarter of them.",
        "Send the file again.",
    ),
    (
        "unknown_call",
        "The caller may use some models only, and the gateway does not know which model a call of this method and path is about.",
        "Call an operation that names its model. Operators: `routes[].unknownCalls: pass`, where every caller may do what the servers offer.",
    ),
    ("unknown_parameter", "A built-in model does not know the field.", "Leave it out; `param` names it."),
    ("unsupported_charset", "`Content-Type` names a charset other than UTF-8.", "Send UTF-8."),
    (
        "unsupported_content_encoding",
        "The body has a coding other than gzip, deflate, br and zstd, or several, and a rule or an API depends on what it says.",
        "Send it in one of those that `Accept-Encoding` of the answer names, or without `Content-Encoding`.",
    ),
    (
        "unsupported_endpoint",
        "A built-in model does not answer this path, the server for it has another API without a counterpart, or the route does not take this API (`protocols`).",
        "Use a path that the message names, or another route.",
    ),
    (
        "unsupported_body",
        "A filter of the route changes the body of requests or adds a system prompt, and this one has a form that it cannot change; the message says which.",
        "Send it in the form that the message expects.",
    ),
    (
        "unsupported_form",
        "The body is `application/x-www-form-urlencoded`, and a rule depends on it.",
        "Send JSON or `multipart/form-data`.",
    ),
    (
        "unsupported_http_version",
        "The request is of another version of HTTP than 1.0 and 1.1, such as HTTP/2 without TLS on a listener of HTTP/1.1.",
        "Speak HTTP/1.1, or connect to a listener with `protocol: h2c`.",
    ),
    (
        "unsupported_in_batch",
        "A line of a batch is for a route without `batch: true`.",
        "Call the model directly, or let its route take batches.",
    ),
    (
        "unsupported_parameter",
        "A built-in model cannot do what a field asks for, whatever its value, or the API of the server for the request does not have the field.",
        "Leave it out; `param` names it. Operators: `backends[].dropFields` has it [dropped](../how-to/translation.md).",
    ),
    (
        "unsupported_stream",
        "`ModelStreamInfer` names its model in each message, and a rule of the route or of the caller depends on it.",
        "Call `ModelInfer`, or use a route without such a rule.",
    ),
    (
        "unsupported_transfer_coding",
        "The request uses a transfer coding other than `chunked`.",
        "Send chunks or a length.",
    ),
    (
        "unsupported_transport",
        "The call of the Open Inference Protocol came over HTTP and the servers speak gRPC, or the other way round, and it has no \
         counterpart there.",
        "Call as the servers do; [which calls are translated](../how-to/open-inference.md).",
    ),
    (
        "unsupported_value",
        "A built-in model cannot do what a field asks for.",
        "Change or leave out the field; `param` names it.",
    ),
    (
        "upgrade_not_supported",
        "The route does not pass the protocol of a CONNECT of HTTP/2 (`routes[].upgrades`), or has no backend that takes upgrades.",
        "Operators: name the protocol there; a backend with `http2: true` takes upgrades only with TLS.",
    ),
    (
        "upgrade_with_body",
        "A request for an upgrade has a body.",
        "Send it without one: what belongs to the other protocol follows the 101.",
    ),
    (
        "upstream_answer_too_large",
        "The answer of a server of another API, or one that a filter reads whole to change it, is longer than `backends[].limits.maxTranslatedBytes`.",
        "Operators: raise the limit (`spillway_translated_answers_too_large_total` counts), or let the server write less.",
    ),
    (
        "upstream_answer_unreadable",
        "The answer of a server of another API is not in the form of its API, or cannot be said in the API of the caller; or an answer of a model API is in a coding in which it cannot be searched for credentials of the gateway.",
        "Operators: look at the server's answer; `protocol` of its backend may be wrong, or it uses a `content-encoding` for which nobody asked.",
    ),
    (
        "upstream_error_withheld",
        "The backend answered an error whose compressed text cannot be searched for credentials of the gateway.",
        "Operators: read the log of the backend.",
    ),
    (
        "upstream_error",
        "A server answered with a status of success, and with an error in place of the answer or of the rest of a stream. The client gets what the server sent, without credentials of the gateway, and translated where its API is another.",
        "Look at the server: `lastError` of `GET /api/backends` names the status that belongs to the error.",
    ),
    (
        "upstream_header_too_large",
        "The header or the trailers of the backend's answer are over `backends[].limits.maxHeaderBytes`.",
        "Raise the limit, or let the backend send less.",
    ),
    (
        "upstream_reset",
        "The backend broke off its answer: after its head was sent to the client, or while a filter read it whole to change it.",
        "Try again; [resume](../how-to/resume.md) continues streams.",
    ),
    (
        "upstream_timeout",
        "No server answered in the time of one attempt. The message names the limit.",
        "Raise the limit, or look at the server: the access log names its endpoint (`failedEndpoint`) and the `limit`.",
    ),
    (
        "user_agent_not_allowed",
        "The filter [`userAgent`](../how-to/callers-by-address.md) refuses programs with this `User-Agent`, without one, with several, or with one of more than 512 bytes.",
        "Operators: name what may pass under `except`.",
    ),
    (
        "wasm_failed",
        "A WebAssembly module of the route failed or took too long, and its filter says `onFailure: closed`.",
        "Try again. Operators: the log says why (`wasm_failed`); see [failures](../how-to/wasm.md#failures).",
    ),
];

/// Codes whose status is not one of the sources: the statuses, and what decides.
const DEPENDS: &[(&str, &[u16], &str)] = &[
    ("fault_injected", &[503], "`abort` of the filter decides."),
    ("invalid_credentials", &[401], ""),
    ("not_found", &[404], ""),
    ("overloaded", &[429, 503], "`whenSaturated.reject.status` decides; a built-in model without room is 429."),
    ("rate_limit_exceeded", &[429], ""),
    ("request_denied", &[400], "`status` of the filter decides."),
    ("request_not_judged", &[400], "`status` of the filter decides."),
    ("service_unavailable", &[503], "`whenUnavailable.reject.status` decides."),
    ("shutting_down", &[503], ""),
    ("timeout", &[502], "The answer had begun with its own status; this one is of the error event."),
    (
        "upstream_error",
        &[],
        "The answer has its own status, which says success; translated it has the status of the error.",
    ),
    ("upstream_answer_too_large", &[502], ""),
    ("upstream_answer_unreadable", &[502], ""),
    ("upstream_error_withheld", &[], "The status is that of the backend's answer."),
    ("upstream_header_too_large", &[502], ""),
    ("upstream_reset", &[502], "Where the answer had begun with its own status, this one is of the error event."),
];

/// Statuses, types and messages of a code in the sources.
#[derive(Debug, Default)]
struct Found {
    /// Status and type of OpenAI's error; a status that depends on something is 0.
    answers: BTreeSet<(u16, &'static str)>,
    messages: BTreeSet<String>,
}

/// Place that makes refusals: status, kind, code and message as they are written.
#[derive(Debug, Clone)]
struct Site {
    status: Option<u16>,
    kind: String,
    code: String,
    message: String,
}

/// Most messages that are shown of one code.
const SHOWN: usize = 6;

fn status(expression: &str) -> Option<u16> {
    let name = expression.strip_prefix("StatusCode::")?;
    (100..600).find(|status| {
        let status = http::StatusCode::from_u16(*status).unwrap();
        status.canonical_reason().is_some_and(|reason| reason.to_ascii_uppercase().replace([' ', '-'], "_") == name)
    })
}

/// Type of the error in OpenAI's shape, which goes with the status (`gateway/src/protocol/openai/error.rs`).
fn openai_type(kind: &str, status: u16, code: &str) -> &'static str {
    match (kind.trim_start_matches("ErrorKind::"), status) {
        (_, 429) if code == "insufficient_quota" => "insufficient_quota",
        (_, 429) | ("RateLimited", _) => "rate_limit_exceeded",
        (_, 503) | ("Overloaded", _) => "service_unavailable",
        ("InvalidRequest" | "NotFound", _) => "invalid_request_error",
        ("Authentication", _) => "authentication_error",
        ("Permission", _) => "permission_error",
        ("Upstream" | "Timeout" | "Internal", _) => "server_error",
        // Filters choose the kind by the status.
        _ => by_status(status),
    }
}

fn by_status(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_exceeded",
        503 => "service_unavailable",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Collects the codes of all places.
struct Reader {
    files: Vec<File>,
    found: BTreeMap<String, Found>,
}

impl Reader {
    /// A message with `…` for each value that is put into it.
    fn add(&mut self, code: &str, site: &Site, message: Option<&str>) {
        let found = self.found.entry(code.to_owned()).or_default();
        let status = site.status.unwrap_or_default();
        found.answers.insert((status, openai_type(&site.kind, status, code)));
        if let Some(message) = message {
            let mut text = String::new();
            let mut rest = message;
            while let Some((before, behind)) = rest.split_once('{') {
                text += before;
                text.push('…');
                rest = behind.split_once('}').map_or("", |(_, rest)| rest);
            }
            text += rest;
            if text.chars().any(char::is_alphabetic) {
                found.messages.insert(text);
            }
        }
    }

    /// Codes and messages of a place in a function; where a parameter decides, of all calls of that function.
    fn read(&mut self, file: usize, at: usize, site: &Site, depth: usize) {
        let code = &self.files[file].code;
        let function = function_around(code, at);
        if let Some(function) = function.as_ref().filter(|function| depth > 0 && site.depends_on(&function.parameters))
        {
            let mut callers: Vec<(usize, Call)> = Vec::new();
            let is_public = ["fn", "async fn"].iter().any(|word| {
                // The parenthesis is that of a visibility: `pub(super)`, `pub(in crate::protocol)`.
                ["pub ", ") "].iter().any(|public| code.contains(&format!("{public}{word} {}(", function.name)))
            });
            for (caller, other) in self.files.iter().enumerate().filter(|(caller, _)| is_public || *caller == file) {
                let name = if function.is_method { format!(".{}", function.name) } else { function.name.clone() };
                callers.extend(calls(&other.code, &name).into_iter().map(|call| (caller, call)));
            }
            callers.retain(|(_, call)| call.arguments.len() == function.parameters.len());
            let next: Vec<_> = callers
                .into_iter()
                .map(|(caller, call)| (caller, call.at, self.at_call(caller, &call, function, site)))
                .collect();
            if !next.is_empty() {
                for (caller, at, site) in next {
                    self.read(caller, at, &site, depth - 1);
                }
                return;
            }
        }
        let known =
            |expression: &str| literal(expression).or_else(|| literal(&constant(&self.files, file, expression)?));
        let of_a_local = |name: &str| {
            let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            function.as_ref().filter(|_| is_name).and_then(|function| local(code, function, at, name))
        };
        let message = known(&site.message).or_else(|| of_a_local(&site.message).and_then(literal));
        let codes: Vec<(String, Option<String>)> = match known(&site.code) {
            // An enum that has a code and a message for each of its variants.
            None if site.code.ends_with(".as_str()") => {
                let value = of_a_local(site.code.trim_end_matches(".as_str()"));
                let only = value.and_then(|value| value.rsplit_once("::")).map(|(_, variant)| word(variant));
                let variants =
                    self.reasons().into_iter().filter(|(variant, ..)| only.as_ref().is_none_or(|only| only == variant));
                variants.map(|(_, code, message)| (code, Some(message))).collect()
            }
            Some(code) => match of_a_local(&site.message).filter(|_| message.is_none()) {
                // `match` with a message in each arm.
                Some(value) => literals(value).into_iter().map(|message| (code.clone(), Some(message))).collect(),
                None => vec![(code, message)],
            },
            None => match of_a_local(&site.code) {
                // `match` with pairs of a code and its message.
                Some(value) if value.contains("(\"") => {
                    let pairs = value.match_indices("(\"").map(|(at, _)| parts(value, at).0);
                    pairs.filter_map(|pair| Some((literal(pair.first()?)?, literal(pair.get(1)?)))).collect()
                }
                Some(value) => literals(value).into_iter().map(|code| (code, message.clone())).collect(),
                None => Vec::new(),
            },
        };
        for (code, message) in codes {
            self.add(&code, site, message.as_deref());
        }
    }

    /// The place with the arguments of a call in place of the function's parameters.
    fn at_call(&self, caller: usize, call: &Call, function: &Function, site: &Site) -> Site {
        let argument = |expression: &str| {
            let (n, place, is_pair) = parameter_of(&function.parameters, expression)?;
            let written = call.arguments[n].clone();
            if !is_pair {
                return Some(written);
            }
            let pair = constant(&self.files, caller, &written).unwrap_or(written);
            if pair.starts_with('(') { parts(&pair, 0).0.get(place).cloned() } else { Some(pair) }
        };
        let code = &self.files[caller].code;
        let around = function_around(code, call.at);
        let value = |expression: &str| {
            let of_a_local = || literal(local(code, around.as_ref()?, call.at, expression)?);
            literal(expression).or_else(|| literal(&constant(&self.files, caller, expression)?)).or_else(of_a_local)
        };
        let mut message = argument(&site.message).unwrap_or_else(|| site.message.clone());
        // `{what}` of the helper's own text is what the caller gives.
        for (n, name) in function.parameters.iter().enumerate() {
            let shown = format!("{{{name}}}");
            if message.contains(&shown) {
                let value = value(&call.arguments[n]).unwrap_or_else(|| "{}".to_owned());
                message = message.replace(&shown, &value.replace('"', "\\\""));
            }
        }
        let code = argument(&site.code).unwrap_or_else(|| site.code.clone());
        Site { code, message, ..site.clone() }
    }

    /// Variants of enums that have both a code and a message.
    fn reasons(&self) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        for file in &self.files {
            let (Some(codes), Some(messages)) = (body(file, "fn as_str(self)"), body(file, "fn message(self)")) else {
                continue;
            };
            let messages = arms(messages);
            for (variant, code) in arms(codes) {
                let message = messages.iter().find(|(other, _)| *other == variant).map(|(_, message)| message.clone());
                found.push((variant, code, message.unwrap_or_default()));
            }
        }
        found
    }

    /// The violations of HTTP/1, whose code, status and message stand with each of them.
    fn read_violations(&mut self) {
        let file = self.files.iter().find(|file| file.code.contains("fn code(self)")).unwrap();
        let (codes, statuses) = (body(file, "fn code(self)").unwrap(), body(file, "fn status(self)").unwrap());
        let mut all = Vec::new();
        for (name, code) in arms(codes) {
            let pattern = format!("Self::{name}");
            let mut all_of = statuses.match_indices(&pattern).map(|(at, _)| at);
            let own = all_of.find(|at| word(&statuses[at + 6..]) == name);
            let from = own.or_else(|| statuses.find("_ =>")).unwrap();
            let behind = statuses[from..].split_once("StatusCode::").unwrap().1;
            let mut errors = file.code.split("#[error(").skip(1);
            let message =
                errors.find(|rest| rest.split_once(")]").is_some_and(|(_, rest)| word(rest.trim_start()) == name));
            let message = message.map(|text| literals(text).remove(0));
            all.push((code, status(&format!("StatusCode::{}", word(behind))), message));
        }
        for (code, status, message) in all {
            let site = Site { status, kind: "InvalidRequest".to_owned(), code: String::new(), message: String::new() };
            self.add(&code, &site, message.as_deref());
        }
    }
}

/// Body of the first method of a file that is declared so.
fn body<'f>(file: &'f File, declared: &str) -> Option<&'f str> {
    let behind = file.code.split(declared).nth(1)?;
    behind.split("\n    }\n").next()
}

/// Variants of a `match` over `self`, each with the text of its arm.
fn arms(body: &str) -> Vec<(String, String)> {
    let pieces: Vec<&str> = body.split("=>").collect();
    let arm = |pair: &[&str]| {
        let text = literals(pair[1]).into_iter().next()?;
        Some(pair[0].split("Self::").skip(1).map(word).map(|variant| (variant, text.clone())).collect::<Vec<_>>())
    };
    pieces.windows(2).filter_map(arm).flatten().collect()
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

impl Site {
    /// True if code or message are parameters, or the message repeats one.
    fn depends_on(&self, parameters: &[String]) -> bool {
        let repeats = |name: &String| self.message.contains(&format!("{{{name}}}"));
        parameter_of(parameters, &self.code).is_some()
            || parameter_of(parameters, &self.message).is_some()
            || parameters.iter().any(repeats)
    }
}

fn parameter_of(parameters: &[String], expression: &str) -> Option<(usize, usize, bool)> {
    parameters.iter().enumerate().find_map(|(n, pattern)| {
        let mut names = pattern.trim_matches(['(', ')']).split(',').map(str::trim);
        Some((n, names.position(|name| name == expression)?, pattern.starts_with('(')))
    })
}

fn found() -> BTreeMap<String, Found> {
    let mut reader = Reader { files: files(&["gateway/src", "plugins"]), found: BTreeMap::new() };
    for file in 0..reader.files.len() {
        let code = reader.files[file].code.clone();
        for (name, is_whole) in [("Refusal::new", true), ("Refusal::invalid", false)] {
            for call in calls(&code, name) {
                let mut arguments = call.arguments.clone();
                if !is_whole {
                    arguments
                        .splice(0..0, ["StatusCode::BAD_REQUEST".to_owned(), "ErrorKind::InvalidRequest".to_owned()]);
                }
                let [status_text, kind, code, message] = <[String; 4]>::try_from(arguments).unwrap();
                let site = Site { status: status(&status_text), kind, code, message };
                reader.read(file, call.at, &site, 4);
            }
        }
        for at in code.match_indices("error_code = Some(\"").map(|(at, _)| at) {
            let code = literals(&code[at..]).remove(0);
            let status = (!DEPENDS.iter().any(|(depends, ..)| *depends == code)).then_some(500);
            let site = Site { status, kind: "Internal".to_owned(), code: String::new(), message: String::new() };
            reader.add(&code, &site, None);
        }
    }
    reader.read_violations();
    for (code, statuses, _) in DEPENDS {
        // A code that is gone has no row either.
        let Some(found) = reader.found.get_mut(*code) else { continue };
        let kinds: Vec<&str> = found.answers.iter().filter(|(status, _)| *status == 0).map(|(_, kind)| *kind).collect();
        found.answers.retain(|(status, _)| *status != 0);
        for status in *statuses {
            found.answers.extend(kinds.iter().map(|kind| {
                (*status, if *status < 500 { openai_type(kind, *status, code) } else { by_status(*status) })
            }));
        }
    }
    for found in reader.found.values_mut().filter(|found| found.answers.iter().any(|(status, _)| *status > 0)) {
        found.answers.retain(|(status, _)| *status > 0);
    }
    reader.found
}

/// Renders the page.
pub(super) fn page() -> String {
    let found = found();
    assert!(found.len() > 50, "only {} codes were found: the sources are read wrongly", found.len());
    let rows: Vec<&str> = ROWS.iter().map(|(code, ..)| *code).collect();
    compare("error codes", &rows, found.keys().map(String::as_str));
    let mut page = format!(
        "# Error codes

{GENERATED}

A refusal of the gateway has a status, a code, and a message that says what was found and what to do. Paths of OpenAI's API get
OpenAI's shape, where official clients choose their exception by the status and `type`:

```json
{{\"error\": {{\"message\": \"...\", \"type\": \"rate_limit_exceeded\", \"param\": null, \"code\": \"rate_limit_exceeded\"}}}}
```

Other paths get a problem (RFC 9457, `application/problem+json`):

```json
{{\"type\": \"about:blank\", \"title\": \"Too Many Requests\", \"status\": 429, \"detail\": \"...\", \"code\": \"rate_limit_exceeded\", \"requestId\": \"...\"}}
```

An event stream that has begun ends with an error event of the same shape. The code is also `errorCode` of the
[access log](logs.md#access-log) and `error.type` of the [request's span](spans.md). Answers of servers pass as they are, with their own
errors. 429 and 503 have `Retry-After` and `retry-after-ms` ([headers](headers.md)).

| code | status | cause |
|---|---|---|
"
    );
    let statuses = |found: &Found| {
        assert!(found.answers.iter().all(|(status, _)| *status > 0), "write a row of DEPENDS for {found:?}");
        let all = found.answers.iter().map(|(status, _)| status.to_string());
        all.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    };
    for (code, cause, _) in ROWS {
        let all = statuses(&found[*code]);
        let all = if all.is_empty() { "the backend's" } else { &all };
        writeln!(page, "| [`{code}`](#{code}) | {all} | {} |", cell(cause)).unwrap();
    }
    for (code, cause, remedy) in ROWS {
        let found = &found[*code];
        let types: BTreeSet<&str> = found.answers.iter().map(|(_, kind)| *kind).collect();
        let types = types.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ");
        let decides = DEPENDS.iter().find(|(of, ..)| of == code).map_or("", |(.., text)| *text);
        let status = match statuses(found) {
            none if none.is_empty() => String::new(),
            all => format!("Status {all}, type {types}. "),
        };
        let line = format!("{status}{decides}");
        write!(page, "\n## `{code}`\n\n{}\n\n{cause} {remedy}\n", line.trim_end()).unwrap();
        if !found.messages.is_empty() {
            page.push_str("\n```text\n");
            for message in found.messages.iter().take(SHOWN) {
                writeln!(page, "{}", message.replace('\n', " ")).unwrap();
            }
            page.push_str("```\n");
            if found.messages.len() > SHOWN {
                writeln!(page, "\nand {} messages like these.", found.messages.len() - SHOWN).unwrap();
            }
        }
    }
    page
}

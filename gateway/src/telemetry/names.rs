//! Names of span attributes: OpenTelemetry semantic conventions 1.38 (HTTP) and the GenAI conventions of
//! open-telemetry/semantic-conventions-genai; ours start with `spillway.`.

#![allow(missing_docs, reason = "each constant is the name it holds")]

pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub const HTTP_ROUTE: &str = "http.route";
pub const URL_PATH: &str = "url.path";
pub const URL_SCHEME: &str = "url.scheme";
pub const SERVER_ADDRESS: &str = "server.address";
pub const SERVER_PORT: &str = "server.port";
pub const CLIENT_ADDRESS: &str = "client.address";
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub const HTTP_REQUEST_RESEND_COUNT: &str = "http.request.resend_count";
pub const ERROR_TYPE: &str = "error.type";
pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";
pub const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
pub const GEN_AI_PROVIDER_NAME: &str = "gen_ai.provider.name";
pub const GEN_AI_REQUEST_MODEL: &str = "gen_ai.request.model";
pub const GEN_AI_REQUEST_STREAM: &str = "gen_ai.request.stream";
pub const GEN_AI_RESPONSE_ID: &str = "gen_ai.response.id";
pub const GEN_AI_RESPONSE_MODEL: &str = "gen_ai.response.model";
pub const GEN_AI_RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub const GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub const GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS: &str = "gen_ai.usage.cache_creation.input_tokens";
pub const GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub const GEN_AI_USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const GEN_AI_USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub const SPILLWAY_REQUEST_ID: &str = "spillway.request.id";
pub const SPILLWAY_CONSUMER: &str = "spillway.consumer";
pub const SPILLWAY_BACKEND: &str = "spillway.backend";
pub const SPILLWAY_ENDPOINT: &str = "spillway.endpoint";
pub const SPILLWAY_ENDPOINT_IN_FLIGHT: &str = "spillway.endpoint.in_flight";
pub const SPILLWAY_POLICY: &str = "spillway.policy";
pub const SPILLWAY_ADMISSION: &str = "spillway.admission";
pub const SPILLWAY_SPILLED: &str = "spillway.spilled";
pub const SPILLWAY_SPILL_REASON: &str = "spillway.spill.reason";
pub const SPILLWAY_ATTEMPTS: &str = "spillway.attempts";
pub const SPILLWAY_QUEUE_PRIORITY: &str = "spillway.queue.priority";
pub const SPILLWAY_QUEUE_OUTCOME: &str = "spillway.queue.outcome";
pub const SPILLWAY_QUEUE_SECONDS: &str = "spillway.queue.seconds";
pub const SPILLWAY_GIVEN_UP: &str = "spillway.attempt.given_up";
pub const SPILLWAY_SOCKET_END: &str = "spillway.socket.end";
pub const SPILLWAY_RESUMED: &str = "spillway.resumed";

//! Calls that callers make, and what becomes of them before each kind of backend.

/// Kinds of backends, in the order of the columns: a built-in model, and the values of `backends[].protocol`.
pub const BACKENDS: [&str; 7] = ["built-in model", "openai", "anthropic", "ollama", "oip", "oip-grpc", "http"];

/// End of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The server gets the call as it came.
    Passes,
    /// The server gets a call of its own API.
    Translated,
    /// The gateway answers by itself or by a built-in model.
    Answered,
    /// The gateway refuses the call with this status and code.
    Refused(&'static str),
}

impl Fate {
    /// Cell of the table.
    pub fn text(self) -> String {
        match self {
            Self::Passes => "passes".to_owned(),
            Self::Translated => "translated".to_owned(),
            Self::Answered => "answered".to_owned(),
            Self::Refused(how) => {
                let (status, code) = how.split_once(' ').unwrap();
                format!("{status} `{code}`")
            }
        }
    }
}

/// Framing of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.1 with this body, and its type.
    Http(&'static str, &'static str),
    /// HTTP/1.1 that asks for WebSocket.
    Socket,
    /// gRPC over HTTP/2 with this message.
    Grpc(&'static [u8]),
}

/// A call, and its fates in the order of [`BACKENDS`].
#[derive(Debug)]
pub struct Call {
    pub api: &'static str,
    pub method: &'static str,
    pub target: &'static str,
    /// True if the caller sends `anthropic-version`.
    pub is_anthropic: bool,
    pub kind: Kind,
    pub fates: Fates,
}

impl Call {
    /// Method and path, as the page names the call.
    pub fn name(&self) -> String {
        let path = self.target.split('?').next().unwrap();
        let path = path.replace("smollm2", "{model}").replace("minilm", "{model}").replace("resp_1", "{id}");
        match self.kind {
            // Of a call that differs from another by a field alone.
            Kind::Http(_, body) if body.contains("\"raw\":true") => format!("{} {path}, raw", self.method),
            Kind::Http(..) => format!("{} {path}", self.method),
            Kind::Socket => format!("WebSocket {path}"),
            Kind::Grpc(_) => path.trim_start_matches('/').to_owned(),
        }
    }
}

type Fates = [Fate; BACKENDS.len()];

const P: Fate = Fate::Passes;
const T: Fate = Fate::Translated;
const A: Fate = Fate::Answered;
/// The API of the server has no such call, or the built-in model has not.
const NO: Fate = Fate::Refused("404 unsupported_endpoint");
/// The servers' API has no counterpart of a field.
const FIELD: Fate = Fate::Refused("400 unsupported_parameter");
/// The call exists, but a built-in model does not do it.
const NEVER: Fate = Fate::Refused("501 unsupported_endpoint");
/// The call of the Open Inference Protocol has no counterpart over the other transport.
const OTHER: Fate = Fate::Refused("501 unsupported_transport");
/// No upgrade to WebSocket without a server, or over HTTP/2 to a server.
const STAYS: Fate = Fate::Refused("501 upgrade_not_supported");

const JSON: &str = "application/json";
const NOTHING: Kind = Kind::Http("", "");

const fn json(body: &'static str) -> Kind {
    Kind::Http(JSON, body)
}

/// A text for the embedder, as a `ModelInferRequest`: `model_name` (1), and an input (5) with `name` (1), `datatype` (2),
/// `shape` (3) and `contents` (5), whose `bytes_contents` is 8.
const INFER: &[u8] = b"\x0a\x06minilm\x2a\x16\x0a\x04text\x12\x05BYTES\x1a\x01\x01\x2a\x04\x42\x02hi";

const CHAT: Kind = json(r#"{"model":"smollm2","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}"#);
const COUNT: Kind = json(r#"{"model":"smollm2","messages":[{"role":"user","content":"hi"}]}"#);
const OLLAMA_CHAT: Kind = json(
    r#"{"model":"smollm2","stream":false,"options":{"num_predict":2},"messages":[{"role":"user","content":"hi"}]}"#,
);
const OLLAMA_PROMPT: Kind = json(r#"{"model":"smollm2","stream":false,"options":{"num_predict":2},"prompt":"hi"}"#);
const OLLAMA_RAW: Kind =
    json(r#"{"model":"smollm2","stream":false,"options":{"num_predict":2},"prompt":"hi","raw":true}"#);
const FORM: &str = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsmollm2\r\n--x--\r\n";

const fn call(api: &'static str, method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    Call { api, method, target, is_anthropic: false, kind, fates }
}

const fn claude(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    Call { is_anthropic: true, ..call("Anthropic", method, target, kind, fates) }
}

const fn openai(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("OpenAI", method, target, kind, fates)
}

const fn ollama(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("Ollama", method, target, kind, fates)
}

const fn azure(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("Azure OpenAI, behind `urlRewrite: {azureOpenai: true}`", method, target, kind, fates)
}

const fn predict(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("TensorFlow Serving, TorchServe", method, target, kind, fates)
}

const fn oip(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("Open Inference Protocol", method, target, kind, fates)
}

const fn other(method: &'static str, target: &'static str, kind: Kind, fates: Fates) -> Call {
    call("Others", method, target, kind, fates)
}

#[rustfmt::skip]
const CALLS: &[Call] = &[
    openai("POST", "/v1/chat/completions", CHAT, [A, P, T, P, NO, NO, P]),
    openai("POST", "/v1/completions", json(r#"{"model":"smollm2","max_tokens":2,"prompt":"hi"}"#), [A, P, T, P, NO, NO, P]),
    openai("POST", "/v1/embeddings", json(r#"{"model":"minilm","input":"hi"}"#), [A, P, NO, P, NO, NO, P]),
    openai("POST", "/v1/rerank", json(r#"{"model":"judge","query":"a","documents":["b"]}"#), [A, P, NO, P, NO, NO, P]),
    openai("POST", "/v1/responses", json(r#"{"model":"smollm2","max_output_tokens":2,"input":"hi"}"#), [A, P, T, P, NO, NO, P]),
    openai("POST", "/v1/responses/input_tokens", json(r#"{"model":"smollm2","input":"hi"}"#), [A, P, T, P, NO, NO, P]),
    openai("GET", "/v1/responses/resp_1", NOTHING, [NO, P, P, P, P, P, P]),
    openai("GET", "/v1/models", NOTHING, [A, A, A, A, P, P, P]),
    openai("POST", "/v1/moderations", json(r#"{"model":"smollm2","input":"hi"}"#), [NO, P, P, P, P, P, P]),
    openai("POST", "/v1/audio/speech", json(r#"{"model":"smollm2","input":"hi","voice":"alloy"}"#), [NO, P, P, P, P, P, P]),
    openai("POST", "/v1/audio/transcriptions", Kind::Http("multipart/form-data; boundary=x", FORM), [NO, P, P, P, P, P, P]),
    openai("POST", "/v1/images/generations", json(r#"{"model":"smollm2","prompt":"hi"}"#), [NO, P, P, P, P, P, P]),
    openai("GET", "/v1/realtime?model=smollm2", Kind::Socket, [STAYS, P, P, P, P, STAYS, P]),
    openai("GET", "/v1/responses", Kind::Socket, [STAYS, P, P, P, P, STAYS, P]),
    azure("POST", "/openai/deployments/smollm2/chat/completions?api-version=2024-10-21", CHAT, [A, P, T, P, NO, NO, P]),
    azure("POST", "/openai/v1/chat/completions", CHAT, [A, P, T, P, NO, NO, P]),
    claude("POST", "/v1/messages", CHAT, [A, T, P, P, NO, NO, P]),
    claude("POST", "/v1/messages/count_tokens", COUNT, [A, T, P, P, NO, NO, P]),
    claude("GET", "/v1/models", NOTHING, [A, A, A, A, P, P, P]),
    ollama("POST", "/api/chat", OLLAMA_CHAT, [A, T, T, P, NO, NO, P]),
    ollama("POST", "/api/generate", OLLAMA_PROMPT, [A, T, T, P, NO, NO, P]),
    ollama("POST", "/api/generate", OLLAMA_RAW, [A, FIELD, FIELD, P, NO, NO, P]),
    ollama("POST", "/api/embed", json(r#"{"model":"minilm","input":"hi"}"#), [A, T, NO, P, NO, NO, P]),
    ollama("GET", "/api/tags", NOTHING, [A, A, A, A, P, P, P]),
    ollama("POST", "/api/show", json(r#"{"model":"smollm2"}"#), [A, P, P, P, P, P, P]),
    ollama("GET", "/api/version", NOTHING, [A, P, P, P, P, P, P]),
    ollama("POST", "/api/pull", json(r#"{"model":"smollm2"}"#), [NEVER, P, P, P, P, P, P]),
    oip("POST", "/v2/models/minilm/infer", json(r#"{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["hi"]}]}"#), [A, P, P, P, P, T, P]),
    oip("GET", "/v2/models/minilm", NOTHING, [A, P, P, P, P, T, P]),
    oip("GET", "/v2/health/ready", NOTHING, [A, P, P, P, P, T, P]),
    oip("POST", "/v2/repository/index", json("{}"), [NEVER, P, P, P, P, OTHER, P]),
    oip("POST", "/v2/models/minilm/generate", json(r#"{"text_input":"hi"}"#), [NEVER, P, P, P, P, OTHER, P]),
    oip("POST", "/inference.GRPCInferenceService/ModelInfer", Kind::Grpc(INFER), [A, P, P, P, T, P, P]),
    oip("POST", "/inference.GRPCInferenceService/ModelMetadata", Kind::Grpc(b"\x0a\x06minilm"), [A, P, P, P, T, P, P]),
    oip("POST", "/inference.GRPCInferenceService/ServerReady", Kind::Grpc(b""), [A, P, P, P, T, P, P]),
    oip("POST", "/inference.GRPCInferenceService/RepositoryIndex", Kind::Grpc(b""), [NEVER, P, P, P, OTHER, P, P]),
    predict("POST", "/v1/models/smollm2:predict", json(r#"{"instances":[1]}"#), [NO, P, P, P, P, P, P]),
    predict("GET", "/v1/models/smollm2", NOTHING, [A, A, A, A, P, P, P]),
    predict("POST", "/predictions/smollm2", Kind::Http("application/octet-stream", "x"), [NO, P, P, P, P, P, P]),
    other("GET", "/socket", Kind::Socket, [STAYS, P, P, P, P, STAYS, P]),
    other("POST", "/package.Service/Call", Kind::Grpc(b"\x0a\x01x"), [NO, P, P, P, P, P, P]),
    other("POST", "/form", Kind::Http("text/plain", "hello"), [NO, P, P, P, P, P, P]),
];

/// Calls of the table.
pub fn calls() -> &'static [Call] {
    CALLS
}

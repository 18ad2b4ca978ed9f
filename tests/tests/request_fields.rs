//! Each field of a request that the official clients know is translated, refused by its name, or named as dropped. The lists
//! come from the clients themselves, so that a new field fails here until it is in one of the three groups.

use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, asked, claude, gpt, script};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Requests of one API: its path, its least request, and a request with each of its fields.
struct Api {
    /// Names of its fields in the list of the clients.
    fields: &'static str,
    path: &'static str,
    least: Value,
    /// Fields with a value that asks for something, and what else the request needs for it.
    samples: Value,
}

fn function() -> Value {
    json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
}

fn chat() -> Api {
    Api {
        fields: "chat",
        path: "/v1/chat/completions",
        least: json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        samples: json!({
            "audio": {"audio": {"voice": "x", "format": "wav"}},
            "frequency_penalty": {"frequency_penalty": 0.5},
            "function_call": {"function_call": {"name": "f"}},
            "functions": {"functions": [{"name": "f"}]},
            "logit_bias": {"logit_bias": {"5": 1}},
            "logprobs": {"logprobs": true},
            "max_completion_tokens": {"max_completion_tokens": 7},
            "max_tokens": {"max_tokens": 7},
            "messages": {"messages": [{"role": "user", "content": "other"}]},
            "metadata": {"metadata": {"a": "b"}},
            "modalities": {"modalities": ["audio"]},
            "model": {"model": "other"},
            "moderation": {"moderation": {"model": "x"}},
            "n": {"n": 2},
            "parallel_tool_calls": {"parallel_tool_calls": false, "tools": function()},
            "prediction": {"prediction": {"type": "content", "content": "x"}},
            "presence_penalty": {"presence_penalty": 0.5},
            "prompt_cache_key": {"prompt_cache_key": "k"},
            "prompt_cache_options": {"prompt_cache_options": {"mode": "explicit"}},
            "prompt_cache_retention": {"prompt_cache_retention": "24h"},
            "reasoning_effort": {"reasoning_effort": "low"},
            "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
            "safety_identifier": {"safety_identifier": "u"},
            "seed": {"seed": 5},
            "service_tier": {"service_tier": "flex"},
            "stop": {"stop": ["x"]},
            "store": {"store": true},
            "stream": {"stream": true},
            "stream_options": {"stream_options": {"include_obfuscation": true}, "stream": true},
            "temperature": {"temperature": 0.5},
            "tool_choice": {"tool_choice": "required", "tools": function()},
            "tools": {"tools": function()},
            "top_logprobs": {"top_logprobs": 2},
            "top_p": {"top_p": 0.5},
            "user": {"user": "u"},
            "verbosity": {"verbosity": "low"},
            "web_search_options": {"web_search_options": {}}
        }),
    }
}

fn responses() -> Api {
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}]);
    Api {
        fields: "responses",
        path: "/v1/responses",
        least: json!({"model": "m", "input": "hi"}),
        samples: json!({
            "access_programs": {"access_programs": {"cyber": "standard"}},
            "background": {"background": true},
            "background_options": {"background_options": {"completion_window": "2h"}},
            "context_management": {"context_management": [{"type": "compaction"}]},
            "conversation": {"conversation": "c"},
            "image": {"image": {}},
            "include": {"include": ["file_search_call.results"]},
            "input": {"input": "other"},
            "instructions": {"instructions": "x"},
            "max_output_tokens": {"max_output_tokens": 7},
            "max_tool_calls": {"max_tool_calls": 2},
            "metadata": {"metadata": {"a": "b"}},
            "model": {"model": "other"},
            "moderation": {"moderation": {"model": "x"}},
            "parallel_tool_calls": {"parallel_tool_calls": false, "tools": tools},
            "previous_response_id": {"previous_response_id": "r"},
            "prompt": {"prompt": {"id": "p"}},
            "prompt_cache_key": {"prompt_cache_key": "k"},
            "prompt_cache_options": {"prompt_cache_options": {"mode": "explicit"}},
            "prompt_cache_retention": {"prompt_cache_retention": "24h"},
            "reasoning": {"reasoning": {"effort": "low"}},
            "safety_identifier": {"safety_identifier": "u"},
            "service_tier": {"service_tier": "flex"},
            "store": {"store": true},
            "stream": {"stream": true},
            "stream_options": {"stream_options": {"include_obfuscation": true}, "stream": true},
            "temperature": {"temperature": 0.5},
            "text": {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}},
            "tool_choice": {"tool_choice": "required", "tools": tools},
            "tools": {"tools": tools},
            "top_logprobs": {"top_logprobs": 2},
            "top_p": {"top_p": 0.5},
            "truncation": {"truncation": "auto"},
            "user": {"user": "u"}
        }),
    }
}

fn messages() -> Api {
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    Api {
        fields: "messages",
        path: "/v1/messages",
        least: json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
        samples: json!({
            "cache_control": {"cache_control": {"type": "ephemeral"}},
            "container": {"container": "c"},
            "diagnostics": {"diagnostics": {"previous_message_id": "m"}},
            "inference_geo": {"inference_geo": "eu"},
            "max_tokens": {"max_tokens": 7},
            "messages": {"messages": [{"role": "user", "content": "other"}]},
            "metadata": {"metadata": {"user_id": "u"}},
            "model": {"model": "other"},
            "output_config": {"output_config": {"effort": "low"}},
            "service_tier": {"service_tier": "auto"},
            "speed": {"speed": "fast"},
            "stop_sequences": {"stop_sequences": ["x"]},
            "stream": {"stream": true},
            "system": {"system": "x"},
            "thinking": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "tool_choice": {"tool_choice": {"type": "any"}, "tools": tools},
            "tools": {"tools": tools},
            "user_profile_id": {"user_profile_id": "u"},
            "workspace_id": {"workspace_id": "w"}
        }),
    }
}

fn ollama_chat() -> Api {
    Api {
        fields: "ollamaChat",
        path: "/api/chat",
        least: json!({"model": "m", "stream": false, "messages": [{"role": "user", "content": "hi"}]}),
        samples: json!({
            "format": {"format": {"type": "object"}},
            "keep_alive": {"keep_alive": "5m"},
            "logprobs": {"logprobs": true},
            "messages": {"messages": [{"role": "user", "content": "other"}]},
            "model": {"model": "other"},
            "options": {"options": {"temperature": 0.5}},
            "stream": {"stream": true},
            "think": {"think": "low"},
            "tools": {"tools": function()},
            "top_logprobs": {"top_logprobs": 2}
        }),
    }
}

fn ollama_generate() -> Api {
    Api {
        fields: "ollamaGenerate",
        path: "/api/generate",
        least: json!({"model": "m", "stream": false, "prompt": "hi"}),
        samples: json!({
            "context": {"context": [1]},
            "format": {"format": {"type": "object"}},
            "height": {"height": 10},
            "images": {"images": ["iVBORw0KGgo="]},
            "keep_alive": {"keep_alive": 5},
            "logprobs": {"logprobs": true},
            "model": {"model": "other"},
            "options": {"options": {"temperature": 0.5}},
            "prompt": {"prompt": "other"},
            "raw": {"raw": true},
            "steps": {"steps": 4},
            "stream": {"stream": true},
            "suffix": {"suffix": "x"},
            "system": {"system": "x"},
            "template": {"template": "x"},
            "think": {"think": "low"},
            "top_logprobs": {"top_logprobs": 2},
            "width": {"width": 10}
        }),
    }
}

fn ollama_options() -> Api {
    let flags = [
        "embedding_only",
        "f16_kv",
        "logits_all",
        "low_vram",
        "numa",
        "penalize_newline",
        "use_mlock",
        "use_mmap",
        "vocab_only",
    ];
    let whole = [
        "main_gpu",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "num_keep",
        "num_predict",
        "num_thread",
        "repeat_last_n",
        "seed",
        "top_k",
        "mirostat",
    ];
    let numbers = [
        "frequency_penalty",
        "mirostat_eta",
        "mirostat_tau",
        "presence_penalty",
        "repeat_penalty",
        "temperature",
        "tfs_z",
        "top_p",
        "typical_p",
    ];
    let mut samples = json!({"options.stop": {"options": {"stop": ["x"]}}});
    for (names, value) in [(&flags[..], json!(true)), (&whole[..], json!(2)), (&numbers[..], json!(0.5))] {
        for name in names {
            samples[format!("options.{name}")] = json!({"options": {*name: value}});
        }
    }
    Api { fields: "ollamaOptions", samples, ..ollama_chat() }
}

fn with(least: &Value, fields: &Value) -> Value {
    let mut body = least.clone();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Fails unless a field of a request reaches the server in some form, is refused by its name, or is named as dropped.
async fn check(api: &Api, field: &str, server: &str, gateway: &Gateway, upstream: &Upstream) {
    let sample =
        api.samples.get(field).unwrap_or_else(|| panic!("new field `{field}` of {}: add a sample", api.fields));
    let top = field.split('.').next().unwrap();
    let mut without = with(&api.least, sample);
    match api.least.get(top) {
        Some(value) => without[top] = value.clone(),
        None => drop(without.as_object_mut().unwrap().remove(top)),
    }
    let baseline = gateway.client().post(api.path, &[JSON], without.to_string()).await;
    assert_eq!(baseline.status, 200, "{server} {field}: {}", baseline.text());
    let plain = asked(&upstream.last());
    let answer = gateway.client().post(api.path, &[JSON], with(&api.least, sample).to_string()).await;
    if answer.status == 400 {
        assert!(
            answer.text().contains(&format!("`{field}")),
            "{server} {field}: refused without its name: {}",
            answer.text()
        );
        return;
    }
    assert_eq!(answer.status, 200, "{server} {field}: {}", answer.text());
    let named = answer.header("x-spillway-dropped").split(", ").any(|dropped| dropped.starts_with(field));
    assert!(named || asked(&upstream.last()) != plain, "{server} {field}: lost in silence");
}

/// Fields within others, and choices between tools that are not there, each with the name under which it is refused or dropped.
fn inner() -> [(Api, Value); 4] {
    let message = |fields: Value| json!({"messages": [with(&json!({"role": "user", "content": "hi"}), &fields)]});
    let said = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let chat_format = |fields: Value| {
        let schema = with(&json!({"name": "a", "schema": {}}), &fields);
        json!({"response_format": {"type": "json_schema", "json_schema": schema}})
    };
    let tool =
        |fields: Value| json!({"tools": [with(&json!({"name": "f", "input_schema": {"type": "object"}}), &fields)]});
    [
        (
            chat(),
            json!({
                "messages[0].name": message(json!({"name": "n"})),
                "messages[0].other": message(json!({"other": 1})),
                "messages[0].content[0].cache_control": said(json!({"type": "text", "text": "hi", "cache_control": {}})),
                "messages[0].content[0].image_url.detail":
                    said(json!({"type": "image_url", "image_url": {"url": "http://a/b", "detail": "low"}})),
                "response_format.json_schema.description": chat_format(json!({"description": "d"})),
                "response_format.json_schema.other": chat_format(json!({"other": 1})),
                "response_format.other": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}, "other": 1}},
                "tool_choice": {"tool_choice": "none"},
                "parallel_tool_calls": {"parallel_tool_calls": false},
                "stream_options.other": {"stream": true, "stream_options": {"other": 1}},
                "tools[0].function.other": {"tools": [{"type": "function", "function": {"name": "f", "other": 1}}]},
                "tools[0].other": {"tools": [{"type": "function", "function": {"name": "f"}, "other": 1}]}
            }),
        ),
        (
            responses(),
            json!({
                "tool_choice": {"tool_choice": "auto"},
                "parallel_tool_calls": {"parallel_tool_calls": false},
                "text.format.other": {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "other": 1}}},
                "text.other": {"text": {"other": 1}},
                "reasoning.other": {"reasoning": {"other": 1}},
                "reasoning.summary": {"reasoning": {"summary": "auto"}},
                "input[0].other": {"input": [{"role": "user", "content": "hi", "other": 1}]}
            }),
        ),
        (
            messages(),
            json!({
                "tool_choice": {"tool_choice": {"type": "none"}},
                "thinking": {"thinking": {"type": "disabled"}},
                "thinking.display": {"thinking": {"type": "adaptive", "display": "omitted"}},
                "thinking.other": {"thinking": {"type": "adaptive", "other": 1}},
                "output_config.format.other": {"output_config": {"format": {"type": "json_schema", "schema": {}, "other": 1}}},
                "output_config.other": {"output_config": {"other": 1}},
                "metadata.other": {"metadata": {"other": 1}},
                "messages[0].other": message(json!({"other": 1})),
                "messages[0].content[0].cache_control": said(json!({"type": "text", "text": "hi", "cache_control": {}})),
                "messages[0].content[0].citations": said(json!({"type": "text", "text": "hi", "citations": [1]})),
                "tools[0].cache_control": tool(json!({"cache_control": {}})),
                "tools[0].input_examples": tool(json!({"input_examples": [{}]})),
                "tools[0].other": tool(json!({"other": 1}))
            }),
        ),
        (
            ollama_chat(),
            json!({
                "think": {"think": false},
                "messages[0].other": message(json!({"other": 1})),
                "tools[0].function.other": {"tools": [{"type": "function", "function": {"name": "f", "other": 1}}]},
                "options.other": {"options": {"other": 1}}
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_within_another_is_lost_in_silence() {
    for (protocol, own) in [("protocol: anthropic", "messages"), ("protocol: openai, apis: [chat]", "chat")] {
        let upstream = if own == "chat" { Upstream::start(gpt).await } else { Upstream::start(claude).await };
        let gateway = Gateway::start(&format!(
            "backends: [{{name: b, endpoints: [{{url: \"{}\"}}], {protocol}}}]\nroutes: [{{name: r, backendRefs: [{{name: b}}]}}]\n",
            upstream.url()
        ))
        .await;
        for (api, samples) in inner().iter().filter(|(api, _)| api.fields != own) {
            for (field, sample) in samples.as_object().unwrap() {
                let sent = with(&api.least, sample);
                let answer = gateway.client().post(api.path, &[JSON], sent.to_string()).await;
                let dropped = answer.header("x-spillway-dropped").split(", ").any(|dropped| dropped == field);
                let refused = answer.status == 400 && answer.text().contains(&format!("`{field}`"));
                // Servers of Anthropic's API have a word for no thinking.
                let reaches = field.starts_with("think") && asked(&upstream.last())["thinking"]["type"] == "disabled";
                assert!(
                    dropped || refused || reaches,
                    "{own} {} {field}: {} {}",
                    api.path,
                    answer.status,
                    answer.text()
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_of_a_tool_needs_tools() {
    let upstream = Upstream::start(claude).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: anthropic, dropFields: [tools], endpoints: [{{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: b}}]}}]\n",
        upstream.url()
    ))
    .await;
    let send = async |api: &Api, fields: Value| {
        gateway.client().post(api.path, &[JSON], with(&api.least, &fields).to_string()).await
    };
    for api in [chat(), responses()] {
        let refused = send(&api, json!({"tool_choice": "required"})).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(refused.text().contains("`tool_choice` needs `tools`"), "{}", refused.text());
    }
    // Its tool, which only a provider has, is dropped by the operator, and the choice with it.
    let answer = send(&responses(), json!({"tool_choice": "required", "tools": [{"type": "web_search"}]})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-spillway-dropped"), "tools[0], tool_choice");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_openais_api_are_written_to_in_their_words() {
    let upstream = Upstream::start(gpt).await;
    for (keys, field, effort) in [
        ("", "max_tokens", Value::Null),
        (", maxTokensField: max_tokens, noReasoning: minimal", "max_tokens", json!("minimal")),
        (", maxTokensField: max_completion_tokens, noReasoning: none", "max_completion_tokens", json!("none")),
    ] {
        let gateway = Gateway::start(&format!(
            "backends: [{{name: b, protocol: openai, apis: [chat], endpoints: [{{url: \"{}\"}}]{keys}}}]\nroutes: [{{backendRefs: [{{name: b}}]}}]\n",
            upstream.url()
        ))
        .await;
        let off = [
            (messages(), json!({"thinking": {"type": "disabled"}}), "thinking"),
            (ollama_chat(), json!({"think": false, "options": {"num_predict": 9}}), "think"),
        ];
        for (api, fields, name) in off {
            let answer = gateway.client().post(api.path, &[JSON], with(&api.least, &fields).to_string()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let asked = asked(&upstream.last());
            assert_eq!((&asked[field], &asked["reasoning_effort"]), (&json!(9), &effort), "{keys} {asked}");
            let dropped = if answer.headers.contains_key("x-spillway-dropped") {
                answer.header("x-spillway-dropped")
            } else {
                ""
            };
            assert_eq!(dropped, if effort.is_null() { name } else { "" });
        }
        // Callers in the words of OpenAI's API say themselves what they mean.
        let sent = with(&responses().least, &json!({"reasoning": {"effort": "none"}, "max_output_tokens": 9}));
        let answer = gateway.client().post("/v1/responses", &[JSON], sent.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let asked = asked(&upstream.last());
        assert_eq!((&asked[field], &asked["reasoning_effort"]), (&json!(9), &json!("none")), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_request_is_lost_in_silence() {
    let (claude, gpt) = (Upstream::start(claude).await, Upstream::start(gpt).await);
    let of = |upstream: &Upstream, backend: &str| {
        format!(
            "backends: [{{name: b, endpoints: [{{url: \"{}\"}}], {backend}}}]\nroutes: [{{name: r, backendRefs: [{{name: b}}]}}]\n",
            upstream.url()
        )
    };
    let to_claude = Gateway::start(&of(&claude, "protocol: anthropic")).await;
    let to_gpt = Gateway::start(&of(&gpt, "protocol: openai, apis: [chat]")).await;
    let known = script("request_fields.py", &to_claude, &[]).await.remove(0);
    for api in [chat(), responses(), messages(), ollama_chat(), ollama_generate(), ollama_options()] {
        let fields = known[api.fields].as_array().unwrap();
        assert!(fields.len() > 5, "{known}");
        for field in fields.iter().map(|field| field.as_str().unwrap()) {
            if api.fields != "messages" {
                check(&api, field, "anthropic", &to_claude, &claude).await;
            }
            if api.fields != "chat" {
                check(&api, field, "openai", &to_gpt, &gpt).await;
            }
        }
    }
}

//! Tests of calls beside the sweep: official clients, real servers, faults.

/// API of the caller, kind of the backend, tests.
pub(super) const FURTHER: &[(&str, &str, &[&str])] = &[
    (
        "OpenAI, chat",
        "built-in model",
        &[
            "inside::the_official_client_is_answered_by_the_model_inside",
            "serving::the_official_client_gets_choices_probabilities_json_and_seeds",
            "tools::the_official_client_gets_the_calls_that_it_asks_for",
            "frameworks::langchain_talks_to_built_in_models_by_four_apis",
            "frameworks::clients_for_node_talk_to_built_in_models",
        ],
    ),
    (
        "OpenAI, chat",
        "openai",
        &[
            "apis::requests_of_a_servers_own_api_pass_byte_for_byte",
            "clients::an_agent_uses_its_tool_and_streams_before_a_server",
            "clients::a_benchmark_of_guidellm_runs_without_an_error",
            "proxying::a_stream_arrives_part_by_part",
        ],
    ),
    (
        "OpenAI, chat",
        "anthropic",
        &[
            "translation::the_openai_client_before_a_server_of_anthropics_api",
            "frameworks::frameworks_use_tools_of_servers_of_the_other_api",
        ],
    ),
    (
        "OpenAI, completions",
        "built-in model",
        &[
            "encoding::the_official_client_gets_vectors_and_continued_texts",
            "inside::a_model_without_a_chat_template_continues_texts_and_holds_no_conversation",
        ],
    ),
    (
        "OpenAI, embeddings",
        "built-in model",
        &[
            "encoding::the_official_client_gets_vectors_and_continued_texts",
            "frameworks::llamaindex_chats_and_embeds_with_built_in_models",
        ],
    ),
    ("OpenAI, rerank", "built-in model", &["reranking::documents_are_ranked_by_the_scores_of_a_plain_forward_pass"]),
    (
        "OpenAI, responses",
        "built-in model",
        &[
            "responses::the_official_client_is_answered_by_the_model_inside",
            "responses::the_official_client_gets_the_calls_that_it_asks_for",
        ],
    ),
    (
        "OpenAI, responses",
        "openai",
        &[
            "responses::what_a_backend_stores_is_asked_of_it",
            "responses::the_usage_of_every_end_is_charged_and_a_cut_stream_ends_with_an_error_event",
            "clients::an_agent_speaks_the_responses_api_to_llama_cpp",
        ],
    ),
    ("OpenAI, models", "built-in model", &["serving::models_are_listed_and_inspected"]),
    (
        "OpenAI, moderations, audio, images",
        "openai",
        &[
            "smaller_operations::they_pass_as_they_come_and_count_by_the_usage_that_they_tell",
            "smaller_operations::they_are_routed_by_model_and_refused_in_the_words_of_the_api",
        ],
    ),
    (
        "OpenAI, realtime and Responses over WebSocket",
        "openai",
        &[
            "websocket::openais_client_of_the_realtime_api_speaks_to_the_model_it_may_use",
            "websocket_usage::openais_client_is_counted_on_both_of_its_sockets_and_stopped_at_its_limit",
            "websocket_usage::openais_client_reads_the_name_of_the_model_that_it_sent",
        ],
    ),
    ("Azure OpenAI", "built-in model", &["azure::the_official_client_for_azure_is_answered_by_the_model_inside"]),
    ("Azure OpenAI", "openai", &["azure::servers_get_the_paths_of_openai"]),
    (
        "Anthropic, messages, counts, models",
        "built-in model",
        &[
            "anthropic::the_official_client_talks_to_a_built_in_model",
            "anthropic::limits_and_lists_are_shown_as_the_caller_reads_them",
            "frameworks::langchain_talks_to_built_in_models_by_four_apis",
            "frameworks::clients_for_node_talk_to_built_in_models",
        ],
    ),
    (
        "Anthropic, messages",
        "openai",
        &[
            "translation::the_anthropic_client_before_a_server_of_openais_api",
            "translation::the_anthropic_client_before_a_real_llama_cpp_server",
            "frameworks::frameworks_use_tools_of_servers_of_the_other_api",
        ],
    ),
    (
        "Anthropic, messages",
        "anthropic",
        &["translation::bytes_of_the_same_api_pass_with_the_model_renamed_and_cost_the_same"],
    ),
    (
        "Ollama",
        "built-in model",
        &[
            "ollama::the_official_client_is_answered_by_the_model_inside",
            "ollama::vectors_and_simple_questions_are_answered",
            "frameworks::langchain_talks_to_built_in_models_by_four_apis",
            "frameworks::clients_for_node_talk_to_built_in_models",
        ],
    ),
    (
        "Ollama",
        "ollama",
        &["ollama::a_backend_is_passed_to_and_its_usage_read", "ollama::a_model_is_renamed_for_the_backend"],
    ),
    (
        "OpenAI, completions and counts",
        "anthropic",
        &["translated_calls::official_clients_before_servers_of_other_apis"],
    ),
    (
        "OpenAI, completions",
        "openai, `apis: [chat]`",
        &["translated_calls::official_clients_before_servers_of_other_apis"],
    ),
    (
        "Anthropic, counts",
        "openai",
        &[
            "translated_calls::official_clients_before_servers_of_other_apis",
            "translated_calls::a_count_is_that_of_the_server_or_none",
        ],
    ),
    ("Ollama, embeddings", "openai", &["translated_calls::official_clients_before_servers_of_other_apis"]),
    ("Ollama", "http", &["ollama::routes_that_call_no_models_keep_the_paths_to_themselves"]),
    (
        "Open Inference Protocol",
        "built-in model",
        &["open_inference::the_official_client_gets_vectors_and_scores_of_built_in_models"],
    ),
    (
        "Open Inference Protocol over HTTP",
        "oip",
        &[
            "open_inference::servers_get_their_own_name_of_the_model_in_the_path",
            "clients::tritonclient_speaks_http_and_grpc_to_mlserver",
        ],
    ),
    (
        "Open Inference Protocol over gRPC",
        "oip-grpc",
        &[
            "open_inference::calls_of_grpc_are_routed_by_the_model_in_their_message",
            "open_inference::a_stream_of_calls_passes_in_both_directions",
            "clients::tritonclient_speaks_http_and_grpc_to_mlserver",
        ],
    ),
    (
        "Open Inference Protocol over HTTP",
        "oip-grpc",
        &[
            "open_inference::the_official_client_reaches_servers_of_the_other_transport",
            "clients::tritonclient_speaks_http_and_grpc_to_mlserver",
        ],
    ),
    (
        "Open Inference Protocol over gRPC",
        "oip",
        &[
            "open_inference::the_official_client_reaches_servers_of_the_other_transport",
            "open_inference::faults_of_servers_of_the_other_transport_are_told_and_passed_over",
            "clients::tritonclient_speaks_http_and_grpc_to_mlserver",
        ],
    ),
    (
        "TensorFlow Serving, TorchServe",
        "http",
        &["open_inference::servers_of_tensorflow_and_pytorch_are_reached_in_their_conventions"],
    ),
    (
        "WebSocket",
        "http",
        &[
            "websocket::the_library_websockets_talks_to_itself_over_plain_connections_and_tls",
            "websocket::clients_of_http2_open_sockets_by_extended_connect",
        ],
    ),
    ("gRPC", "http", &["grpc::a_real_client_reads_the_statuses_of_its_server_and_of_the_gateway"]),
    ("HTTP", "http", &["proxying::bodies_of_every_size_arrive_whole_however_they_are_framed"]),
];

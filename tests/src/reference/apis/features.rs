//! Features of conversations for each pair of a caller's API and a backend, with the tests that show them.

/// APIs of callers and their backends, in the order of the columns.
pub(super) const PAIRS: [&str; 10] = [
    "OpenAI → built-in",
    "OpenAI → `openai`",
    "OpenAI → `anthropic`",
    "Responses → built-in",
    "Responses → `openai`",
    "Anthropic → built-in",
    "Anthropic → `openai`",
    "Anthropic → `anthropic`",
    "Ollama → built-in",
    "Ollama → `ollama`",
];

/// Cell of the table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown {
    /// The tests show the feature.
    Yes(&'static [&'static str]),
    /// The tests show a refusal, with a status and the name of the field.
    Refused(&'static str, &'static [&'static str]),
    /// Neither the gateway nor the APIs of the pair have it.
    Unsupported,
}

impl Shown {
    /// Text of the cell.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Self::Yes(_) => "yes",
            Self::Refused(how, _) => how,
            Self::Unsupported => "unsupported",
        }
    }
}

/// A feature, and its cells in the order of [`PAIRS`].
#[derive(Debug)]
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) cells: [Shown; PAIRS.len()],
}

use Shown::{Refused, Unsupported, Yes};

const OWN: Shown = Yes(&["apis::requests_of_a_servers_own_api_pass_byte_for_byte"]);
const TRANSLATED: Shown = Yes(&["apis::calls_choices_and_ends_are_translated"]);
const FURTHER: Shown = Yes(&["apis::built_in_models_have_features_of_each_api"]);
const OPENAI_CLAUDE: Shown = Yes(&["translation::the_openai_client_before_a_server_of_anthropics_api"]);
const CLAUDE_OPENAI: Shown = Yes(&["translation::the_anthropic_client_before_a_server_of_openais_api"]);
const SERVING: Shown = Yes(&["serving::the_official_client_gets_choices_probabilities_json_and_seeds"]);
const TOOLS: Shown = Yes(&["tools::the_official_client_gets_the_calls_that_it_asks_for"]);
const SEVERAL: Shown =
    Yes(&["tools::the_official_clients_of_four_apis_get_several_calls_at_once_and_send_their_results"]);
const RESPONSES: Shown = Yes(&["responses::the_official_client_is_answered_by_the_model_inside"]);
const RESPONSES_TOOLS: Shown = Yes(&["responses::the_official_client_gets_the_calls_that_it_asks_for"]);
const CLAUDE: Shown = Yes(&["anthropic::the_official_client_talks_to_a_built_in_model"]);
const CLAUDE_TOOLS: Shown = Yes(&["anthropic::the_official_client_gets_the_tool_calls_that_it_asks_for"]);
const OLLAMA: Shown = Yes(&["ollama::the_official_client_is_answered_by_the_model_inside"]);
const ERRORS: Shown = Yes(&["translation::errors_keep_their_details_and_lose_credentials"]);
const REFUSALS: &[&str] = &["inside::what_it_cannot_do_is_refused_by_name"];

const FEATURES: &[Feature] = &[
    Feature {
        name: "stream",
        cells: [
            Yes(&["inside::the_official_client_is_answered_by_the_model_inside"]),
            OWN,
            OPENAI_CLAUDE,
            RESPONSES,
            OWN,
            CLAUDE,
            CLAUDE_OPENAI,
            OWN,
            OLLAMA,
            OWN,
        ],
    },
    Feature {
        name: "tools and their results",
        cells: [TOOLS, OWN, OPENAI_CLAUDE, RESPONSES_TOOLS, OWN, CLAUDE_TOOLS, CLAUDE_OPENAI, OWN, SEVERAL, OWN],
    },
    Feature {
        name: "several calls at once",
        cells: [SEVERAL, OWN, TRANSLATED, SEVERAL, OWN, SEVERAL, TRANSLATED, OWN, SEVERAL, OWN],
    },
    Feature {
        name: "forced tools",
        cells: [TOOLS, OWN, TRANSLATED, RESPONSES_TOOLS, OWN, CLAUDE_TOOLS, TRANSLATED, OWN, Unsupported, Unsupported],
    },
    Feature {
        name: "images in prompts",
        cells: [
            Refused("400 `messages[].content[].type`", REFUSALS),
            OWN,
            OPENAI_CLAUDE,
            Refused(
                "400 `input[].content[].type`",
                &["responses::the_official_client_is_answered_by_the_model_inside"],
            ),
            OWN,
            Refused("400 `image`", &["anthropic::the_official_client_talks_to_a_built_in_model"]),
            CLAUDE_OPENAI,
            OWN,
            Refused("400 `images`", &["ollama::the_official_client_is_answered_by_the_model_inside"]),
            OWN,
        ],
    },
    Feature {
        name: "structured output",
        cells: [SERVING, OWN, OPENAI_CLAUDE, RESPONSES, OWN, FURTHER, CLAUDE_OPENAI, OWN, OLLAMA, OWN],
    },
    Feature {
        name: "reasoning, thinking",
        cells: [
            Unsupported,
            OWN,
            OPENAI_CLAUDE,
            Unsupported,
            OWN,
            Refused("400 `thinking`", &["anthropic::the_official_client_talks_to_a_built_in_model"]),
            CLAUDE_OPENAI,
            OWN,
            Refused("400 `think`", &["ollama::the_official_client_is_answered_by_the_model_inside"]),
            OWN,
        ],
    },
    Feature {
        name: "log probabilities",
        cells: [
            SERVING,
            OWN,
            Refused(
                "400 `logprobs`",
                &["translation::what_has_no_counterpart_is_refused_by_name_or_dropped_and_named"],
            ),
            FURTHER,
            OWN,
            Unsupported,
            Unsupported,
            Unsupported,
            FURTHER,
            OWN,
        ],
    },
    Feature {
        name: "reasons of the end",
        cells: [FURTHER, OWN, TRANSLATED, FURTHER, OWN, CLAUDE, TRANSLATED, OWN, FURTHER, OWN],
    },
    Feature {
        name: "usage",
        cells: [
            Yes(&["inside::the_official_client_is_answered_by_the_model_inside"]),
            OWN,
            OPENAI_CLAUDE,
            RESPONSES,
            OWN,
            CLAUDE,
            CLAUDE_OPENAI,
            Yes(&["translation::bytes_of_the_same_api_pass_with_the_model_renamed_and_cost_the_same"]),
            OLLAMA,
            Yes(&["ollama::a_backend_is_passed_to_and_its_usage_read"]),
        ],
    },
    Feature {
        name: "cached tokens in the usage",
        cells: [SERVING, OWN, OPENAI_CLAUDE, FURTHER, OWN, FURTHER, CLAUDE_OPENAI, OWN, Unsupported, Unsupported],
    },
    Feature { name: "errors", cells: [Yes(REFUSALS), OWN, ERRORS, RESPONSES, OWN, CLAUDE, ERRORS, OWN, OLLAMA, OWN] },
    Feature {
        name: "dropped fields are named",
        cells: [
            Yes(&["spill::what_changes_no_form_of_the_answer_bars_no_spill"]),
            Unsupported,
            Yes(&["translation::what_has_no_counterpart_is_refused_by_name_or_dropped_and_named"]),
            Yes(&["responses::a_request_spills_unless_the_model_inside_cannot_answer_it"]),
            Unsupported,
            FURTHER,
            CLAUDE_OPENAI,
            Unsupported,
            Yes(&["ollama::vectors_and_simple_questions_are_answered"]),
            Unsupported,
        ],
    },
];

/// Features of the table.
pub(super) fn features() -> &'static [Feature] {
    FEATURES
}

//! `messageLimit`: refuses conversations with too many messages.

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use spillway_filter::{BuildContext, Filter, FilterFactory, Flow, Refusal, RequestView, define};

/// Refuses conversations with too many messages.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MessageLimit {
    /// Most messages of a conversation.
    max_messages: NonZeroUsize,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |_: &MessageLimit| Vec::new();
    define("messageLimit", check, |config: MessageLimit, _: &BuildContext<'_>| Ok(Arc::new(config) as Arc<dyn Filter>))
}

/// Part of a body that matters here. Messages are counted and not kept.
#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    messages: Vec<IgnoredAny>,
}

impl Filter for MessageLimit {
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, request: &mut RequestView<'_>) -> Flow {
        let Some(body) = request.body.filter(|body| !body.is_empty()) else { return Flow::Continue };
        let refusal = match serde_json::from_slice::<Conversation>(body) {
            Ok(conversation) if conversation.messages.len() <= self.max_messages.get() => return Flow::Continue,
            Ok(_) => {
                let message = format!("a conversation here has at most {} messages", self.max_messages);
                Refusal::invalid("too_many_messages", message).param("messages")
            }
            Err(_) => Refusal::invalid("not_a_conversation", "the body is not JSON with a list of `messages`"),
        };
        Flow::Refuse(Box::new(refusal))
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    #[test]
    fn a_conversation_with_too_many_messages_is_refused() {
        let filter = FilterBuilder::new().build(&*factory(), &serde_json::json!({"maxMessages": 2}));
        for (body, refused) in [
            (r#"{"messages": [{}, {}]}"#, None),
            (r#"{"messages": [{}, {}, {}]}"#, Some("too_many_messages")),
            (r#"{"messages": 3}"#, Some("not_a_conversation")),
            (r#"{"input": "text to embed"}"#, None),
            ("", None),
        ] {
            let code = match TestRequest::post("/v1/chat/completions", body).decide(&*filter) {
                Flow::Refuse(refusal) => Some(refusal.code),
                _ => None,
            };
            assert_eq!(code, refused, "{body}");
        }
    }

    #[test]
    fn a_limit_of_no_messages_is_a_mistake() {
        assert_eq!(factory().check(&serde_json::json!({"maxMessages": 0})).len(), 1);
    }
}

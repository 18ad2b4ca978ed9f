//! Text in front of and behind the system prompt of a request, whatever API the request is of. A caller must not get around it
//! by another form of its request: where the form has no place for the text, the request is refused.

use std::sync::Arc;

use serde_json::value::RawValue;
use spillway_filter::SystemPlace;

use crate::json_edit::{EditError, Pointer, get, push_front, quoted, set};

/// Texts that are added to the system prompt.
#[derive(Debug, Clone)]
pub(crate) struct SystemText {
    /// Text in front of it; may be empty.
    pub(crate) before: String,
    /// Text behind it; may be empty.
    pub(crate) behind: String,
    places: Arc<Places>,
}

/// Pointers to the members that hold a system prompt.
#[derive(Debug, Clone)]
struct Places {
    messages: Pointer,
    role: Pointer,
    content: Pointer,
    content_end: Pointer,
    system: Pointer,
    system_end: Pointer,
    instructions: Pointer,
    prompt: Pointer,
    raw: Pointer,
    template: Pointer,
    embeddings: Pointer,
}

/// Reason for which the text cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SystemError {
    /// The body cannot be edited.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// A member has a form that takes no text.
    #[error("`{member}` is {found}; expected {expected}")]
    Form {
        /// Name of the member.
        member: &'static str,
        /// Form that it has.
        found: &'static str,
        /// Forms that it may have.
        expected: &'static str,
    },
}

impl SystemText {
    /// Makes the texts; `None` where both are empty.
    pub(crate) fn new(before: &str, behind: &str) -> Result<Option<Self>, String> {
        if before.is_empty() && behind.is_empty() {
            return Ok(None);
        }
        let places = Places {
            messages: Pointer::parse("/messages")?,
            role: Pointer::parse("/messages/0/role")?,
            content: Pointer::parse("/messages/0/content")?,
            content_end: Pointer::parse("/messages/0/content/-")?,
            system: Pointer::parse("/system")?,
            system_end: Pointer::parse("/system/-")?,
            instructions: Pointer::parse("/instructions")?,
            prompt: Pointer::parse("/prompt")?,
            raw: Pointer::parse("/raw")?,
            template: Pointer::parse("/template")?,
            embeddings: Pointer::parse("/prompt_embeds")?,
        };
        Ok(Some(Self { before: before.to_owned(), behind: behind.to_owned(), places: Arc::new(places) }))
    }

    /// The same places, with another text in front.
    pub(crate) fn with_before(&self, before: String) -> Self {
        Self { before, behind: self.behind.clone(), places: self.places.clone() }
    }

    /// Adds the texts to a body, an object of JSON.
    ///
    /// # Errors
    ///
    /// The member that is not in a form which takes a text.
    pub(crate) fn add(&self, body: &str, place: SystemPlace) -> Result<String, SystemError> {
        let p = &self.places;
        match place {
            SystemPlace::Messages => self.to_messages(body),
            SystemPlace::System => self.to_member(body, "system", &p.system, Some(&p.system_end)),
            SystemPlace::Instructions => self.to_member(body, "instructions", &p.instructions, None),
            SystemPlace::Prompt => self.to_prompt(body),
            // Servers read neither `system` with `raw`, nor where a template of the request's own leaves it out.
            SystemPlace::SystemOrPrompt
                if get(body, &p.raw)?.is_some_and(|raw| raw != "false" && raw != "null")
                    || get(body, &p.template)?.is_some_and(|text| text != "\"\"" && text != "null") =>
            {
                self.to_prompt(body)
            }
            SystemPlace::SystemOrPrompt => self.to_member(body, "system", &p.system, None),
        }
    }

    /// Both texts around `inner`.
    fn around(&self, inner: &str) -> String {
        let parts = [self.before.as_str(), inner, self.behind.as_str()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
    }

    fn to_messages(&self, body: &str) -> Result<String, SystemError> {
        let p = &self.places;
        let is_system = match get(body, &p.messages)? {
            // Without messages there is no conversation: the server says so.
            None => return Ok(body.to_owned()),
            Some(list) if !list.starts_with('[') => {
                return Err(SystemError::Form { member: "messages", found: kind(list), expected: "a list" });
            }
            Some(_) => match get(body, &p.role) {
                Ok(role) => role.is_some_and(|role| text_of(role).as_deref() == Some("system")),
                // An empty list, or a first message that is none.
                Err(EditError::NoElement { .. } | EditError::NoContainer { .. }) => false,
                Err(error) => return Err(error.into()),
            },
        };
        if is_system {
            return self.to_member(body, "content", &p.content, Some(&p.content_end));
        }
        let message = format!("{{\"role\":\"system\",\"content\":{}}}", quoted(&self.around("")));
        Ok(push_front(body, &p.messages, &message)?.unwrap_or_else(|| body.to_owned()))
    }

    /// Adds the texts to a member that is a string; to blocks of text where it may be a list, whose end is `end`.
    fn to_member(
        &self,
        body: &str,
        member: &'static str,
        at: &Pointer,
        end: Option<&Pointer>,
    ) -> Result<String, SystemError> {
        let expected = if end.is_some() { "a string, or a list of blocks" } else { "a string" };
        match get(body, at)? {
            None | Some("null") => Ok(set(body, at, &quoted(&self.around("")))?),
            Some(value) if value.starts_with('"') => {
                let text = text_of(value).ok_or(EditError::NotJson)?;
                Ok(set(body, at, &quoted(&self.around(&text)))?)
            }
            Some(value) => match end.filter(|_| value.starts_with('[')) {
                None => Err(SystemError::Form { member, found: kind(value), expected }),
                Some(end) => {
                    let block = |text: &str| format!("{{\"type\":\"text\",\"text\":{}}}", quoted(text));
                    let mut body = body.to_owned();
                    if !self.before.is_empty() {
                        body = push_front(&body, at, &block(&self.before))?.unwrap_or(body);
                    }
                    if !self.behind.is_empty() {
                        body = set(&body, end, &block(&self.behind))?;
                    }
                    Ok(body)
                }
            },
        }
    }

    /// Puts the texts in front of each prompt of an API without system prompt.
    fn to_prompt(&self, body: &str) -> Result<String, SystemError> {
        let p = &self.places;
        let expected = "a string, or a list of strings";
        if get(body, &p.embeddings)?.is_some_and(|value| value != "null") {
            return Err(SystemError::Form { member: "prompt_embeds", found: "there", expected: "a prompt in text" });
        }
        let around = |text: &str| {
            let system = self.around("");
            quoted(&if text.is_empty() { system } else { [system.as_str(), "\n\n", text].concat() })
        };
        match get(body, &p.prompt)? {
            None | Some("null") => Ok(body.to_owned()),
            Some(value) if value.starts_with('"') => {
                let text = text_of(value).ok_or(EditError::NotJson)?;
                Ok(set(body, &p.prompt, &around(&text))?)
            }
            Some(value) if value.starts_with('[') => {
                let form = || SystemError::Form { member: "prompt", found: "a list of tokens", expected };
                let mut list = String::with_capacity(value.len());
                for (n, text) in strings_of(value).ok_or_else(form)?.iter().enumerate() {
                    list.push(if n == 0 { '[' } else { ',' });
                    list.push_str(&around(text));
                }
                list.push_str(if list.is_empty() { "[]" } else { "]" });
                Ok(set(body, &p.prompt, &list)?)
            }
            Some(value) => Err(SystemError::Form { member: "prompt", found: kind(value), expected }),
        }
    }
}

/// Text of a string of JSON.
fn text_of(value: &str) -> Option<String> {
    serde_json::from_str(value).ok()
}

/// Texts of a list of strings; `None` where it has another element, which the first one shows for all lists that servers know.
fn strings_of(value: &str) -> Option<Vec<String>> {
    let is_text = value.trim_start_matches('[').trim_start().starts_with(['"', ']']);
    if is_text { serde_json::from_str(value).ok() } else { None }
}

/// Kind of a value of JSON.
fn kind(value: &str) -> &'static str {
    match serde_json::from_str::<&RawValue>(value).ok().and_then(|raw| raw.get().bytes().next()) {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(body: &str, place: SystemPlace) -> Result<String, String> {
        let text = SystemText::new("A", "Z").unwrap().unwrap();
        text.add(body, place).map_err(|error| error.to_string())
    }

    #[test]
    fn each_api_has_the_text_where_its_servers_read_it() {
        use SystemPlace::{Instructions, Messages, Prompt, System, SystemOrPrompt};
        for (place, body, expected) in [
            (
                Messages,
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                r#"{"messages":[{"role":"system","content":"A\n\nZ"},{"role":"user","content":"x"}]}"#,
            ),
            (
                Messages,
                r#"{"messages":[{"role":"system","content":"B"},{"role":"user"}]}"#,
                r#"{"messages":[{"role":"system","content":"A\n\nB\n\nZ"},{"role":"user"}]}"#,
            ),
            (
                Messages,
                r#"{"messages":[{"role":"\u0073ystem","content":[{"type":"text","text":"B"}]}]}"#,
                r#"{"messages":[{"role":"\u0073ystem","content":[{"type":"text","text":"A"},{"type":"text","text":"B"},{"type":"text","text":"Z"}]}]}"#,
            ),
            (
                Messages,
                r#"{"messages":[{"role":"system","content":null}]}"#,
                r#"{"messages":[{"role":"system","content":"A\n\nZ"}]}"#,
            ),
            // A template that knows no developer would leave out what stands in its message.
            (
                Messages,
                r#"{"messages":[{"role":"developer","content":"B"}]}"#,
                r#"{"messages":[{"role":"system","content":"A\n\nZ"},{"role":"developer","content":"B"}]}"#,
            ),
            (Messages, r#"{"messages":[]}"#, r#"{"messages":[{"role":"system","content":"A\n\nZ"}]}"#),
            (Messages, r#"{"messages":["x"]}"#, r#"{"messages":[{"role":"system","content":"A\n\nZ"},"x"]}"#),
            (Messages, "{}", "{}"),
            (System, "{}", r#"{"system":"A\n\nZ"}"#),
            (System, r#"{"system":"B"}"#, r#"{"system":"A\n\nB\n\nZ"}"#),
            (
                System,
                r#"{"system":[{"type":"text","text":"B"}]}"#,
                r#"{"system":[{"type":"text","text":"A"},{"type":"text","text":"B"},{"type":"text","text":"Z"}]}"#,
            ),
            (Instructions, r#"{"instructions":null}"#, r#"{"instructions":"A\n\nZ"}"#),
            (Instructions, r#"{"instructions":"B"}"#, r#"{"instructions":"A\n\nB\n\nZ"}"#),
            (Prompt, r#"{"prompt":"x"}"#, r#"{"prompt":"A\n\nZ\n\nx"}"#),
            (Prompt, r#"{"prompt":["x", "y"]}"#, r#"{"prompt":["A\n\nZ\n\nx","A\n\nZ\n\ny"]}"#),
            (Prompt, r#"{"prompt":[]}"#, r#"{"prompt":[]}"#),
            (SystemOrPrompt, r#"{"prompt":"x"}"#, r#"{"prompt":"x","system":"A\n\nZ"}"#),
            (SystemOrPrompt, r#"{"prompt":"x","raw":true}"#, r#"{"prompt":"A\n\nZ\n\nx","raw":true}"#),
            (
                SystemOrPrompt,
                r#"{"prompt":"x","template":"{{ .Prompt }}"}"#,
                r#"{"prompt":"A\n\nZ\n\nx","template":"{{ .Prompt }}"}"#,
            ),
        ] {
            assert_eq!(added(body, place).as_deref(), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_form_without_a_place_for_the_text_is_refused() {
        use SystemPlace::{Instructions, Messages, Prompt, System};
        for (place, body, message) in [
            (Messages, r#"{"messages":"x"}"#, "`messages` is a string; expected a list"),
            (
                Messages,
                r#"{"messages":[{"role":"system","content":7}]}"#,
                "`content` is a number; expected a string, or a list of blocks",
            ),
            (
                Messages,
                r#"{"messages":[],"messages":[]}"#,
                "the name `messages` stands twice in one object, or in other letters",
            ),
            (
                SystemPlace::SystemOrPrompt,
                r#"{"prompt":"x","Raw":true}"#,
                "the name `raw` stands twice in one object, or in other letters",
            ),
            (
                Messages,
                r#"{"messages":[{"role":"system","content":"x","Content":"y"}]}"#,
                "the name `content` stands twice in one object, or in other letters",
            ),
            (System, r#"{"system":{}}"#, "`system` is an object; expected a string, or a list of blocks"),
            (Instructions, r#"{"instructions":[]}"#, "`instructions` is a list; expected a string"),
            (Prompt, r#"{"prompt":[1,2]}"#, "`prompt` is a list of tokens; expected a string, or a list of strings"),
            (
                Prompt,
                r#"{"prompt":[[1],"x"]}"#,
                "`prompt` is a list of tokens; expected a string, or a list of strings",
            ),
            (Prompt, r#"{"prompt":["x",1]}"#, "`prompt` is a list of tokens; expected a string, or a list of strings"),
            (Prompt, r#"{"prompt":"x","prompt_embeds":"AA"}"#, "`prompt_embeds` is there; expected a prompt in text"),
        ] {
            assert_eq!(added(body, place).unwrap_err(), message, "{body}");
        }
    }
}

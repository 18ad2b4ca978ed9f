//! Fields of a request that a server of another API does not get: refused, or dropped and named.

use http::HeaderValue;
use spillway_filter::Refusal;

use crate::protocol::chat::Ignored;
use crate::protocol::refusals::shown;

/// Rules on what may be lost in one translation, and the names of what was.
#[derive(Debug, Default)]
pub struct Lossy<'b> {
    /// Names of fields that are dropped for the backend.
    drop_fields: &'b [String],
    dropped: Ignored,
}

impl<'b> Lossy<'b> {
    /// Rules of a backend with these `dropFields`.
    pub fn new(drop_fields: &'b [String]) -> Self {
        Self { drop_fields, dropped: Ignored::default() }
    }

    /// True if the backend is not to get a field, which then counts as dropped. `server_name` is its name in the server's API.
    pub fn drops(&mut self, name: &str, server_name: Option<&str>) -> bool {
        let is_listed = |name: &str| self.drop_fields.iter().any(|listed| listed == name || listed == top(name));
        if !(is_listed(name) || server_name.is_some_and(is_listed)) {
            return false;
        }
        self.hint(name);
        true
    }

    /// Records a field that is dropped because it changes no answer.
    pub fn hint(&mut self, name: &str) {
        self.dropped.push(shown(name));
    }

    /// Refuses a field that the server's API does not have, unless it may be dropped.
    ///
    /// # Errors
    /// The field may not be dropped. The refusal names it.
    pub fn without(&mut self, name: &str, api: &str) -> Result<(), Refusal> {
        if self.drops(name, None) { Ok(()) } else { Err(Self::no_counterpart(name, api)) }
    }

    /// Refusal of a field that the server's API cannot express.
    pub fn no_counterpart(name: &str, api: &str) -> Refusal {
        let name = shown(name);
        let message = format!(
            "`{name}` has no counterpart in the API `{api}` of the server for this request: leave it out. (An operator \
             can have it dropped: `backends[].dropFields`.)"
        );
        Refusal::invalid("unsupported_parameter", message).param(name)
    }

    /// Value of the header that names what was dropped; `None` where nothing was.
    pub fn header(&self) -> Option<HeaderValue> {
        self.dropped.header()
    }
}

/// Outermost field of a name.
fn top(name: &str) -> &str {
    name.split(['.', '[']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_field_is_dropped_and_named_and_any_other_is_refused() {
        let listed = ["top_p".to_owned(), "output_config".to_owned()];
        let mut lossy = Lossy::new(&listed);
        assert!(lossy.without("top_p", "openai").is_ok());
        assert!(lossy.without("output_config.effort", "openai").is_ok());
        assert!(lossy.drops("topP", Some("top_p")));
        lossy.hint("messages[0].content[1].cache_control");
        let refusal = lossy.without("logit_bias\n", "anthropic").unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some("logit_bias")));
        assert_eq!(lossy.header().unwrap(), "top_p, output_config.effort, topP, messages[0].content[1].cache_control");
    }
}

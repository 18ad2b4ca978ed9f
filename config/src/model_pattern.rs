//! Names of models with wildcards, as matches, prices and callers' lists have them.

/// Model name in which `*` matches any characters.
#[derive(Debug, Clone)]
pub struct ModelPattern {
    parts: Vec<Box<str>>,
}

impl ModelPattern {
    /// Compiles a pattern.
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('*').map(Into::into).collect() }
    }

    /// Name that the pattern matches, where it has no wildcard.
    pub fn exact(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }

    /// The pattern in small letters, for names that are compared so.
    #[must_use]
    pub fn in_small_letters(&self) -> Self {
        Self { parts: self.parts.iter().map(|part| part.to_lowercase().into()).collect() }
    }

    /// True if `name` matches. The time is linear in the length of the name for each part of the pattern.
    pub fn matches(&self, name: &str) -> bool {
        let [first, middle @ .., last] = self.parts.as_slice() else {
            return self.parts.first().is_some_and(|only| only.as_ref() == name);
        };
        let Some(mut rest) = name.strip_prefix(first.as_ref()) else { return false };
        for part in middle {
            match rest.find(part.as_ref()) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.len() >= last.len() && rest.ends_with(last.as_ref())
    }
}

/// Tag that a name without a tag means to Ollama.
const LATEST: &str = ":latest";

/// Host and namespace that a name without them means to Ollama, as prefixes of a name.
const DEFAULT_HOST: &str = "registry.ollama.ai/";
const DEFAULT_NAMESPACE: &str = "library/";

/// Ends of a name that say where Ollama finds the model: on its own machine, as it does without, or in its cloud, where it is
/// another model.
const LOCAL: &str = ":local";
const CLOUD: &str = ":cloud";

/// Name of a model in the form that all spellings have in common which servers of Ollama read as one name: in small letters,
/// without scheme, and without the host, namespace, tag and source that a name without them means (ollama/ollama,
/// `types/model/name.go`, `internal/modelref` and `getExistingName` of `server/routes.go`).
pub fn ollama_name(name: &str) -> String {
    let small = name.to_lowercase();
    let name = small.split_once("://").map_or(&*small, |(_, rest)| rest);
    let name = name.strip_prefix(DEFAULT_HOST).unwrap_or(name);
    let name = name.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(name);
    let mut name = name.to_owned();
    cut(&mut name, LOCAL);
    let is_cloud = cut(&mut name, CLOUD);
    cut(&mut name, LATEST);
    if is_cloud {
        // `m:8b:cloud` and `m:8b-cloud` are one.
        let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        name.push_str(if has_tag { "-cloud" } else { CLOUD });
    }
    name
}

/// Cuts an end off a name that has more. True if it had that end.
fn cut(name: &mut String, end: &str) -> bool {
    let rest = name.strip_suffix(end).map(str::len).filter(|length| *length > 0);
    if let Some(length) = rest {
        name.truncate(length);
    }
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_patterns() {
        for (pattern, name, fits) in [
            ("gpt-4", "gpt-4", true),
            ("gpt-4", "gpt-4o", false),
            ("gpt-*", "gpt-", true),
            ("gpt-*", "my-gpt-4", false),
            ("*", "", true),
            ("*-mini", "gpt-4o-mini", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("aa*aa", "aaa", false),
            ("*b*b", "b", false),
        ] {
            assert_eq!(ModelPattern::new(pattern).matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn names_of_ollama_have_one_form() {
        for name in [
            "m",
            "M",
            "m:latest",
            "library/m",
            "Registry.Ollama.ai/Library/M:Latest",
            "https://registry.ollama.ai/library/m",
        ] {
            assert_eq!(ollama_name(name), "m", "{name}");
        }
        for (name, form) in [
            ("m:8b", "m:8b"),
            ("m:8b:local", "m:8b"),
            ("m:latest:LOCAL", "m"),
            ("m:8b:cloud", "m:8b-cloud"),
            ("library/m:cloud", "m:cloud"),
            (":cloud", ":cloud"),
            ("me/m", "me/m"),
            ("registry.ollama.ai/me/m:8B", "me/m:8b"),
            ("hf.co/Lab/M-GGUF:Q4_K_M", "hf.co/lab/m-gguf:q4_k_m"),
            (":latest", ":latest"),
        ] {
            assert_eq!(ollama_name(name), form, "{name}");
        }
    }
}

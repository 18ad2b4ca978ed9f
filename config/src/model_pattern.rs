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
}

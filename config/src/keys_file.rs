//! File of API key digests: one a line, with the day on which the key ends behind it if it has one.

use std::path::Path;

use crate::files::read_text;
use crate::schema::ConsumerKey;
use crate::values::{Date, KeyDigest};

/// Reads a file of digests, some nine hundred thousand at most. The error has the number of the line.
pub fn read_keys(path: &Path) -> Result<Vec<ConsumerKey>, String> {
    let cannot = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    parse(&read_text(path).map_err(|e| cannot(&e))?)
        .map_err(|(line, reason)| format!("{}:{line}: {reason}", path.display()))
}

fn parse(text: &str) -> Result<Vec<ConsumerKey>, (usize, String)> {
    let mut keys = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        // The line of `spillway key new` as it is printed.
        let line = line.strip_prefix("sha256:").unwrap_or(line);
        let mut words = line.split_whitespace();
        let Some(digest) = words.next() else { continue };
        let told = |e: &dyn std::fmt::Display| (n + 1, e.to_string());
        let sha256 = digest.parse::<KeyDigest>().map_err(|e| told(&e))?;
        // Nothing of a line is quoted: somebody may have put the key itself beside its digest.
        let no_day = "the second word is not a day; expected one such as 2027-01-31, or nothing behind the digest";
        let expires = words.next().map(str::parse::<Date>).transpose().map_err(|_| told(&no_day))?;
        if words.next().is_some() {
            return Err(told(&"unexpected words; expected a digest and a day in a line"));
        }
        keys.push(ConsumerKey { sha256, expires });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_digest_and_perhaps_a_day() {
        let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let text = format!("# old\n\n{digest} 2027-01-01 # rotated\nsha256: {digest}\n");
        let keys = parse(&text).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].expires.unwrap().unix_seconds(), 1_798_761_600);
        assert!(keys[1].expires.is_none());
        for (wrong, line) in [("x", 1), (&format!("\n{digest} soon"), 2), (&format!("{digest} 2027-01-01 x"), 1)] {
            assert_eq!(parse(wrong).unwrap_err().0, line, "{wrong}");
        }
    }
}

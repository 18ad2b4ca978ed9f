//! Running configuration as the admin API shows it. It is read seldom and held as long as its snapshot, so it is held as
//! compressed text: a value for each key, defaults included, takes some thirty times the memory.

use serde_json::Value;

/// Level of the compression: the fastest, because an edit waits for it.
const LEVEL: i32 = 1;

/// Configuration without secrets and digests.
#[derive(Default)]
pub struct ShownConfig {
    compressed: Box<[u8]>,
    /// Length of the text in bytes.
    length: usize,
}

impl ShownConfig {
    pub(super) fn new(shown: &Value) -> Self {
        let text = shown.to_string();
        // Compression fails only for want of memory; the configuration is then not shown, and runs all the same.
        let compressed = zstd::bulk::compress(text.as_bytes(), LEVEL).unwrap_or_default();
        Self { compressed: compressed.into(), length: text.len() }
    }

    /// Configuration; null where it could not be kept.
    pub fn read(&self) -> Value {
        let text = zstd::bulk::decompress(&self.compressed, self.length).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let shown = serde_json::json!({"routes": [{"name": "a", "timeouts": {"request": "10m"}}], "b": null});
        assert_eq!(ShownConfig::new(&shown).read(), shown);
        assert_eq!(ShownConfig::default().read(), Value::Null);
    }
}

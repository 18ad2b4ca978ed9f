//! The name under which this process signs `Via` (RFC 9110, 7.6.3), and the check for requests that return to it.

use http::header::{self, HeaderMap, HeaderValue};

/// Value that this process adds to `Via`.
pub struct Via {
    value: HeaderValue,
}

impl Via {
    /// A name with a random part: two gateways in a chain are no loop.
    pub fn new() -> Self {
        let text = format!("1.1 spillway-{:08x}", rand::random::<u32>());
        Self { value: HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1.1 spillway")) }
    }

    /// Value for the header.
    pub(super) fn value(&self) -> HeaderValue {
        self.value.clone()
    }

    /// True if a request has passed this process before.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::VIA)
            .iter()
            .any(|via| memchr::memmem::find(via.as_bytes(), self.value.as_bytes()).is_some())
    }
}

impl Default for Via {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_back_is_known() {
        let via = Via::new();
        let mut headers = HeaderMap::new();
        headers.append(header::VIA, HeaderValue::from_static("1.1 other"));
        assert!(!via.is_in(&headers));
        headers.append(header::VIA, via.value.clone());
        assert!(via.is_in(&headers));
    }
}

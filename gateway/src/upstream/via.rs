//! The names under which this process signs requests to servers, and the check for requests that return to it. Each request
//! carries the list of the gateways that it has passed in a header of their own; `Via` (RFC 9110, 7.6.3) is for those who
//! want it.

use http::HeaderName;
use http::header::{self, HeaderValue};

use spillway_filter::Fields;

/// Gateways that a request has passed, in their order.
pub(super) static HOPS: HeaderName = HeaderName::from_static("x-spillway-hops");

/// Most gateways that a request may pass. A loop over gateways that do not know each other, such as replicas behind one
/// address, ends here.
const MAX_HOPS: usize = 16;

/// Longest list of gateways that is read, in bytes: those of [`MAX_HOPS`] and some more.
const LONGEST: usize = 256;

/// Names of this process.
pub struct Via {
    /// Value that this process adds to `Via`.
    value: HeaderValue,
    /// Value that this process adds to the list of gateways.
    hop: HeaderValue,
}

impl Via {
    /// Names with a random part: two gateways in a chain are no loop.
    pub fn new() -> Self {
        let id = format!("{:08x}", rand::random::<u32>());
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("spillway"));
        Self { value: value(&format!("1.1 spillway-{id}")), hop: value(&id) }
    }

    /// Value for `Via`.
    pub(super) fn value(&self) -> HeaderValue {
        self.value.clone()
    }

    /// True if a request has passed this process before, or too many gateways.
    pub fn is_in(&self, headers: &Fields) -> bool {
        let has =
            |value: &HeaderValue, name: &HeaderValue| memchr::memmem::find(value.as_bytes(), name.as_bytes()).is_some();
        let hops = headers.get(&HOPS).filter(|hops| hops.len() <= LONGEST);
        hops.is_some_and(|hops| has(hops, &self.hop) || hops.as_bytes().split(|b| *b == b',').count() >= MAX_HOPS)
            || headers.get_all(header::VIA).iter().any(|via| has(via, &self.value))
    }

    /// List of the gateways that a request with these headers will have passed. A list that no gateway wrote is left out.
    pub fn hops(&self, headers: &Fields) -> HeaderValue {
        let is_list = |hops: &&HeaderValue| {
            hops.len() <= LONGEST && hops.as_bytes().iter().all(|b| b.is_ascii_hexdigit() || b", ".contains(b))
        };
        let Some(before) = headers.get(&HOPS).filter(is_list) else { return self.hop.clone() };
        let list = [before.as_bytes(), b", ", self.hop.as_bytes()].concat();
        HeaderValue::from_bytes(&list).unwrap_or_else(|_| self.hop.clone())
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

    fn with(name: &HeaderName, value: HeaderValue) -> Fields {
        Fields::from_iter([(name.clone(), value)])
    }

    #[test]
    fn a_request_that_comes_back_is_known() {
        let via = Via::new();
        let mut headers = Fields::default();
        headers.append(header::VIA, HeaderValue::from_static("1.1 other"));
        assert!(!via.is_in(&headers));
        headers.append(header::VIA, via.value.clone());
        assert!(via.is_in(&headers));
        let (other, third) = (Via::new(), Via::new());
        let passed = with(&HOPS, third.hops(&with(&HOPS, other.hops(&with(&HOPS, via.hops(&Fields::default()))))));
        assert_eq!([&via, &other, &third].map(|gateway| gateway.is_in(&passed)), [true; 3]);
        assert!(!Via::new().is_in(&passed));
    }

    #[test]
    fn a_list_of_gateways_is_bounded_and_one_that_no_gateway_wrote_is_left_out() {
        let via = Via::new();
        for wrong in ["me; you", &"a".repeat(LONGEST + 1)] {
            let headers = with(&HOPS, HeaderValue::from_str(wrong).unwrap());
            assert_eq!(via.hops(&headers), via.hop, "{wrong}");
            assert!(!via.is_in(&headers), "{wrong}");
        }
        let mut headers = Fields::default();
        for passed in 0..MAX_HOPS {
            assert!(!via.is_in(&headers), "{passed}");
            headers = with(&HOPS, Via::new().hops(&headers));
        }
        assert!(via.is_in(&headers));
    }
}

//! Whether the body of an answer can be read as it is.

use http::{HeaderMap, header};

/// Whether a body is coded, by what its head says. An empty value and `identity` say that it is not (RFC 9110, section
/// 8.4.1).
pub fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.map(<[u8]>::trim_ascii).any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_body_is_coded_by_what_its_head_says_and_not_by_that_it_says_something() {
        let coded = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            is_coded(&headers)
        };
        for plain in [[].as_slice(), &[""], &["identity"], &["Identity"], &["identity, ,IDENTITY "], &["", "identity"]] {
            assert!(!coded(plain), "{plain:?}");
        }
        for other in [["gzip"].as_slice(), &["none"], &["identity, br"], &["identity", "gzip"], &["\"\""]] {
            assert!(coded(other), "{other:?}");
        }
    }
}

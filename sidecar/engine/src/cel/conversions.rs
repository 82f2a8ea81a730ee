//! Conversions between numbers and texts as in Kubernetes' engine, where the library's are others: Go's `strconv` writes and reads
//! them.

/// Returns a number as `%g` writes it: with an exponent where that is under -4 or over 5, so `1e+06` and `123456.5`.
pub fn double_to_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Parses a double; `None` for a text that is no number, or one that is too large.
pub fn text_to_double(text: &str) -> Option<f64> {
    let plain = without_underscores(text)?;
    let number: f64 = plain.parse().ok()?;
    let letters = plain.bytes().any(|byte| matches!(byte, b'n' | b'N'));
    // `inf` and `nan` are read in any case; the latter has no sign.
    let is_read = if number.is_nan() { !plain.starts_with(['+', '-']) } else { number.is_finite() || letters };
    is_read.then_some(number)
}

/// Returns a text without the underscores between its digits; `None` where one stands elsewhere.
fn without_underscores(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !text.contains('_') {
        return Some(text.into());
    }
    let is_digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let between = |at: usize| at > 0 && is_digit(bytes.get(at - 1)) && is_digit(bytes.get(at + 1));
    let fits = bytes.iter().enumerate().all(|(at, byte)| *byte != b'_' || between(at));
    fits.then(|| text.replace('_', "").into())
}

/// Parses an unsigned number, which has no sign.
pub fn text_to_uint(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// Parses a boolean.
pub fn text_to_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

//! Numbers: one value has one notation.

use std::cmp::Ordering;

use serde_json::Number;

/// From here on an `f64` is written with an exponent.
const LARGE: f64 = 1e21;
/// Below here too.
const SMALL: f64 = 1e-5;

/// Reads a number of JSON: an integer that fits 64 bits exactly, in whatever notation; any other as the nearest `f64`. None where that is
/// not finite.
pub fn read(text: &str) -> Option<Number> {
    if let Some(integer) = integer(text) {
        return Some(integer);
    }
    Number::from_f64(text.parse().ok()?)
}

/// The number as an integer of 64 bits, where it is one.
fn integer(text: &str) -> Option<Number> {
    if let Ok(integer) = text.parse::<i64>() {
        return Some(integer.into());
    }
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |text| ("-", text));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0.into());
    }
    let dropped = i64::try_from(digits.len() - significant.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(dropped)?;
    // 2^64 has 20 digits.
    let zeros = usize::try_from(exponent).ok().filter(|zeros| *zeros <= 20)?;
    let written = format!("{sign}{}{}", significant.trim_start_matches('0'), "0".repeat(zeros));
    written.parse::<i64>().map(Number::from).or_else(|_| written.parse::<u64>().map(Number::from)).ok()
}

/// Returns the integer that a number is, where it is one of 64 bits.
pub fn exact(number: &Number) -> Option<i128> {
    if let Some(integer) = number.as_i64() {
        return Some(integer.into());
    }
    if let Some(integer) = number.as_u64() {
        return Some(integer.into());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < LARGE)?;
    // Whole and below 10^21: the conversion loses nothing.
    #[allow(clippy::cast_possible_truncation)]
    let integer = float as i128;
    (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&integer).then_some(integer)
}

/// Writes the only notation of a number.
pub fn write(number: &Number, out: &mut String) {
    if let Some(integer) = exact(number) {
        out.push_str(&integer.to_string());
        return;
    }
    let Some(float) = number.as_f64() else { return };
    // Both of them shortest, and the same in every version of Rust.
    if (SMALL..LARGE).contains(&float.abs()) {
        out.push_str(&float.to_string());
    } else {
        out.push_str(&format!("{float:e}"));
    }
}

/// Compares two numbers; none where an `f64` is too coarse to tell.
pub fn compare(one: &Number, other: &Number) -> Option<Ordering> {
    match (exact(one), exact(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        (None, None) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        // One of them was rounded to become an `f64`.
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?).filter(|ordering| *ordering != Ordering::Equal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        let mut out = String::new();
        write(&read(text).unwrap(), &mut out);
        out
    }

    #[test]
    fn one_value_has_one_notation() {
        for (notations, expected) in [
            (&["1", "1.0", "1e0", "10e-1", "0.1e1", "1E+0", "0.0000001e7", "1000000000000000000000e-21"][..], "1"),
            (&["0", "-0", "-0.0", "0e5", "0.000", "0e999999999999999999999"], "0"),
            (&["-120", "-1.2e2", "-1200e-1"], "-120"),
            (&["9007199254740993", "9007199254740993.0", "9.007199254740993e15", "90071992547409930e-1"], "9007199254740993"),
            (&["18446744073709551615", "1.8446744073709551615e19"], "18446744073709551615"),
            (&["-9223372036854775808", "-9.223372036854775808E18"], "-9223372036854775808"),
            (&["0.1", "1e-1", "0.10", "10e-2", "0.1000000000000000055511151231257827"], "0.1"),
            (&["0.30000000000000004", "0.300000000000000040", "30000000000000004e-17"], "0.30000000000000004"),
            (&["1e300", "10e299", "1.0E+300"], "1e300"),
            (&["1.5e-7", "0.00000015"], "1.5e-7"),
            (&["18446744073709551616", "18446744073709551616.0"], "18446744073709552000"),
            (&["1e21", "1000000000000000000000"], "1e21"),
        ] {
            for notation in notations {
                assert_eq!(written(notation), expected, "{notation}");
                assert_eq!(written(&written(notation)), expected, "{notation}");
            }
        }
        assert_eq!(read("1e400"), None);
        assert_eq!(read("-1e400"), None);
        assert_eq!(read("1e99999999999999999999"), None);
    }

    #[test]
    fn numbers_are_compared_exactly_or_not_at_all() {
        let compare = |one, other| compare(&read(one).unwrap(), &read(other).unwrap());
        assert_eq!(compare("9007199254740993", "9007199254740992"), Some(Ordering::Greater));
        assert_eq!(compare("-1", "18446744073709551615"), Some(Ordering::Less));
        assert_eq!(compare("0.5", "1"), Some(Ordering::Less));
        assert_eq!(compare("0.5", "0.25"), Some(Ordering::Greater));
        assert_eq!(compare("1e30", "1e30"), Some(Ordering::Equal));
        assert_eq!(compare("18446744073709551615", "18446744073709551616"), None);
    }
}

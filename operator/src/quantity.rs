//! Amounts of CPU and memory, as Kubernetes writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// An amount such as `10m` of CPU or `64Mi` of memory (Kubernetes API, `Quantity`). It is kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    nanos: u128,
}

impl Quantity {
    /// Returns the text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the amount in billionths, rounded up.
    pub fn nanos(&self) -> u128 {
        self.nanos
    }
}

/// The error of a text that is no [`Quantity`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a quantity; write for example 500m or 2 for cpu, 64Mi or 1Gi for memory")]
pub struct QuantityError(String);

/// Returns the unit of a suffix, in billionths.
fn unit(suffix: &str) -> Option<u128> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(power) = BINARY.iter().position(|name| *name == suffix) {
        return 1024_u128.pow(u32::try_from(power).ok()? + 1).checked_mul(1_000_000_000);
    }
    if let Some(power) = DECIMAL.iter().position(|name| *name == suffix) {
        return Some(1000_u128.pow(u32::try_from(power).ok()?));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    10_u128.checked_pow(u32::try_from(exponent.checked_add(9)?).ok()?)
}

fn nanos(text: &str) -> Option<u128> {
    let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // As many as fit with every unit, and more than anybody means.
    if number.len() > 16 || fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(digits.checked_mul(unit(suffix)?)?.div_ceil(parts))
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match nanos(text) {
            Some(nanos) => Ok(Self { text: text.to_owned(), nanos }),
            None => Err(QuantityError(text.chars().take(40).flat_map(char::escape_debug).collect())),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 500m or 64Mi")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_what_kubernetes_takes_them_for() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1_000_000_000),
            ("10m", 10_000_000),
            ("0.1", 100_000_000),
            (".5", 500_000_000),
            ("1.", 1_000_000_000),
            ("1n", 1),
            ("0.1n", 1),
            ("2u", 2000),
            ("1k", 1_000_000_000_000),
            ("1e3", 1_000_000_000_000),
            ("1E3", 1_000_000_000_000),
            ("1e-3", 1_000_000),
            ("1E", 1_000_000_000_000_000_000_000_000_000),
            ("1Ki", 1_024_000_000_000),
            ("1.5Ki", 1_536_000_000_000),
            ("64Mi", 64 * 1024 * 1024 * 1_000_000_000),
            ("1Ei", (1 << 60) * 1_000_000_000),
        ] {
            assert_eq!(text.parse::<Quantity>().map(|quantity| quantity.nanos()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "",
            ".",
            "m",
            "-1",
            "+1",
            "1 ",
            " 1",
            "1,5",
            "1.2.3",
            "1mi",
            "64MB",
            "1KI",
            "1K",
            "1e",
            "1e+",
            "1e400",
            "1e-10",
            "e3",
            "99999999999999999",
            "1\n",
            "１",
        ] {
            let error = text.parse::<Quantity>().unwrap_err().to_string();
            assert!(error.contains("is not a quantity; write for example") && !error.contains(char::is_control), "{error}");
        }
    }
}

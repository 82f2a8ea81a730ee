//! Numbers as RFC 8785 writes them, which is as JavaScript does, of those alone that mean exactly what their text says.

use crate::inexact::Inexact;

/// The largest integer below which every integer is an `f64`. It has 16 digits.
const LARGEST: u64 = 1 << 53;

/// Digits that an `f64` needs at most.
const MOST_DIGITS: usize = 17;

/// Writes a number of JSON.
///
/// # Errors
/// The nearest `f64` is another number, or is written as another; or it is an integer beyond 2^53, or -0.
pub(crate) fn write_number(text: &str, out: &mut String) -> Result<(), Inexact> {
    let meant = Decimal::of(text).ok_or(Inexact::Rounded)?;
    if meant.digits.is_empty() {
        out.push('0');
        return if meant.negative { Err(Inexact::NegativeZero) } else { Ok(()) };
    }
    if meant.is_large() {
        return Err(Inexact::Large);
    }
    if meant.digits.len() > MOST_DIGITS {
        return Err(Inexact::Rounded);
    }
    // Neither large nor without an end: it is finite.
    let float: f64 = text.parse().map_err(|_| Inexact::Syntax)?;
    let mut buffer = ryu_js::Buffer::new();
    let written = buffer.format_finite(float);
    if Decimal::of(written).as_ref() != Some(&meant) {
        return Err(Inexact::Rounded);
    }
    out.push_str(written);
    Ok(())
}

/// A number: these digits times ten to a power.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Without zeros at either end; of 0, none.
    digits: String,
    power: i64,
}

impl Decimal {
    /// Reads the notation of JSON; none where the exponent has more than 64 bits.
    fn of(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits = format!("{whole}{fraction}");
        let length = digits.len();
        digits.truncate(digits.trim_end_matches('0').len());
        if digits.is_empty() {
            return Some(Self { negative, digits, power: 0 });
        }
        let zeros = i64::try_from(length - digits.len()).ok()?;
        digits.drain(..digits.len() - digits.trim_start_matches('0').len());
        let places = i64::try_from(fraction.len()).ok()?;
        let power = exponent.parse::<i64>().ok()?.checked_sub(places)?.checked_add(zeros)?;
        Some(Self { negative, digits, power })
    }

    /// Whether it is an integer beyond 2^53.
    fn is_large(&self) -> bool {
        let Ok(zeros) = usize::try_from(self.power) else { return false };
        if self.digits.len().saturating_add(zeros) > 16 {
            return true;
        }
        !format!("{}{}", self.digits, "0".repeat(zeros)).parse::<u64>().is_ok_and(|integer| integer <= LARGEST)
    }
}

//! The canonical form of arguments: RFC 8785's own examples, one digest for one value, and no digest for what is not exact.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use toolweir_approvals::{Inexact, arguments_sha256, canonical_json};
use toolweir_engine::json::{Raw, Reader};

fn raw(text: &str) -> Raw<'_> {
    let mut reader = Reader::new(text.as_bytes()).unwrap();
    let value = reader.value().unwrap();
    reader.finish().unwrap();
    value
}

fn canonical(text: &str) -> Result<String, Inexact> {
    canonical_json(raw(text)).map_err(|error| error.why())
}

fn digest(text: &str) -> String {
    arguments_sha256(Some(raw(text))).unwrap()
}

#[test]
fn the_examples_of_rfc_8785_hold() {
    // Section 3.2.2 has two numbers that are not exact.
    let text = r#"{
        "numbers": [333333333.3333333, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"#;
    let expected =
        r#"{"literals":[null,true,false],"numbers":[333333333.3333333,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
    assert_eq!(canonical(text).unwrap(), expected);
    assert_eq!(canonical("333333333.33333329"), Err(Inexact::Rounded));
    assert_eq!(canonical("1E30"), Err(Inexact::Large));

    // Section 3.2.3.
    let text = r#"{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
        "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"}"#;
    let sorted = canonical(text).unwrap();
    let places: Vec<_> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
        .iter()
        .map(|name| sorted.find(name).unwrap())
        .collect();
    assert!(places.is_sorted(), "{sorted}");
}

/// Appendix B of RFC 8785: the bits of an `f64`, and how it is written.
const NUMBERS: [(u64, &str); 23] = [
    (0x0000_0000_0000_0000, "0"),
    (0x0000_0000_0000_0001, "5e-324"),
    (0x8000_0000_0000_0001, "-5e-324"),
    (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
    (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
    (0x4340_0000_0000_0000, "9007199254740992"),
    (0xc340_0000_0000_0000, "-9007199254740992"),
    (0x4430_0000_0000_0000, "295147905179352830000"),
    (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
    (0x44b5_2d02_c7e1_4af6, "1e+23"),
    (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
    (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
    (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
    (0x444b_1ae4_d6e2_ef50, "1e+21"),
    (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
    (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
    (0x41b3_de43_5555_5553, "333333333.3333332"),
    (0x41b3_de43_5555_5554, "333333333.33333325"),
    (0x41b3_de43_5555_5555, "333333333.3333333"),
    (0x41b3_de43_5555_5556, "333333333.3333334"),
    (0x41b3_de43_5555_5557, "333333333.33333343"),
    (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
    (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
];

#[test]
fn numbers_are_written_as_appendix_b_of_rfc_8785_has_them_or_refused() {
    for (bits, text) in NUMBERS {
        let float = f64::from_bits(bits);
        assert_eq!(text.parse::<f64>().unwrap().to_bits(), bits, "{text}");
        let exact = float.fract() != 0.0 || float.abs() <= 9_007_199_254_740_992.0;
        let expected = if exact { Ok(text.to_owned()) } else { Err(Inexact::Large) };
        assert_eq!(canonical(text), expected, "{text}");
    }
    // As near to the last one, but odd.
    assert_eq!(canonical("1424953923781206.3"), Err(Inexact::Rounded));
}

#[test]
fn one_number_has_one_notation() {
    for (notations, expected) in [
        (&["0", "0.0", "0e9", "0E-0", "0.000e+99999999999999999999"][..], "0"),
        (&["1", "1.0", "1e0", "10e-1", "0.1e1", "1E+0", "0.0000001e7", "1000000000000000000000e-21"], "1"),
        (&["-120", "-1.2e2", "-1200e-1", "-120.000"], "-120"),
        (&["9007199254740992", "9007199254740.992e3", "90071992547409920e-1"], "9007199254740992"),
        (&["0.1", "1e-1", "0.10", "10e-2", "0.01e1"], "0.1"),
        (&["123.456", "123456e-3", "1.23456e2", "0.000000123456e9"], "123.456"),
        (&["0.000001", "1e-6"], "0.000001"),
        (&["1e-7", "0.0000001", "10E-8"], "1e-7"),
        (&["-1.25e-9", "-0.00000000125", "-125e-11"], "-1.25e-9"),
    ] {
        for notation in notations {
            assert_eq!(canonical(notation).as_deref(), Ok(expected), "{notation}");
        }
    }
}

#[test]
fn what_is_not_exact_is_refused_with_its_place_and_a_remedy() {
    let deep = format!("{}1.0000000000000000001{}", "{\"a\":[".repeat(60), "]}".repeat(60));
    for (text, expected) in [
        (r#"{"a": 1, "b": {"c": 1, "\u0063": 2}}"#, "`arguments.b.c` stands twice in its object; send each key once"),
        (r#"{"a": 1, "a": 1}"#, "`arguments.a` stands twice in its object; send each key once"),
        (r#"{"": {"a b\n": [-0.0]}}"#, r#"`arguments[""]["a b\n"][0]` is -0, which readers take for 0; send 0"#),
        ("[1, -0]", "`arguments[1]` is -0, which readers take for 0; send 0"),
        (r#"{"a": "\ud800"}"#, "`arguments.a` has half of a surrogate pair; send whole characters"),
        (r#"{"a": {"\udc00x": 1}}"#, "`arguments.a` has half of a surrogate pair; send whole characters"),
        (r#"["\ude00\ud83d"]"#, "`arguments[0]` has half of a surrogate pair; send whole characters"),
        (r#"{"id": 9007199254740993}"#, "`arguments.id` is an integer beyond 2^53, which readers round; send it as a string"),
        (&deep, "is a number that readers round; send it with at most 15 digits, or as a string"),
    ] {
        let error = arguments_sha256(Some(raw(text))).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
    for text in ["9007199254740994", "-9007199254740993", "1e16", "1e999999999999999999", "12345678901234567890", "1e400"] {
        assert_eq!(canonical(text), Err(Inexact::Large), "{text}");
    }
    for text in ["0.1000000000000000055511151231257827", "4.9e-324", "1e-400", "-1e-99999999999999999999", "0.30000000000000001"]
    {
        assert_eq!(canonical(text), Err(Inexact::Rounded), "{text}");
    }
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(canonical(&nested(128)).is_ok());
    assert!(Reader::new(nested(129).as_bytes()).unwrap().value().is_err(), "no such value is ever read");
}

#[test]
fn keys_in_an_error_cannot_be_misread_and_are_cut() {
    let text = format!("{{\"\u{202e}{}\": -0}}", "x".repeat(500));
    let error = arguments_sha256(Some(raw(&text))).unwrap_err().to_string();
    assert!(error.starts_with(r#"`arguments["\u{202e}xxx"#) && error.contains(r#"xxx..."]` is -0"#), "{error}");
    assert!(error.len() < 150, "{error}");
}

#[test]
fn no_arguments_differ_from_empty_ones() {
    assert_eq!(arguments_sha256(None).unwrap(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(digest("{}"), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    assert_eq!(digest(" { } "), digest("{}"));
    assert_ne!(digest("null"), digest("{}"));
}

/// A value, as every reader of JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Null,
    Bool(bool),
    /// Negative, the digits without zeros around them, and the power of ten by which they are multiplied.
    Number(bool, String, i32),
    String(String),
    Array(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

fn number_of(float: f64) -> Value {
    let text = format!("{:e}", float.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let power = exponent.parse::<i32>().unwrap() - i32::try_from(fraction.len()).unwrap();
    let digits = format!("{whole}{fraction}");
    let kept = digits.trim_end_matches('0').to_owned();
    let power = power + i32::try_from(digits.len() - kept.len()).unwrap();
    if kept.is_empty() { Value::Number(false, kept, 0) } else { Value::Number(float < 0.0, kept, power) }
}

fn numbers() -> impl Strategy<Value = Value> {
    // Above 2^49 a fraction can be as near to one text as to another: `number_of` does not choose as RFC 8785 does.
    let exact = |float: f64| match float.fract() {
        0.0 => float.abs() <= 9_007_199_254_740_992.0,
        _ => float.is_finite() && float.abs() < 562_949_953_421_312.0,
    };
    #[allow(clippy::cast_precision_loss, reason = "none is lost up to 2^53")]
    let integers = (-(1_i64 << 53)..=1 << 53).prop_map(|integer| integer as f64);
    prop_oneof![
        integers,
        (-9_i8..9).prop_map(f64::from),
        (-999_i32..999, 0..12).prop_map(|(digits, places)| format!("{digits}e-{places}").parse().unwrap()),
        any::<f64>().prop_filter("a number that is exact", move |float| exact(*float)),
    ]
    .prop_map(number_of)
}

fn texts() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        prop::sample::select(vec!['a', 'b', '"', '\\', '/', '\n', '\u{0}', '\u{1f}', '\u{7f}', 'é', '\u{2028}']),
        prop::char::range('\u{e000}', '\u{ffff}'),
        prop::char::range('\u{10000}', '\u{10ffff}'),
    ];
    prop::collection::vec(chars, 0..4).prop_map(|chars| chars.into_iter().collect())
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::Bool), numbers(), texts().prop_map(Value::String),];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map(texts(), inner, 0..5).prop_map(Value::Object),
        ]
    })
}

/// A notation of a value: each choice takes the next of `choices`.
struct Notation<'a> {
    choices: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    out: String,
}

impl Notation<'_> {
    fn of(value: &Value, choices: &[u8]) -> String {
        let mut notation = Notation { choices: choices.iter().cycle(), out: String::new() };
        notation.value(value);
        notation.out
    }

    fn choose(&mut self, of: usize) -> usize {
        usize::from(*self.choices.next().unwrap()) % of
    }

    fn space(&mut self) {
        let space = ["", " ", "\n\t", "\r", "", "", "", ""][self.choose(8)];
        self.out.push_str(space);
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match (c, self.choose(3)) {
                ('"' | '\\' | '/', 0) => self.out.extend(['\\', c]),
                ('\n', 0) => self.out.push_str("\\n"),
                (c, 1) if c >= ' ' && c != '"' && c != '\\' => self.out.push(c),
                (c, _) => {
                    let upper = self.choose(2) == 0;
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
                    }
                }
            }
        }
        self.out.push('"');
    }

    fn number(&mut self, negative: bool, digits: &str, power: i32) {
        let sign = if negative { "-" } else { "" };
        let zeros = "0".repeat(self.choose(3));
        let (digits, power) = (format!("{digits}{zeros}"), power - i32::try_from(zeros.len()).unwrap());
        let digits = if digits.is_empty() { "0".to_owned() } else { digits };
        // Some of the digits stand after the point, perhaps with zeros before them.
        let places = self.choose(digits.len() + 3);
        let padded = format!("{digits:0>width$}", width = places + 1);
        let (whole, fraction) = padded.split_at(padded.len() - places);
        let whole = if whole.trim_start_matches('0').is_empty() { "0" } else { whole.trim_start_matches('0') };
        let point = if fraction.is_empty() { "" } else { "." };
        let power = power + i32::try_from(places).unwrap();
        let exponent = match (power, self.choose(3)) {
            (0, 0) => String::new(),
            (0.., 1) => format!("E+{power}"),
            _ => format!("e{power}"),
        };
        self.out.push_str(&format!("{sign}{whole}{point}{fraction}{exponent}"));
    }

    fn value(&mut self, value: &Value) {
        self.space();
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(bool) => self.out.push_str(&bool.to_string()),
            Value::Number(negative, digits, power) => self.number(*negative, digits, *power),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.out.push('[');
                for (at, item) in items.iter().enumerate() {
                    self.out.push_str(if at > 0 { "," } else { "" });
                    self.value(item);
                }
                self.out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                self.out.push('{');
                while !members.is_empty() {
                    let (key, member) = members.remove(self.choose(members.len()));
                    self.space();
                    self.string(key);
                    self.space();
                    self.out.push(':');
                    self.value(member);
                    self.out.push_str(if members.is_empty() { "" } else { "," });
                }
                self.out.push('}');
            }
        }
        self.space();
    }
}

/// Every value that differs from this one in one place.
fn variants(value: &Value) -> Vec<Value> {
    let mut variants = match value {
        Value::Null => vec![Value::Bool(false), Value::String("null".to_owned()), Value::Array(Vec::new())],
        Value::Bool(bool) => vec![Value::Bool(!bool), Value::String(bool.to_string())],
        Value::Number(negative, digits, power) if !digits.is_empty() => {
            let text = Notation::of(value, &[0]);
            vec![
                Value::Number(!negative, digits.clone(), *power),
                Value::Number(*negative, digits.clone(), power - 1),
                Value::String(text),
            ]
        }
        Value::Number(..) => vec![Value::Number(true, "1".to_owned(), 0)],
        Value::String(text) => vec![Value::String(format!("{text}a")), Value::String(format!("\u{0}{text}"))],
        Value::Array(items) => {
            let mut variants = vec![Value::Array([&items[..], &[Value::Null]].concat())];
            for (at, item) in items.iter().enumerate() {
                variants.extend(self::variants(item).into_iter().map(|item| {
                    let mut items = items.clone();
                    items[at] = item;
                    Value::Array(items)
                }));
                let mut fewer = items.clone();
                fewer.remove(at);
                variants.push(Value::Array(fewer));
            }
            variants
        }
        Value::Object(members) => {
            let mut variants = Vec::new();
            for (key, member) in members {
                variants.extend(self::variants(member).into_iter().map(|member| {
                    let mut members = members.clone();
                    members.insert(key.clone(), member);
                    Value::Object(members)
                }));
                let mut other = members.clone();
                other.remove(key);
                variants.push(Value::Object(other.clone()));
                other.insert(format!("{key}a"), member.clone());
                variants.push(Value::Object(other));
            }
            variants
        }
    };
    // A number can have become one that is not exact.
    variants.retain(|variant| variant != value && canonical(&Notation::of(variant, &[0])).is_ok());
    variants
}

proptest! {
    #[test]
    fn one_value_has_one_digest(value in values(), one in prop::collection::vec(any::<u8>(), 1..60), other in prop::collection::vec(any::<u8>(), 1..60)) {
        let (one, other) = (Notation::of(&value, &one), Notation::of(&value, &other));
        let form = canonical(&one).unwrap();
        prop_assert_eq!(&form, &canonical(&other).unwrap(), "{} and {}", one, other);
        prop_assert_eq!(digest(&one), digest(&other));
        // What is canonical stays as it is, and is JSON.
        prop_assert_eq!(canonical(&form).unwrap(), form.clone());
        prop_assert_eq!(digest(&form), digest(&one));
        prop_assert!(serde_json::from_str::<serde_json::Value>(&form).is_ok());
    }

    #[test]
    fn two_values_have_two_digests(value in values()) {
        let all: Vec<Value> = std::iter::once(value.clone()).chain(variants(&value)).collect();
        let different: HashSet<String> = all.iter().map(|value| format!("{value:?}")).collect();
        let digests: HashSet<String> = all.iter().map(|value| digest(&Notation::of(value, &[0]))).collect();
        prop_assert_eq!(digests.len(), different.len());
    }

    /// A number is refused, or its form denotes what its text does.
    #[test]
    fn a_number_keeps_its_value_or_is_refused(digits in "[1-9][0-9]{0,24}", places in 0_usize..30, exponent in -30_i32..30) {
        let padded = format!("{digits:0>width$}", width = places + 1);
        let (whole, fraction) = padded.split_at(padded.len() - places);
        let whole = if whole.trim_start_matches('0').is_empty() { "0" } else { whole.trim_start_matches('0') };
        let text = format!("{whole}{}{fraction}e{exponent}", if fraction.is_empty() { "" } else { "." });
        let kept = digits.trim_end_matches('0');
        let power = exponent - i32::try_from(places).unwrap() + i32::try_from(digits.len() - kept.len()).unwrap();
        let meant = Value::Number(false, kept.to_owned(), power);
        let float: f64 = text.parse().unwrap();
        let exact = number_of(float) == meant;
        let expected = match power {
            0.. if exact && float <= 9_007_199_254_740_992.0 => Ok(()),
            0.. => Err(Inexact::Large),
            _ if exact => Ok(()),
            _ => Err(Inexact::Rounded),
        };
        let form = canonical(&text);
        prop_assert_eq!(form.clone().map(|_| ()), expected, "{}", text);
        if let Ok(form) = form {
            prop_assert_eq!(number_of(form.parse().unwrap()), meant);
        }
    }
}

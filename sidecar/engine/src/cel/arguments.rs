//! The arguments of a call as expressions see them.

use std::{borrow::Cow, collections::HashMap};

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};

use super::{
    names::ArgumentNames,
    work::{Meter, Spent, units},
};
use crate::json::{JsonError, JsonKind, Raw, Reader};

/// The number of values that the arguments of a call may hold where a policy reads them.
pub const MAX_VALUES: usize = 4096;

/// The reason why arguments cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Two parsers could read them differently.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A key stands twice in one object.
    #[error("repeats the key `{0}` in an object")]
    Repeated(String),
    /// A key differs from one that the policy reads in case alone.
    #[error("has the key `{0}`, which differs from `{1}` in case alone")]
    Case(String, String),
    /// A key holds a NUL.
    #[error("has a key with a NUL character")]
    Nul,
    /// More than [`MAX_VALUES`] values.
    #[error("holds more than {MAX_VALUES} values, which is more than a policy reads")]
    TooMany,
    /// Not an object.
    #[error("is not an object")]
    NotAnObject,
    /// Reading them takes more work than the decision's budget.
    #[error("take more work to read than a call is given")]
    Spent,
}

impl From<Spent> for ArgumentsError {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

/// An object that expressions see. Its texts are those of the request, wherever they stand there without escapes.
#[derive(Debug)]
pub struct CelObject<'a> {
    pub(super) value: Box<dyn Val + 'a>,
    /// The keys of all objects in it, in their order.
    keys: Vec<Cow<'a, str>>,
}

impl CelObject<'_> {
    /// Checks that no key differs from one of these names in case alone, so that no server takes it for that.
    ///
    /// # Errors
    /// The first key that does.
    pub fn check(&self, names: &ArgumentNames, meter: &Meter) -> Result<(), ArgumentsError> {
        for key in &self.keys {
            meter.charge(40 + units(key.len()) * if key.is_ascii() { 2 } else { 32 })?;
            if let Some(known) = names.differing_in_case(key) {
                return Err(ArgumentsError::Case(shorten(key), known.to_owned()));
            }
        }
        Ok(())
    }
}

/// Reads a call's arguments; absent ones are an empty object.
///
/// # Errors
/// Two readers could read them differently, or they hold too much.
pub fn arguments<'a>(raw: Option<Raw<'a>>, meter: &Meter) -> Result<CelObject<'a>, ArgumentsError> {
    let mut keys = Vec::new();
    let value = match raw.map(|raw| (raw, raw.kind())) {
        Some((raw, JsonKind::Object)) => {
            let bytes = raw.as_str().as_bytes();
            let escapes = memchr::memchr_iter(b'\\', bytes).count();
            meter.charge(units(bytes.len()) / 4 + 20 * units(escapes))?;
            ArgumentReader { meter, keys: &mut keys, left: MAX_VALUES }.value(&mut raw.reader())?
        }
        // Left out and null are the same to every server.
        None | Some((_, JsonKind::Null)) => Box::new(CelMap::default()),
        Some(_) => return Err(ArgumentsError::NotAnObject),
    };
    Ok(CelObject { value, keys })
}

/// Reads the value of the arguments, charging for it.
struct ArgumentReader<'a, 'm> {
    meter: &'m Meter,
    keys: &'m mut Vec<Cow<'a, str>>,
    /// The number of values that may still come.
    left: usize,
}

impl<'a> ArgumentReader<'a, '_> {
    fn value(&mut self, reader: &mut Reader<'a>) -> Result<Box<dyn Val + 'a>, ArgumentsError> {
        self.left = self.left.checked_sub(1).ok_or(ArgumentsError::TooMany)?;
        self.meter.charge(60)?;
        Ok(match reader.peek()? {
            JsonKind::Object => {
                let mut map: HashMap<CelMapKey<'a>, Box<dyn Val + 'a>> = HashMap::new();
                reader.object::<ArgumentsError>(|reader, raw_key| {
                    let key = self.text(raw_key)?;
                    self.meter.charge(60 + 2 * units(key.len()))?;
                    if key.contains('\0') {
                        return Err(ArgumentsError::Nul);
                    }
                    self.keys.push(key.clone());
                    let inner = self.value(reader)?;
                    if map.insert(CelMapKey::String(key.into()), inner).is_some() {
                        return Err(ArgumentsError::Repeated(shorten(&raw_key.string()?.unwrap_or_default())));
                    }
                    Ok(())
                })?;
                Box::new(CelMap::from(map))
            }
            JsonKind::Array => {
                let mut items: Vec<Box<dyn Val + 'a>> = Vec::new();
                reader.array::<ArgumentsError>(|reader| {
                    items.push(self.value(reader)?);
                    Ok(())
                })?;
                Box::new(CelList::from(items))
            }
            JsonKind::String => Box::new(CelString::from(self.text(reader.value()?)?)),
            JsonKind::Number => {
                let text = reader.value()?.as_str();
                self.meter.charge(4 * units(text.len()))?;
                if let Ok(number) = text.parse::<i64>() {
                    Box::new(CelInt::from(number))
                } else if let Ok(number) = text.parse::<u64>() {
                    Box::new(CelUInt::from(number))
                } else {
                    Box::new(CelDouble::from(text.parse().unwrap_or(f64::NAN)))
                }
            }
            JsonKind::Bool => Box::new(CelBool::from(reader.value()?.as_str() == "true")),
            JsonKind::Null => {
                reader.value()?;
                Box::new(CelNull)
            }
        })
    }

    /// Reads a string. Only one with escapes is copied.
    fn text(&self, raw: Raw<'a>) -> Result<Cow<'a, str>, ArgumentsError> {
        let text = raw.as_str();
        if memchr::memchr(b'\\', text.as_bytes()).is_some() {
            self.meter.charge(units(text.len()))?;
        }
        Ok(raw.string()?.unwrap_or_default())
    }
}

fn shorten(key: &str) -> String {
    key.chars().take(40).collect()
}

/// Makes the value of the `pod` variable.
pub fn pod(name: &str, namespace: &str, service_account: &str) -> CelObject<'static> {
    let field = |key: &'static str, text: &str| {
        let text: Box<dyn Val> = Box::new(CelString::from(text.to_owned()));
        (CelMapKey::from(key), text)
    };
    let fields = [field("name", name), field("namespace", namespace), field("serviceAccount", service_account)];
    CelObject { value: Box::new(CelMap::from(HashMap::from(fields))), keys: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<(), ArgumentsError> {
        let (raw, meter) = (Reader::new(text.as_bytes()).unwrap().value().unwrap(), Meter::default());
        arguments(Some(raw), &meter)?.check(&["amount"].into_iter().collect(), &meter)
    }

    #[test]
    fn arguments_mean_one_thing_or_are_refused() {
        assert_eq!(args(r#"{"a":1,"a":2}"#), Err(ArgumentsError::Repeated("a".into())));
        assert_eq!(args(r#"{"a":1,"\u0061":2}"#), Err(ArgumentsError::Repeated("a".into())));
        assert!(matches!(args(r#"{"Amount":1}"#), Err(ArgumentsError::Case(..))));
        assert_eq!(args(r#"{"a\u0000b":1}"#), Err(ArgumentsError::Nul));
        assert!(matches!(args(r#"{"a":"\ud800"}"#), Err(ArgumentsError::Json(_))));
        assert_eq!(args("[1]"), Err(ArgumentsError::NotAnObject));
        assert_eq!(args(&format!("{{\"a\":[{}1]}}", "1,".repeat(5000))), Err(ArgumentsError::TooMany));
        assert!(args("null").is_ok());
    }
}

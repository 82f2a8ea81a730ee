//! Values as texts that name the counts of a key.

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelNull, CelString, CelUInt},
    value::Val,
};

use super::{
    error::EvalError,
    work::{self, units},
};

/// Appends a value to a text, so that different values give different texts.
///
/// # Errors
/// The value cannot be a key, or the budget is spent.
pub fn write_key(value: &dyn Val, text: &mut String) -> Result<(), EvalError> {
    work::charge(100)?;
    if let Some(inner) = value.downcast_ref::<CelString>() {
        work::charge(16 * units(inner.inner().len()))?;
        text.push_str(&format!("{:?}", inner.inner()));
    } else if let Some(inner) = value.downcast_ref::<CelInt>() {
        text.push_str(&inner.inner().to_string());
    } else if let Some(inner) = value.downcast_ref::<CelUInt>() {
        text.push_str(&inner.inner().to_string());
    } else if let Some(inner) = value.downcast_ref::<CelDouble>() {
        // 1.0 and 1 are one key, as they are equal in CEL; so are -0.0 and 0, whose sum is 0.
        text.push_str(&(inner.inner() + 0.0).to_string());
    } else if let Some(inner) = value.downcast_ref::<CelBool>() {
        text.push_str(&inner.inner().to_string());
    } else if value.downcast_ref::<CelNull>().is_some() {
        text.push_str("null");
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        text.push('[');
        for item in list.inner() {
            write_key(item.as_ref(), text)?;
            text.push(',');
        }
        text.push(']');
    } else {
        return Err(EvalError::Failed(format!("is a {}, which cannot be a key", value.get_type().name())));
    }
    Ok(())
}

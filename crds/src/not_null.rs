//! Fields that may be left out, and not be null: who writes null, or nothing behind the colon, means something, and it would say nothing.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// Reads such a field. `null_error` is the error of its null.
pub(crate) fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    null_error: &'static str,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(NotNull(null_error, PhantomData))
}

struct NotNull<T>(&'static str, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NotNull<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that is not null")
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        T::deserialize(deserializer).map(Some)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Err(E::custom(self.0))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        self.visit_none()
    }
}

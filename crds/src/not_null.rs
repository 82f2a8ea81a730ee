//! Fields that may be left out, and not be null: who writes null, or nothing behind the colon, means something, and it would say nothing.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

use crate::{
    approval::EntryApproval,
    entry::{Prompt, Resource, ServerRequest},
    tool_pins::ServerPins,
};

/// Defines functions for `deserialize_with`, each with the error of its null.
macro_rules! not_null {
    ($($field:ident: $kind:ty = $error:literal,)*) => {
        $(pub(crate) fn $field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<$kind>, D::Error> {
            deserializer.deserialize_option(NotNull($error, PhantomData))
        })*
    };
}

not_null! {
    approval: EntryApproval = "`approval` is null, and would ask about no call; write {} for every call, or remove it",
    prompts: Vec<Prompt> = "`prompts` is null, and would say nothing of prompts; write [] to let none through, or remove it",
    resources: Vec<Resource> = "`resources` is null, and would say nothing of resources; write [] to let none through, or remove it",
    requests: Vec<ServerRequest> = "`requests` is null, and would say nothing of requests; write [] to let none through, or remove it",
    pins: ServerPins = "`pins` is null, and would pin nothing; write the name of the pins, or remove it",
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

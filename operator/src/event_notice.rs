//! An event that is to be written, and its form in the API.

use std::fmt;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};

/// The component that reports the events.
pub const COMPONENT: &str = "toolweir-operator";

/// Whether an event is bad news, as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It is not.
    Normal,
    /// It is.
    Warning,
}

impl EventType {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An event that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventNotice {
    /// What the event is about.
    pub regarding: EventObject,
    /// The event's name.
    pub name: String,
    /// The event's type.
    pub event_type: EventType,
    /// The event's reason.
    pub reason: &'static str,
    /// The message.
    pub message: String,
    /// When the first of what it counts was reported.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
    /// The number of denials; else 1.
    pub count: u64,
}

/// The object of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventObject {
    /// Its apiVersion.
    pub api_version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl fmt::Display for EventObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl EventNotice {
    /// Returns the event as the API has it.
    pub fn event(&self) -> Event {
        let EventObject { api_version, kind, namespace, name, uid } = self.regarding.clone();
        Event {
            metadata: ObjectMeta { name: Some(self.name.clone()), namespace: Some(namespace.clone()), ..ObjectMeta::default() },
            involved_object: ObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(kind.to_owned()),
                namespace: Some(namespace),
                name: Some(name),
                uid: Some(uid),
                ..ObjectReference::default()
            },
            type_: Some(self.event_type.as_str().to_owned()),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.clone()),
            count: Some(i32::try_from(self.count).unwrap_or(i32::MAX)),
            first_timestamp: Some(Time(self.first)),
            last_timestamp: Some(Time(self.last)),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
            reporting_component: Some(COMPONENT.to_owned()),
            ..Event::default()
        }
    }
}

//! Reads an `AdmissionReview`. No object becomes a tree before it is known how large that would be, and only the parts on which
//! is decided ever do: not `managedFields`, not the status.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use toolweir_crds::{Document, Metadata};
use toolweir_engine::json::{JsonError, JsonKind, Reader};

use crate::{
    inject::INJECT_LABEL,
    weigh::{Scales, Unweighed},
};

/// The most that an object may take as a tree, in bytes: more than ten times what etcd holds of one in any usual form.
pub const HEAVIEST: usize = 36 * 1024 * 1024;
/// The weight of a container besides its own, in bytes: it gets up to nine variables and a mount, in the pod and once more in the patch.
const CONTAINER: usize = 24 * 1024;
/// The longest uid, name or kind, in bytes; what Kubernetes allows is shorter.
const LONGEST_NAME: usize = 512;
/// The fields of a pod whose items are containers that get something.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
const MANAGED_FIELDS: &str = "managedFields";

/// A review, with its objects as they stand in it.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// Names the review.
    pub uid: String,
    /// The kind of the object.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name, or its `generateName` where it has none yet.
    pub name: String,
    /// The value of its label for injection.
    pub label: Option<String>,
    /// The part of the object that the request is about, such as `ephemeralcontainers`; empty for the object itself.
    pub subresource: String,
    /// The size of the object as a tree, in bytes, or that it is too large.
    pub weight: Result<usize, Unweighed>,
    object: ObjectParts,
    old: ObjectParts,
}

/// Parts of an object, as they stand in the review. Empty where there is none.
#[derive(Clone, Debug, Default)]
struct ObjectParts {
    metadata: Bytes,
    spec: Bytes,
}

#[derive(Deserialize)]
struct RawReview<'a> {
    #[serde(borrow)]
    request: Option<RawRequest<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Kind<'a>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    sub_resource: Cow<'a, str>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Kind<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}

/// Reads a review.
///
/// # Errors
/// The text is no review. Whether its object is in order is not checked.
pub fn read(body: &Bytes) -> Result<AdmissionRequest, String> {
    let review: RawReview<'_> =
        serde_json::from_slice(body).map_err(|error| format!("this is not an AdmissionReview: {error}"))?;
    let request = review.request.ok_or_else(|| "the AdmissionReview has no request".to_owned())?;
    let texts = [
        ("uid", &request.uid),
        ("kind.kind", &request.kind.kind),
        ("namespace", &request.namespace),
        ("subResource", &request.sub_resource),
    ];
    for (field, text) in texts {
        if text.len() > LONGEST_NAME {
            return Err(format!("request.{field}: is longer than {LONGEST_NAME} bytes"));
        }
    }
    let parts = |object: Option<&RawValue>, field: &str| match object {
        Some(object) => ObjectParts::read(body, object.get()).map_err(|error| format!("request.{field}: {error}")),
        None => Ok(ObjectParts::default()),
    };
    let (object, old) = (parts(request.object, "object")?, parts(request.old_object, "oldObject")?);
    let wrong = |error: Unweighed| format!("request.object: {error}");
    let mut scales = Scales::new(HEAVIEST);
    let (weight, head) = match object.weigh(&mut scales) {
        Ok(head) => (Ok(scales.weight()), head),
        Err(error @ Unweighed::Json(_)) => return Err(wrong(error)),
        Err(error @ Unweighed::TooHeavy(_)) => (Err(error), ObjectHead::default()),
    };
    Ok(AdmissionRequest {
        uid: request.uid.into_owned(),
        kind: request.kind.kind.into_owned(),
        namespace: request.namespace.into_owned(),
        name: head.name.or(head.generate_name).unwrap_or_default(),
        label: head.label,
        subresource: request.sub_resource.into_owned(),
        weight,
        object,
        old,
    })
}

/// The metadata that is logged and decided on.
#[derive(Default)]
struct ObjectHead {
    name: Option<String>,
    generate_name: Option<String>,
    label: Option<String>,
}

impl ObjectParts {
    /// Reads the parts of an object; none of another JSON value.
    fn read(body: &Bytes, object: &str) -> Result<Self, JsonError> {
        let mut reader = Reader::new(object.as_bytes())?;
        let mut parts = Self::default();
        if reader.peek()? != JsonKind::Object {
            // It is none, but it must be read to the end to know that it is JSON.
            return reader.value().map(|_| parts);
        }
        let mut twice = None;
        reader.object(|reader, key| {
            let place = match key.string()?.as_deref() {
                Some("metadata") => &mut parts.metadata,
                Some("spec") => &mut parts.spec,
                _ => return reader.value().map(drop),
            };
            if !place.is_empty() {
                // Which one would hold is not clear.
                twice = Some(key.start);
            }
            *place = body.slice_ref(reader.value()?.as_str().as_bytes());
            Ok(())
        })?;
        twice.map_or(Ok(parts), |at| Err(JsonError::Syntax(at)))
    }

    /// Weighs the parts that become a tree, and returns the head.
    fn weigh(&self, scales: &mut Scales) -> Result<ObjectHead, Unweighed> {
        let mut head = ObjectHead::default();
        let text = |reader: &mut Reader<'_>| -> Result<Option<String>, JsonError> {
            let text = reader.clone().value()?.string()?;
            Ok(text.filter(|text| text.len() <= LONGEST_NAME).map(Cow::into_owned))
        };
        fields(&self.metadata, scales, |scales, n, reader, key| {
            match key {
                MANAGED_FIELDS => return Ok(reader.value().map(drop)?),
                "name" => head.name = text(reader)?.filter(|name| !name.is_empty()),
                "generateName" => head.generate_name = text(reader)?,
                "labels" if reader.peek()? == JsonKind::Object => reader.clone().object(|reader, key| {
                    if key.string()?.as_deref() == Some(INJECT_LABEL) {
                        head.label = text(reader)?;
                    }
                    reader.value().map(drop)
                })?,
                _ => {}
            }
            scales.field(n, key.len())?;
            scales.add(reader)
        })?;
        fields(&self.spec, scales, |scales, n, reader, key| {
            scales.field(n, key.len())?;
            if CONTAINERS.contains(&key) && reader.peek()? == JsonKind::Array {
                return reader.array(|reader| {
                    scales.put(CONTAINER)?;
                    scales.add(reader)
                });
            }
            scales.add(reader)
        })?;
        Ok(head)
    }
}

/// Calls `field` for each field of an object, with its number. Another JSON value is weighed as it is.
fn fields(
    text: &Bytes,
    scales: &mut Scales,
    mut field: impl FnMut(&mut Scales, usize, &mut Reader<'_>, &str) -> Result<(), Unweighed>,
) -> Result<(), Unweighed> {
    if text.is_empty() {
        return Ok(());
    }
    let mut reader = Reader::new(text)?;
    if reader.peek()? != JsonKind::Object {
        return scales.add(&mut reader);
    }
    let mut n = 0;
    reader.object(|reader, key| {
        n += 1;
        field(scales, n, reader, &key.string()?.unwrap_or_default())
    })
}

impl AdmissionRequest {
    /// Returns the pod, with the parts that are decided on. Only where the weight is in order.
    ///
    /// # Errors
    /// A part cannot be read.
    pub fn pod(&self) -> Result<Value, serde_json::Error> {
        let mut pod = Map::new();
        if !self.object.metadata.is_empty() {
            pod.insert("metadata".to_owned(), serde_json::from_slice::<Unmanaged>(&self.object.metadata)?.0);
        }
        if !self.object.spec.is_empty() {
            pod.insert("spec".to_owned(), serde_json::from_slice(&self.object.spec)?);
        }
        Ok(Value::Object(pod))
    }

    /// Returns the policy; none where the kind is another. Only where the weight is in order.
    ///
    /// # Errors
    /// A part cannot be read.
    pub fn policy(&self) -> Result<Option<Document>, serde_json::Error> {
        let spec: &[u8] = if self.object.spec.is_empty() { b"null" } else { &self.object.spec };
        let metadata = |namespace| Metadata { name: self.name.clone(), namespace, ..Metadata::default() };
        Ok(match self.kind.as_str() {
            "MCPPolicy" => {
                let metadata = metadata(Some(self.namespace.clone()));
                Some(Document::MCPPolicy { metadata, spec: serde_json::from_slice(spec)? })
            }
            "MCPClusterPolicy" => {
                Some(Document::MCPClusterPolicy { metadata: metadata(None), spec: serde_json::from_slice(spec)? })
            }
            _ => None,
        })
    }

    /// Returns whether the spec has the same text as the old object's. That takes no time.
    pub fn is_as_before(&self) -> bool {
        !self.object.spec.is_empty() && self.object.spec == self.old.spec
    }

    /// Returns whether the spec is the old object's: the same text, or the same value where both are small enough to read.
    pub fn is_unchanged(&self) -> bool {
        let (new, old) = (&self.object.spec, &self.old.spec);
        if old.is_empty() || new.is_empty() || old == new {
            return self.is_as_before();
        }
        let mut scales = Scales::new(HEAVIEST);
        let light = [old, new].iter().all(|spec| Reader::new(spec).is_ok_and(|mut reader| scales.add(&mut reader).is_ok()));
        let read = |spec: &Bytes| serde_json::from_slice::<Value>(spec).ok();
        light && read(new).is_some_and(|new| Some(new) == read(old))
    }
}

/// Metadata without `managedFields`.
struct Unmanaged(Value);

impl<'de> Deserialize<'de> for Unmanaged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UnmanagedFields;
        impl<'de> Visitor<'de> for UnmanagedFields {
            type Value = Unmanaged;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the metadata of an object")
            }

            fn visit_unit<E>(self) -> Result<Unmanaged, E> {
                Ok(Unmanaged(Value::Null))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unmanaged, A::Error> {
                let mut fields = Map::new();
                while let Some(field) = map.next_key::<String>()? {
                    if field == MANAGED_FIELDS {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        fields.insert(field, map.next_value()?);
                    }
                }
                Ok(Unmanaged(Value::Object(fields)))
            }
        }
        deserializer.deserialize_any(UnmanagedFields)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(object: &Value, old: &Value) -> AdmissionRequest {
        let review = json!({"request": {"uid": "u", "kind": {"kind": "Pod"}, "object": object, "oldObject": old}});
        read(&Bytes::from(review.to_string())).unwrap()
    }

    #[test]
    fn what_is_decided_on_is_read_and_nothing_else() {
        let pod = json!({
            "metadata": {
                "name": "a", "labels": {"toolweir.dev/inject": "enabled"},
                "managedFields": [{"fieldsV1": {"f:spec": {"f:containers": {}}}}],
            },
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Pending"},
        });
        let read = asked(&pod, &Value::Null);
        assert_eq!((read.name.as_str(), read.label.as_deref()), ("a", Some("enabled")));
        let expected = json!({
            "metadata": {"name": "a", "labels": {"toolweir.dev/inject": "enabled"}},
            "spec": {"containers": [{"name": "c"}]},
        });
        assert_eq!(read.pod().unwrap(), expected);
        assert!(read.weight.unwrap() > CONTAINER);
    }

    #[test]
    fn an_object_of_three_mib_that_is_honest_is_not_too_heavy() {
        const LONG: usize = 3 * 1024 * 1024;
        let managed: Map<String, Value> = (0..100_000).map(|n| (format!("f:field-number-{n}"), json!({}))).collect();
        let env = |n: usize| json!({"name": format!("VARIABLE_{n}"), "value": "x".repeat(40)});
        for pod in [
            json!({"metadata": {"managedFields": [{"fieldsV1": managed}]}, "spec": {}}),
            json!({"metadata": {"annotations": {"a": "x".repeat(LONG)}}, "spec": {}}),
            json!({"metadata": {}, "spec": {"containers": [{"env": (0..LONG / 75).map(env).collect::<Vec<_>>()}]}}),
        ] {
            assert!(pod.to_string().len() > 2_500_000);
            assert!(asked(&pod, &pod).weight.is_ok());
        }
    }

    #[test]
    fn what_is_small_and_becomes_large_is_too_heavy() {
        let many = |item: Value, count: usize| Value::Array(vec![item; count]);
        for spec in [
            json!({"x": many(json!(0), 1_000_000)}),
            json!({"x": many(json!({"": 0}), 60_000)}),
            json!({"containers": many(json!({}), 5_000)}),
            many(json!(0), 1_000_000),
        ] {
            assert_eq!(asked(&json!({"spec": spec}), &Value::Null).weight, Err(Unweighed::TooHeavy(HEAVIEST)));
        }
        let metadata = json!({"metadata": many(json!(0), 1_000_000)});
        assert_eq!(asked(&metadata, &Value::Null).weight, Err(Unweighed::TooHeavy(HEAVIEST)));
    }

    #[test]
    fn the_same_spec_is_unchanged_however_it_is_written() {
        let body = |new: &str, old: &str| {
            let review =
                format!("{{\"request\":{{\"uid\":\"u\",\"object\":{{\"spec\":{new}}},\"oldObject\":{{\"spec\":{old}}}}}}}");
            read(&Bytes::from(review)).unwrap().is_unchanged()
        };
        assert!(body("{\"a\":1,\"b\":2}", "{\"b\": 2, \"a\": 1}"));
        assert!(!body("{\"a\":1}", "{\"a\":2}"));
        assert!(!asked(&json!({"spec": {}}), &Value::Null).is_unchanged());
        let large = format!("[{}0]", "0,".repeat(2_000_000));
        assert!(body(&large, &large));
        assert!(!body(&large, &format!(" {large} ").replace(",0]", ", 0]")), "what is too much to compare counts as changed");
    }

    #[test]
    fn what_stands_twice_or_is_endless_is_refused() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for (review, why) in [
            ("{\"request\":{\"uid\":\"u\",\"object\":{\"spec\":{},\"spec\":{}}}}".to_owned(), "request.object: "),
            (
                "{\"request\":{\"uid\":\"u\",\"object\":{},\"object\":{}}}".to_owned(),
                "this is not an AdmissionReview: duplicate field",
            ),
            (format!("{{\"request\":{{\"uid\":\"{long}\"}}}}"), "request.uid: is longer than 512 bytes"),
            (format!("{{\"request\":{{\"uid\":\"u\",\"namespace\":\"{long}\"}}}}"), "request.namespace: "),
        ] {
            let error = read(&Bytes::from(review)).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }
}

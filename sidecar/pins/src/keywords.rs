//! Where the schemas within a schema stand. What is anywhere else is data: an `enum` within a `default` is none.

/// What the value of a keyword is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A schema; or, as `items` was once, a list of schemas.
    Schema,
    /// A list of schemas.
    Schemas,
    /// Schemas by name. A name is no keyword, whatever it is.
    Named,
    /// Values in an order that means nothing.
    Set,
    /// The dialect. Whoever reads a schema of MCP reads every dialect as the same.
    Dialect,
    /// Text for people and models, and what else does not change what is accepted.
    Text,
    /// Anything else.
    Data,
}

/// Returns what the value of a keyword is.
pub fn content(keyword: &str) -> Content {
    match keyword {
        "additionalItems"
        | "additionalProperties"
        | "contains"
        | "contentSchema"
        | "else"
        | "if"
        | "items"
        | "not"
        | "propertyNames"
        | "then"
        | "unevaluatedItems"
        | "unevaluatedProperties" => Content::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Content::Schemas,
        "$defs" | "definitions" | "dependencies" | "dependentSchemas" | "patternProperties" | "properties" => Content::Named,
        "enum" | "required" => Content::Set,
        "$schema" => Content::Dialect,
        "$comment" | "default" | "deprecated" | "description" | "examples" | "title" => Content::Text,
        _ => Content::Data,
    }
}

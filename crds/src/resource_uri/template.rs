//! Templates of resources (RFC 6570), as servers list them.

use std::borrow::Cow;

use super::{
    canonical::ResourceUri,
    pattern::{canonical_literals, covers, matches},
};
use crate::{
    bounds::{RESOURCE_URI, TEMPLATE_WITNESSES},
    tool_name::literals,
};

/// What a variable is in a witness.
const VALUE: &str = "x";

/// Returns URIs of a template to ask policies about, in canonical form and at most [`TEMPLATE_WITNESSES`]: the template with a
/// value for each expression, without those that may be left out, and for each of these entries (URIs or globs of policies) a
/// URI that it and the template have in common, if an obvious one is there. An expression may stand for any characters, as it does
/// for some servers. None for what is no template.
///
/// ```
/// use toolweir_crds::resource_uri::template_witnesses;
///
/// let witnesses = template_witnesses("file:///data/{+path}", ["file:///data/public/*.md", "file:///etc/*"].into_iter());
/// assert_eq!(witnesses, ["file:///data/x", "file:///data/public/x.md"]);
/// ```
pub fn template_witnesses<'a>(template: &str, entries: impl Iterator<Item = &'a str>) -> Vec<String> {
    let Some(template) = UriTemplate::parse(template) else { return Vec::new() };
    let mut witnesses: Vec<String> = Vec::new();
    let mut add = |uri: &str| {
        if !witnesses.iter().any(|known| known == uri) {
            witnesses.push(uri.to_owned());
        }
        witnesses.len() < TEMPLATE_WITNESSES
    };
    for uri in template.expansions() {
        if let Ok(uri) = ResourceUri::read(&uri) {
            add(uri.as_str());
        }
    }
    let ours = template.literals();
    for entry in entries {
        let Some(theirs) = literals(entry) else { continue };
        let witness = common(&ours, &theirs).into_iter().find_map(|uri| {
            let uri = ResourceUri::read(&uri).ok()?;
            covers(entry, &uri).then(|| uri.as_str().to_owned())
        });
        if witness.is_some_and(|witness| !add(&witness)) {
            break;
        }
    }
    witnesses
}

/// The texts of a template, and the expressions between them.
struct UriTemplate<'a> {
    texts: Vec<&'a str>,
    expressions: Vec<UriExpression<'a>>,
}

/// What stands in braces.
struct UriExpression<'a> {
    operator: Option<char>,
    variables: Vec<&'a str>,
}

impl<'a> UriTemplate<'a> {
    fn parse(template: &'a str) -> Option<Self> {
        if template.len() > RESOURCE_URI {
            return None;
        }
        let (mut texts, mut expressions) = (Vec::new(), Vec::new());
        let mut rest = template;
        while let Some((text, behind)) = rest.split_once('{') {
            let (inner, behind) = behind.split_once('}')?;
            texts.push(text);
            expressions.push(UriExpression::parse(inner)?);
            rest = behind;
        }
        texts.push(rest);
        texts.iter().all(|text| !text.contains('}')).then_some(Self { texts, expressions })
    }

    /// Returns what the template expands to: with all variables, without those that follow an operator, and where the first
    /// variable is a whole URI.
    fn expansions(&self) -> Vec<String> {
        let expand = |first: &str, with_optional: bool| {
            let mut uri = String::new();
            let mut values = self.expressions.iter().enumerate().map(|(at, expression)| match expression.operator {
                None | Some('+') if at == 0 => first.to_owned(),
                None | Some('+') => VALUE.to_owned(),
                Some(_) if !with_optional => String::new(),
                Some(operator) => expression.expansion(operator),
            });
            for text in &self.texts {
                uri.push_str(text);
                uri.push_str(&values.next().unwrap_or_default());
            }
            uri
        };
        let mut found = vec![expand(VALUE, true), expand(VALUE, false)];
        if self.texts.first().is_some_and(|text| text.is_empty()) {
            found.push(expand("xx://x", true));
        }
        found
    }

    /// Returns the texts as they are in canonical URIs, if there are such; so they compare with those of entries.
    fn literals(&self) -> Vec<Cow<'a, str>> {
        let texts: Vec<_> = self.texts.iter().copied().map(Cow::Borrowed).collect();
        match canonical_literals(&texts) {
            Ok(canonical) => canonical.into_iter().map(Cow::Owned).collect(),
            Err(_) => texts,
        }
    }
}

impl<'a> UriExpression<'a> {
    fn parse(inner: &'a str) -> Option<Self> {
        let operator = inner.chars().next().filter(|first| "+#./;?&".contains(*first));
        let variables = inner.strip_prefix(|first| Some(first) == operator).unwrap_or(inner);
        let name = |variable: &'a str| variable.split([':', '*']).next().unwrap_or_default();
        let variables: Vec<_> = variables.split(',').map(name).collect();
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '%');
        let known = variables.iter().all(|variable| !variable.is_empty() && variable.chars().all(fits));
        known.then_some(Self { operator, variables })
    }

    /// Returns what it expands to, with a value for each variable.
    fn expansion(&self, operator: char) -> String {
        let named = |begin: char, separator: &str| {
            let pairs: Vec<_> = self.variables.iter().map(|variable| format!("{variable}={VALUE}")).collect();
            format!("{begin}{}", pairs.join(separator))
        };
        match operator {
            '?' | '&' => named(operator, "&"),
            ';' => named(';', ";"),
            '.' | '/' => self.variables.iter().flat_map(|_| [operator.to_string(), VALUE.to_owned()]).collect(),
            operator => format!("{operator}{VALUE}"),
        }
    }
}

/// Returns texts that two globs, given by their literals, both match: the longer beginning, all that is between the stars of
/// either, and the longer end.
fn common(ours: &[Cow<'_, str>], theirs: &[Cow<'_, str>]) -> Vec<String> {
    let both = |text: &String| matches(ours, text) && matches(theirs, text);
    let (Some((begin, our_rest)), Some((others_begin, their_rest))) = (ours.split_first(), theirs.split_first()) else {
        return Vec::new();
    };
    let (Some((end, our_middle)), Some((others_end, their_middle))) = (our_rest.split_last(), their_rest.split_last()) else {
        // One of them is a single URI.
        let only = if our_rest.is_empty() { begin } else { others_begin };
        return Some(only.to_string()).into_iter().filter(both).collect();
    };
    let begin = if begin.starts_with(&**others_begin) { begin } else { others_begin };
    let end = if end.ends_with(&**others_end) { end } else { others_end };
    let joined = |value: &str| {
        let mut text = begin.to_string();
        for part in our_middle.iter().chain(their_middle) {
            text.push_str(value);
            text.push_str(part);
        }
        text + value + end
    };
    [joined(VALUE), joined("")].into_iter().filter(both).collect()
}

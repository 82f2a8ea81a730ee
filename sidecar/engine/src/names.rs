//! The forms of a name in which entries of policies match it.

use std::borrow::Cow;

use smallvec::SmallVec;
use toolweir_crds::{
    OperationKind, bounds,
    resource_uri::{self, ResourceUri},
};

use crate::{
    call::Operation,
    case::folded,
    glob::{Glob, Match},
};

/// The forms of a name. The default is that of a name which only entries of stars alone match.
#[derive(Debug, Default)]
pub(crate) struct NameForms<'a> {
    /// What an entry that allows matches: the name as it stands, or a resource's URI in its canonical form.
    pub exact: Cow<'a, str>,
    /// What an entry that denies or restricts matches, without case: all that a server could take for the same.
    pub folded: SmallVec<[Cow<'a, str>; 1]>,
    /// The URI of a resource.
    uri: Option<ResourceUri<'a>>,
    /// What the caller is told where the name has no clear meaning. Then it matches entries of stars alone.
    pub unclear: Option<String>,
}

impl<'a> NameForms<'a> {
    /// The forms of the name of what is asked for.
    pub(crate) fn of(operation: Operation<'a>) -> Self {
        let Operation { kind, name, .. } = operation;
        match kind {
            OperationKind::Resource => Self::of_uri(name),
            _ if name.len() > bounds::TOOL_NAME => Self { unclear: Some(too_long(operation)), ..Self::default() },
            _ => Self { exact: Cow::Borrowed(name), folded: [folded(name)].into(), ..Self::default() },
        }
    }

    fn of_uri(uri: &'a str) -> Self {
        match ResourceUri::read(uri) {
            Ok(read) => {
                // What is below a folder is denied with the folder itself, which some servers list.
                let below = |variant: &str| (!variant.ends_with('/')).then(|| format!("{variant}/"));
                let forms = read.variants().flat_map(|variant| [Some(variant.to_owned()), below(variant)]).flatten();
                let folded = forms.map(|form| Cow::Owned(folded(&form).into_owned())).collect();
                Self { exact: Cow::Owned(read.as_str().to_owned()), folded, uri: Some(read), unclear: None }
            }
            Err(why) => Self { unclear: Some(format!("the URI {why}.")), ..Self::default() },
        }
    }

    /// Matches the glob of an entry: exactly, or in one of the other forms.
    pub(crate) fn matched_by(&self, glob: &Glob, entry: &str) -> Option<Match> {
        let mut folded = self.folded.iter();
        let first = glob.match_name(&self.exact, folded.next().map_or("", |first| first));
        let found = first.or_else(|| folded.any(|other| glob.match_name(other, other).is_some()).then_some(Match::Folded))?;
        let means = |uri: &ResourceUri<'_>| resource_uri::covers(entry, uri);
        Some(if self.uri.as_ref().is_none_or(means) { found } else { Match::Folded })
    }
}

/// Returns the text of the denial of a name that is too long.
fn too_long(Operation { kind, name, .. }: Operation<'_>) -> String {
    let list = match kind {
        OperationKind::Tool => " Use a tool that tools/list shows.",
        OperationKind::Prompt => " Use a prompt that prompts/list shows.",
        _ => "",
    };
    format!("the {kind}'s name has {} bytes; at most {} are possible.{list}", name.len(), bounds::TOOL_NAME)
}

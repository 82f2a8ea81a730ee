//! How a server is reached: the choice among what policies say.

use toolweir_crds::{Credential, FieldError, ServerTls};

use crate::{
    policy::{Policy, Problem, Severity},
    rules::ServerAccess,
};

/// How a policy says that a server is reached.
#[derive(Clone, Copy)]
pub(crate) struct GivenAccess<'a> {
    /// The policy, by its index.
    pub policy: usize,
    /// The server's index in it.
    pub at: usize,
    pub url: &'a str,
    pub credential: Option<&'a Credential>,
    pub tls: Option<ServerTls>,
}

/// Chooses among what policies say of how a server is reached: the URL of the oldest, by creation and then by name, and the credential
/// and the TLS for it. A credential goes only to a URL that the same policy gives, and policies that disagree on it close the server:
/// returns those, by name, each with why.
pub(crate) fn choose_access(
    policies: &[Policy],
    given: &[GivenAccess<'_>],
    problems: &mut Vec<Problem>,
) -> (ServerAccess, Vec<(String, String)>) {
    let name = |index: usize| policies.get(index).map(|policy| policy.id.to_string()).unwrap_or_default();
    let mut given = given.to_vec();
    given.sort_by_cached_key(|given| {
        (policies.get(given.policy).map(|policy| (policy.created.is_none(), &policy.created, &policy.id)), given.at)
    });
    let Some(oldest) = given.first() else { return (ServerAccess::default(), Vec::new()) };
    let (url, holder) = (oldest.url, name(oldest.policy));
    let intercept = is_intercepted(policies, &given, url, problems);
    let refuses_tls = given.iter().any(|given| given.tls == Some(ServerTls::Refuse));
    let mut conflict = |given: &GivenAccess<'_>, severity, message: String| {
        let field = if severity == Severity::Closed { "credential" } else { "url" };
        let error = FieldError { path: format!("spec.servers[{}].{field}", given.at), message };
        let text = error.to_string();
        problems.push(Problem { policy: given.policy, severity, error });
        text
    };
    for other in given.iter().filter(|other| other.url != url) {
        let said = other.url;
        let message = format!("is {said}, but the older policy {holder} says {url}, which holds; write the same or leave it out");
        conflict(other, Severity::Conflict, message);
    }
    let with_credential: Vec<&GivenAccess<'_>> = given.iter().filter(|given| given.credential.is_some()).collect();
    let Some(first) = with_credential.first() else {
        return (ServerAccess { url: Some(url.into()), credential: None, intercept, refuses_tls }, Vec::new());
    };
    let mut conflicts = Vec::new();
    for other in with_credential.iter().filter(|other| other.credential != first.credential) {
        let message = format!(
            "differs from that of the older policy {}; nothing reaches the server until both write the same or one leaves it out",
            name(first.policy)
        );
        conflicts.push((name(other.policy), conflict(other, Severity::Closed, message)));
    }
    if with_credential.iter().all(|given| given.url != url) {
        let message = format!(
            "is for {}, but the older policy {holder} says that the server is at {url}; nothing reaches the server until they agree",
            first.url
        );
        conflicts.push((name(first.policy), conflict(first, Severity::Closed, message)));
    }
    let credential = first.credential.filter(|_| conflicts.is_empty()).cloned();
    (ServerAccess { url: Some(url.into()), credential, intercept, refuses_tls }, conflicts)
}

/// Returns whether captured TLS to the server at `url` is opened: a policy that gives this URL says so, and none refuses.
fn is_intercepted(policies: &[Policy], given: &[GivenAccess<'_>], url: &str, problems: &mut Vec<Problem>) -> bool {
    let refusing = given.iter().find(|given| given.tls == Some(ServerTls::Refuse));
    let mut opening = given.iter().filter(|given| given.tls == Some(ServerTls::Intercept));
    let Some(refusing) = refusing else { return opening.any(|given| given.url == url) };
    let by = policies.get(refusing.policy).map(|policy| policy.id.to_string()).unwrap_or_default();
    problems.extend(opening.map(|given| {
        let message =
            format!("is Intercept, but policy {by} says Refuse, which holds; write the same in both, or leave it out in one");
        let error = FieldError { path: format!("spec.servers[{}].tls", given.at), message };
        Problem { policy: given.policy, severity: Severity::Conflict, error }
    }));
    false
}

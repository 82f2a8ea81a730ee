//! The names under which a pod gets what credentials of servers need, the checks of these, and what of it a sidecar has.

use toolweir_crds::{credential::audience_problem, text::escaped};

/// The annotation of a pod or its namespace that names the Secret whose keys policies name.
pub const CREDENTIALS: &str = "toolweir.dev/credentials";
/// The annotation of a pod or its namespace with the audiences of tokens of the pod's service account, separated by commas.
pub const TOKEN_AUDIENCES: &str = "toolweir.dev/token-audiences";
/// The volume of the Secret. The sidecar alone mounts it.
pub const CREDENTIALS_VOLUME: &str = "toolweir-credentials";
/// The path at which it does.
pub const CREDENTIALS_PATH: &str = "/var/run/secrets/toolweir-credentials";
/// The volume of the tokens. The sidecar alone mounts it.
pub const AUDIENCE_TOKENS_VOLUME: &str = "toolweir-audience-tokens";
/// The path at which it does.
pub const AUDIENCE_TOKENS_PATH: &str = "/var/run/secrets/toolweir-audience-tokens";
/// The most audiences of one pod: the kubelet asks for a token of each.
pub const MOST_AUDIENCES: usize = 32;
/// The longest list of audiences in an annotation, in bytes.
pub const LONGEST_AUDIENCES: usize = 8192;
/// The longest name of a Secret, in bytes.
const LONGEST_NAME: usize = 253;

/// What the sidecar of a pod has mounted for credentials of servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountedCredentials {
    /// True if it has a Secret.
    pub secret: bool,
    /// The audiences of its tokens, without the one for the operator.
    pub audiences: Vec<String>,
}

/// Returns what is wrong with the name of a Secret, if something is. It is the name of a DNS subdomain (RFC 1123).
pub fn secret_problem(name: &str) -> Option<String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    let is_name = name.len() <= LONGEST_NAME && name.split('.').all(is_part);
    (!is_name).then(|| {
        format!(
            "`{}` is not the name of a Secret; write lowercase letters, digits, `-` and `.`, such as agent-credentials",
            escaped(name, 80)
        )
    })
}

/// Returns the audiences of an annotation, each once.
///
/// # Errors
/// What is wrong with one, or with the list.
pub fn read_audiences(text: &str) -> Result<Vec<String>, String> {
    if text.len() > LONGEST_AUDIENCES {
        return Err(format!("has more than {LONGEST_AUDIENCES} bytes; write fewer or shorter audiences"));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut audiences: Vec<String> = Vec::new();
    for audience in text.split(',').map(str::trim) {
        if let Some(problem) = audience_problem(audience) {
            return Err(if audience.is_empty() { "has a comma too many; write AUDIENCE,AUDIENCE".to_owned() } else { problem });
        }
        if !audiences.iter().any(|other| other == audience) {
            audiences.push(audience.to_owned());
        }
    }
    if audiences.len() > MOST_AUDIENCES {
        return Err(format!("has {} audiences; write at most {MOST_AUDIENCES}", audiences.len()));
    }
    Ok(audiences)
}

/// Checks a list of audiences. `path` is where it is written.
///
/// # Errors
/// What is wrong with one, or with the list, after its path.
pub fn check_audiences(path: &str, audiences: &[String]) -> Result<(), String> {
    for (at, audience) in audiences.iter().enumerate() {
        if let Some(problem) = audience_problem(audience) {
            return Err(format!("{path}[{at}]: {problem}"));
        }
        if audiences.iter().take(at).any(|other| other == audience) {
            return Err(format!("{path}[{at}]: `{audience}` is there twice; write it once"));
        }
    }
    let count = audiences.len();
    if count > MOST_AUDIENCES { Err(format!("{path}: has {count} audiences; write at most {MOST_AUDIENCES}")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_dns_subdomains() {
        for name in ["a", "agent-credentials", "a.b-c.1", &"x".repeat(253)] {
            assert_eq!(secret_problem(name), None, "{name}");
        }
        for name in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", " a", "ä", &"x".repeat(254)] {
            assert!(secret_problem(name).is_some_and(|problem| problem.contains("such as agent-credentials")), "{name}");
        }
        assert!(!secret_problem("a\nb\u{1b}").unwrap().contains(char::is_control));
    }

    #[test]
    fn audiences_are_separated_by_commas_and_come_once() {
        assert_eq!(
            read_audiences(" mcp , https://a.example/x,mcp"),
            Ok(vec!["mcp".to_owned(), "https://a.example/x".to_owned()])
        );
        for none in ["", " ", "\t"] {
            assert_eq!(read_audiences(none), Ok(Vec::new()));
        }
        for (wrong, promised) in [
            ("a,", "a comma too many"),
            (",", "a comma too many"),
            ("a b", "`a b` has a blank"),
            ("x, toolweir", "pose as the sidecar"),
            (&"x,".repeat(5000), "has more than 8192 bytes"),
            (&"x".repeat(254), "has 254 bytes"),
        ] {
            assert!(read_audiences(wrong).unwrap_err().contains(promised), "{wrong}");
        }
        let many = |count: usize| (0..count).map(|at| format!("a{at}")).collect::<Vec<_>>().join(",");
        assert_eq!(read_audiences(&many(32)).unwrap().len(), 32);
        assert!(read_audiences(&many(33)).unwrap_err().contains("has 33 audiences; write at most 32"));
    }
}

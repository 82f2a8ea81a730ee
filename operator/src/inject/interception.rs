//! What a captured pod gets if the TLS of its agents to some servers is opened: an argument of its sidecar, and variables by which
//! the programs of the other containers trust the pod's authority.
//!
//! The sidecar writes the files that the variables name before any other container starts.

use serde_json::{Value, json};
use toolweir_crds::SIDECAR_CONTAINER;

use super::{
    config_volume::CONFIG_PATH,
    fields::{items, name},
};

/// The flag of a sidecar that names the folder of these files.
pub const AGENT_CA_DIR: &str = "--agent-ca-dir";
const BUNDLE: &str = "/etc/toolweir/ca-bundle.pem";
const TRUST_STORE: &str = "-Djavax.net.ssl.trustStore=/etc/toolweir/ca-bundle.jks";
const JAVA: &str = "JAVA_TOOL_OPTIONS";
/// The variables, each with its value. `SSL_CERT_DIR` is none of them, since with it Node 24 loses the system's roots, nor
/// `NODE_OPTIONS`, since Node 20 does not start with an option that it does not know.
pub const CA_VARIABLES: [(&str, &str); 7] = [
    ("NODE_EXTRA_CA_CERTS", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("SSL_CERT_FILE", BUNDLE),
    ("GIT_SSL_CAINFO", BUNDLE),
    ("DENO_CERT", BUNDLE),
    ("CURL_CA_BUNDLE", BUNDLE),
    (JAVA, TRUST_STORE),
];

/// Returns the arguments of a sidecar that opens TLS.
pub(super) fn args() -> [&'static str; 2] {
    [AGENT_CA_DIR, CONFIG_PATH]
}

/// Returns whether an argument is one of [`args`].
pub(super) fn is_arg(arg: &Value) -> bool {
    args().iter().any(|ours| arg == ours)
}

/// Returns whether a pod has a sidecar that an earlier round told to open TLS.
pub(crate) fn is_added(pod: &Value) -> bool {
    let init = pod.get("spec").map_or(&[][..], |spec| items(spec, "initContainers"));
    let sidecar = init.iter().find(|container| name(container) == Some(SIDECAR_CONTAINER));
    sidecar
        .is_some_and(|sidecar| items(sidecar, "args").windows(2).any(|pair| pair.iter().zip(args()).all(|(is, ours)| is == ours)))
}

fn variable((name, value): (&str, &str)) -> Value {
    json!({"name": name, "value": value})
}

/// Returns whether a variable of a container is exactly one of ours.
pub(super) fn is_ours(env: &Value) -> bool {
    CA_VARIABLES.into_iter().any(|ours| *env == variable(ours))
}

/// Returns the variables for a container: those that it does not set itself.
pub(super) fn variables(container: &Value) -> Vec<Value> {
    let sets = |wanted: &str| items(container, "env").iter().any(|env| name(env) == Some(wanted));
    CA_VARIABLES.into_iter().filter(|(name, _)| !sets(name)).map(variable).collect()
}

/// Returns whether a variable leads to the pod's authority, in our form or, for Java, among other options.
fn leads_to_authority(env: &Value) -> bool {
    let value = || env.get("value").and_then(Value::as_str).unwrap_or_default();
    is_ours(env) || name(env) == Some(JAVA) && value().split_whitespace().any(|option| option == TRUST_STORE)
}

/// Warns of variables that a container sets itself, which stay.
pub(super) fn warn_of_container(container: &Value, who: &str, warnings: &mut Vec<String>) {
    let own = |wanted: &str| items(container, "env").iter().any(|env| name(env) == Some(wanted) && !leads_to_authority(env));
    for (name, _) in CA_VARIABLES.into_iter().filter(|(name, _)| own(name)) {
        warnings.push(if name == JAVA {
            format!("{who}: its own {JAVA} stays: Java reaches no intercepted server; append {TRUST_STORE}")
        } else {
            format!(
                "{who}: its own {name} stays: what uses it reaches no intercepted server, unless its certificates include the \
                 pod's, as those of {BUNDLE} do"
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_in_the_folder_that_all_containers_mount() {
        for (name, value) in CA_VARIABLES {
            let file = value.rsplit('=').next().unwrap();
            assert!(file.starts_with(&format!("{CONFIG_PATH}/")), "{name}");
        }
    }

    #[test]
    fn java_may_have_other_options_too() {
        for (value, is_warned) in [
            (json!("-Xmx1g -Djavax.net.ssl.trustStore=/etc/toolweir/ca-bundle.jks -ea"), false),
            (json!("-Djavax.net.ssl.trustStore=/etc/toolweir/ca-bundle.jks.old"), true),
            (json!("-Xmx1g"), true),
            (json!(null), true),
        ] {
            let (mut warnings, env) = (Vec::new(), json!([{"name": JAVA, "value": value}]));
            warn_of_container(&json!({"env": env}), "container a", &mut warnings);
            assert_eq!(warnings.len(), usize::from(is_warned), "{env}");
        }
    }

    #[test]
    fn a_round_before_is_known_by_both_arguments_of_the_sidecar() {
        let with = |name: &str, args: Value| json!({"spec": {"initContainers": [{"name": "a"}, {"name": name, "args": args}]}});
        assert!(is_added(&with(SIDECAR_CONTAINER, json!(["run", AGENT_CA_DIR, CONFIG_PATH, "--log-format"]))));
        for (name, args) in [
            ("other", json!([AGENT_CA_DIR, CONFIG_PATH])),
            (SIDECAR_CONTAINER, json!(["run", AGENT_CA_DIR])),
            (SIDECAR_CONTAINER, json!([AGENT_CA_DIR, "/elsewhere"])),
            (SIDECAR_CONTAINER, json!([CONFIG_PATH, AGENT_CA_DIR])),
            (SIDECAR_CONTAINER, json!([])),
            (SIDECAR_CONTAINER, json!("--agent-ca-dir")),
        ] {
            assert!(!is_added(&with(name, args.clone())), "{name} {args}");
        }
        assert!(!is_added(&json!({})));
    }
}

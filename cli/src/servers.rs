//! Which servers have a credential that policies give them, and of which kind, which are intercepted, which are held to pins, and which have entries
//! that a person must approve. A policy holds no secret: it
//! names keys of a Secret, which are not read.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A server of a policy, as far as its credential and its TLS matter. Kinds of newer versions are shown by their name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PolicyServer {
    name: String,
    credential: Option<Map<String, Value>>,
    tls: Option<Value>,
    pins: Option<Map<String, Value>>,
    tools: Vec<AskingEntry>,
    prompts: Option<Vec<AskingEntry>>,
    resources: Option<Vec<AskingEntry>>,
    requests: Option<Vec<AskingEntry>>,
}

/// An entry of a policy, as far as it matters whether it wants approval.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct AskingEntry {
    approval: Option<Value>,
}

impl AskingEntry {
    fn asks(&self) -> bool {
        self.approval.is_some()
    }
}

impl PolicyServer {
    /// Returns the names of the servers whose captured TLS the policy has opened.
    pub fn intercepted(servers: &[Self]) -> Vec<String> {
        let opened = |server: &&Self| server.tls.as_ref().is_some_and(|tls| tls == INTERCEPT);
        servers.iter().filter(opened).map(|server| server.name.clone()).collect()
    }

    /// Returns true if an entry wants a person's approval.
    pub fn any_asks(servers: &[Self]) -> bool {
        let entries = |server: &'_ Self| {
            let lists = [&server.prompts, &server.resources, &server.requests];
            let mut others = lists.into_iter().flatten().flatten();
            server.tools.iter().any(AskingEntry::asks) || others.any(AskingEntry::asks)
        };
        servers.iter().any(entries)
    }
}

/// A server that a policy holds to pins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedServerRow {
    /// The server.
    pub server: String,
    /// The name of the pins, after a namespace that is not the policy's.
    pub pins: String,
}

impl PinnedServerRow {
    /// Returns the servers that are held to pins.
    pub fn all(servers: &[PolicyServer]) -> Vec<Self> {
        let row = |server: &PolicyServer| {
            let field = |name: &str| server.pins.as_ref()?.get(name)?.as_str();
            let name = field("name")?;
            let pins = field("namespace").map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
            Some(Self { server: server.name.clone(), pins })
        };
        servers.iter().filter_map(row).collect()
    }
}

/// The value of `tls` of a server whose captured TLS is opened.
pub const INTERCEPT: &str = "Intercept";

/// A server to which a policy gives a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRow {
    /// The server.
    pub server: String,
    /// The kind, as the policy writes it: `bearer`, `tokenExchange`, ...
    pub kind: String,
}

impl CredentialRow {
    /// Returns the servers with a credential.
    pub fn all(servers: &[PolicyServer]) -> Vec<Self> {
        let row = |server: &PolicyServer| {
            let given = server.credential.as_ref()?.iter().filter(|(_, value)| !value.is_null());
            let kinds: Vec<&str> = given.map(|(kind, _)| kind.as_str()).collect();
            Some(Self { server: server.name.clone(), kind: kinds.join(", ") })
        };
        servers.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use toolweir_crds::credential::CredentialKind;

    use super::*;

    fn rows(servers: &Value) -> Vec<(String, String)> {
        let servers: Vec<PolicyServer> = serde_json::from_value(servers.clone()).unwrap();
        CredentialRow::all(&servers).into_iter().map(|row| (row.server, row.kind)).collect()
    }

    #[test]
    fn intercepted_is_what_says_so() {
        let servers = json!([{"name": "a", "tls": "Intercept"}, {"name": "b", "tls": "Refuse"}, {"name": "c", "tls": null},
            {"name": "d"}, {"name": "e", "tls": {"newer": 1}}]);
        let servers: Vec<PolicyServer> = serde_json::from_value(servers).unwrap();
        assert_eq!(PolicyServer::intercepted(&servers), ["a"]);
        assert_eq!(serde_json::to_value(toolweir_crds::ServerTls::Intercept).unwrap(), INTERCEPT);
    }

    #[test]
    fn a_policy_asks_if_an_entry_does() {
        let asks_in = |list: &str, entries: Value| {
            let servers: Vec<PolicyServer> =
                serde_json::from_value(json!([{"name": "a", "prompts": null}, {"name": "b", list: entries}])).unwrap();
            PolicyServer::any_asks(&servers)
        };
        let asks = |tools: Value| asks_in("tools", tools);
        for list in ["prompts", "resources", "requests"] {
            assert!(asks_in(list, json!([{"name": "x"}, {"name": "y", "approval": {}}])), "{list}");
            assert!(!asks_in(list, json!([{"name": "x"}])), "{list}");
        }
        assert!(asks(json!([{"name": "t", "newer": 1}, {"class": "Financial", "approval": {"newer": 1}}])));
        assert!(!asks(json!([{"name": "t"}, {"name": "u", "approval": null}])));
    }

    #[test]
    fn pins_are_named() {
        let servers = json!([{"name": "a", "pins": {"name": "p", "onNew": "Newer"}}, {"name": "b", "pins": {"name": "p", "namespace": "n"}},
            {"name": "c", "pins": null}, {"name": "d"}]);
        let servers: Vec<PolicyServer> = serde_json::from_value(servers).unwrap();
        let rows: Vec<_> = PinnedServerRow::all(&servers).into_iter().map(|row| (row.server, row.pins)).collect();
        assert_eq!(rows, [("a", "p"), ("b", "n/p")].map(|(server, pins)| (server.to_owned(), pins.to_owned())));
    }

    #[test]
    fn the_kind_is_the_field_that_is_there() {
        let servers = json!([
            {"name": "open", "url": "http://open"},
            {"name": "none", "credential": null},
            {"name": "newer", "credential": {"aNewerKind": {"x": [1]}, "bearer": null}, "aNewerField": 1},
            {"name": "two", "credential": {"basic": {}, "bearer": {}}},
        ]);
        let promised = [("newer", "aNewerKind"), ("two", "basic, bearer")];
        assert_eq!(rows(&servers), promised.map(|(server, kind)| (server.to_owned(), kind.to_owned())));
        for kind in CredentialKind::ALL {
            let servers = json!([{"name": "s", "credential": {kind.as_str(): {}}}]);
            assert_eq!(rows(&servers), [("s".to_owned(), kind.to_string())]);
        }
    }
}

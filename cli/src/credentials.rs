//! Which servers have a credential that policies give them, of which kind, and whether it can be used. A policy holds none: it names
//! keys of a Secret, which are not read.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::table::shown;

/// A server of a policy, as far as its credential matters. Kinds of newer versions are shown by their name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PolicyServer {
    name: String,
    credential: Option<Map<String, Value>>,
}

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

    /// Returns the rows of a table for the credentials of a policy, with whether they can be used.
    pub fn cells(rows: &[Self], policy: &str, ready: &str) -> Vec<Vec<String>> {
        let cells = |Self { server, kind }: &Self| {
            vec![policy.to_owned(), shown(server).into_owned(), shown(kind).into_owned(), ready.to_owned()]
        };
        rows.iter().map(cells).collect()
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

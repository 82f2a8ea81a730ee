//! Where a captured HTTP request goes: to a declared server, or elsewhere.

use std::sync::Arc;

use http::{Method, Uri, uri::PathAndQuery};

use super::declared::{DeclaredServer, intercepted};
use crate::in_force::ServerInForce;

/// The prefix of the paths at which an origin describes its authorization (RFC 8414, section 3; RFC 9728, section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-";

/// What a captured request asks a declared server for.
#[derive(Clone, Debug)]
pub enum ServerTarget {
    /// The server's endpoint.
    Endpoint(Arc<ServerInForce>),
    /// The endpoint for messages of an open HTTP+SSE stream.
    Messages {
        /// The server.
        server: Arc<ServerInForce>,
        /// The id of the stream.
        stream: String,
    },
    /// The description of its authorization: the URL of it.
    Description(Arc<ServerInForce>, Uri),
}

impl ServerTarget {
    /// The scheme of the server's url, which is that of the request.
    pub fn scheme(&self) -> &str {
        let (Self::Endpoint(server) | Self::Messages { server, .. } | Self::Description(server, _)) = self;
        server.url.as_ref().and_then(Uri::scheme_str).unwrap_or("http")
    }
}

/// Where a captured HTTP request goes.
#[derive(Clone, Debug)]
pub enum RequestPlace {
    /// To a declared server.
    Server(ServerTarget),
    /// To the host of declared servers, and to none of them.
    OtherPath,
    /// To another host.
    Elsewhere,
}

/// Finds where a request goes, over TLS that was opened or in clear text. `servers` are those at its host and port. A path is a server's exactly as its URL has it, or with one `/` more: what a server makes of others is
/// its own.
pub fn place(servers: &[Arc<DeclaredServer>], tls: bool, method: &Method, target: &PathAndQuery) -> RequestPlace {
    // One that is declared with TLS is another, and plain HTTP to its port leads nowhere that is governed.
    let alike: Vec<&DeclaredServer> = if tls {
        intercepted(servers).collect()
    } else {
        servers.iter().map(|server| &**server).filter(|server| !server.tls).collect()
    };
    if servers.is_empty() {
        return RequestPlace::Elsewhere;
    }
    let asked = target.as_str();
    if let Some(found) = alike.iter().find(|server| server.is_at(asked)) {
        return RequestPlace::Server(ServerTarget::Endpoint(Arc::clone(&found.server)));
    }
    for server in &alike {
        let rest = asked.strip_prefix('/').and_then(|rest| rest.strip_prefix(server.server.name.as_str()));
        if let Some(stream) = rest.and_then(|rest| rest.strip_prefix("/-/messages/")) {
            return RequestPlace::Server(ServerTarget::Messages {
                server: Arc::clone(&server.server),
                stream: stream.to_owned(),
            });
        }
    }
    let is_description =
        method == Method::GET && target.query().is_none() && is_plain_path(asked) && asked.starts_with(WELL_KNOWN);
    if is_description && let Some(server) = described(&alike, asked) {
        let mut parts = server.url.clone().into_parts();
        parts.path_and_query = Some(target.clone());
        if let Ok(url) = Uri::from_parts(parts) {
            return RequestPlace::Server(ServerTarget::Description(Arc::clone(&server.server), url));
        }
    }
    RequestPlace::OtherPath
}

/// Returns whether nothing in a path is more than it looks like: no dot segment, no escape, no parameter, which some servers remove before
/// they look for dot segments.
fn is_plain_path(path: &str) -> bool {
    !path.contains(['%', '\\', ';']) && !path.contains("//") && path.split('/').all(|part| part != "." && part != "..")
}

/// The server whose path ends that of a description, or else any of the host's.
fn described<'a>(servers: &[&'a DeclaredServer], asked: &str) -> Option<&'a DeclaredServer> {
    let of_path = servers.iter().find(|server| server.url.path().len() > 1 && asked.ends_with(server.url.path()));
    of_path.or_else(|| servers.first()).copied()
}

#[cfg(test)]
mod tests {
    use toolweir_crds::read_documents;
    use toolweir_engine::{CompileOptions, Engine, Memory, Policy};

    use super::*;
    use crate::{
        capture::{
            declared::DeclaredCache,
            names::{HostAndPort, SearchDomains, read_authority},
        },
        in_force::InForce,
        metrics::SidecarMetrics,
    };

    const POLICY: &str = "
apiVersion: toolweir.dev/v1alpha1
kind: MCPPolicy
metadata: {name: p, namespace: agents}
spec:
  servers:
  - {name: bank, url: 'http://bank.tools.svc:8000/mcp'}
  - {name: query, url: 'http://bank.tools.svc:8000/q?tenant=1'}
  - {name: root, url: 'http://root.example'}
  - {name: literal, url: 'http://[2001:db8::7]:9000/mcp'}
  - {name: tls, url: 'https://secure.example/mcp'}
  - {name: opened, url: 'https://secure.example/opened', tls: Intercept}
  - {name: again, url: 'https://SECURE.example:443/strict/', tls: Intercept}
  - {name: strict, url: 'https://secure.example/strict', tls: Refuse}
";

    /// What a request becomes: the server and what it is asked for.
    fn found(authority: &str, method: &Method, target: &str) -> String {
        found_at("http", authority, method, target)
    }

    fn found_at(scheme: &str, authority: &str, method: &Method, target: &str) -> String {
        let documents = read_documents("p", POLICY).unwrap();
        let policies: Vec<Policy> = documents.into_iter().map(|located| located.document.into()).collect();
        let (engine, problems) = Engine::compile(&policies, Memory::new(0), &CompileOptions::default());
        assert!(problems.is_empty(), "{problems:?}");
        let (in_force, _) = InForce::new(engine, Vec::new(), Vec::new(), "v".to_owned(), &SidecarMetrics::new().unwrap().servers);
        let domains = SearchDomains::new(["agents.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned));
        let declared = DeclaredCache::default().of(&Arc::new(in_force), &domains);
        let (host, port) = read_authority(authority).unwrap();
        let tls = scheme == "https";
        let at = HostAndPort { host, port: port.unwrap_or(if tls { 443 } else { 80 }) };
        match place(&declared.at(&at, &domains), tls, method, &target.parse().unwrap()) {
            RequestPlace::Server(ServerTarget::Endpoint(server)) => server.name.clone(),
            RequestPlace::Server(ServerTarget::Messages { server, stream }) => format!("{}: stream {stream}", server.name),
            RequestPlace::Server(ServerTarget::Description(server, url)) => format!("{}: {url}", server.name),
            RequestPlace::OtherPath => "other path".to_owned(),
            RequestPlace::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn a_server_is_found_by_every_spelling_of_its_host() {
        for authority in [
            "bank.tools:8000",
            "bank.tools.svc:8000",
            "BANK.Tools.Svc.:8000",
            "bank.tools.svc.cluster.local:8000",
            "bank.tools.svc.cluster.local.:8000",
        ] {
            assert_eq!(found(authority, &Method::POST, "/mcp"), "bank", "{authority}");
        }
        assert_eq!(found("root.example", &Method::POST, "/"), "root");
        assert_eq!(found("root.example:80", &Method::GET, "/"), "root");
        assert_eq!(found("[2001:DB8:0::7]:9000", &Method::POST, "/mcp"), "literal");
        for elsewhere in ["bank.tools.svc", "bank.tools.svc:8001", "bank.other:8000", "xbank.tools:8000", "secure.example:80"] {
            assert_eq!(found(elsewhere, &Method::POST, "/mcp"), "elsewhere", "{elsewhere}");
        }
        // With TLS it is another; nothing is governed in clear text at its port.
        assert_eq!(found("secure.example:443", &Method::POST, "/mcp"), "other path");
    }

    #[test]
    fn tls_that_is_opened_leads_to_the_servers_alone_whose_policies_have_it_intercepted() {
        let found = |authority: &str, target: &str| found_at("https", authority, &Method::POST, target);
        assert_eq!(found("secure.example", "/opened"), "opened");
        assert_eq!(found("SECURE.example.:443", "/opened/"), "opened");
        assert_eq!(found("secure.example", "/mcp"), "other path", "it is not to be opened");
        assert_eq!(found("bank.tools:8000", "/mcp"), "other path", "its url has no TLS");
        for strict in ["/strict", "/strict/"] {
            assert_eq!(found("secure.example", strict), "other path", "it is refused under another name");
        }
        assert_eq!(found("secure.example:8443", "/opened"), "elsewhere");
    }

    #[test]
    fn a_path_that_a_server_may_read_as_its_own_is_no_way_past_its_policies() {
        assert_eq!(found("bank.tools:8000", &Method::POST, "/mcp/"), "bank");
        assert_eq!(found("bank.tools:8000", &Method::POST, "/q?tenant=1"), "query");
        for target in [
            "/",
            "//mcp",
            "/mcp//",
            "/%6dcp",
            "/MCP",
            "/./mcp",
            "/x/../mcp",
            "/mcp?",
            "/mcp?x=1",
            "/mcp;x",
            "/q",
            "/q?tenant=2",
            "/q/?tenant=1",
        ] {
            assert_eq!(found("bank.tools:8000", &Method::POST, target), "other path", "{target}");
        }
    }

    #[test]
    fn streams_and_descriptions_of_authorization_are_at_the_host_too() {
        let get = |target: &str| found("bank.tools:8000", &Method::GET, target);
        assert_eq!(get("/bank/-/messages/a1"), "bank: stream a1");
        let described = "/.well-known/oauth-protected-resource";
        assert_eq!(get(described), format!("bank: http://bank.tools.svc:8000{described}"));
        assert_eq!(get(&format!("{described}/mcp")), format!("bank: http://bank.tools.svc:8000{described}/mcp"));
        let issuer = "/.well-known/oauth-authorization-server";
        assert_eq!(get(issuer), format!("bank: http://bank.tools.svc:8000{issuer}"));
        for target in [
            "/.well-known/openid-configuration",
            "/.well-known/oauth-x/../../mcp",
            "/.well-known/oauth-x?a=b",
            "/.well-known/oauth-%2e",
            "/.well-known/oauth-x/..;/..;/mcp",
        ] {
            assert_eq!(get(target), "other path", "{target}");
        }
        assert_eq!(found("bank.tools:8000", &Method::POST, described), "other path");
    }
}

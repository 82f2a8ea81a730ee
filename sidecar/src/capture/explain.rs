//! What would become of a connection that nobody opens.

use std::sync::Arc;

use http::{Method, Uri, uri::PathAndQuery};
use toolweir_crds::explain::ConnectionExplanation;
use toolweir_engine::egress::EgressReason;

use super::{
    Capture,
    judge::{Judgement, refused},
    names::{Host, HostAndPort},
    place::{RequestPlace, ServerTarget, place},
};
use crate::in_force::InForce;

/// The decision on a connection to a declared server, whose calls are decided on one by one.
const GOVERNED: &str = "governed";

impl Capture {
    /// Explains what would become of a connection for a URL: a GET of it for `http`, TLS that is not opened for `https`. Other schemes
    /// need a port; such a connection names no host.
    ///
    /// # Errors
    /// It is no URL with a host: what to write.
    pub async fn explain(&self, in_force: &Arc<InForce>, url: &str) -> Result<ConnectionExplanation, String> {
        let unclear = || {
            "`url` is no URL with a host; write one such as http://mcp.tools.svc:8000/mcp or tcp://db.tools.svc:5432".to_owned()
        };
        let uri: Uri = url.parse().map_err(|_| unclear())?;
        let host = uri.host().and_then(Host::read).ok_or_else(unclear)?;
        let scheme = uri.scheme_str().ok_or_else(unclear)?.to_ascii_lowercase();
        let (is_http, is_tls) = (scheme == "http", scheme == "https");
        let usual = if is_http { Some(80) } else { is_tls.then_some(443) };
        let port =
            uri.port_u16().or(usual).ok_or_else(|| format!("`url` has no port, and {scheme} has none of its own; write one"))?;
        let at = HostAndPort { host, port };
        let declared = self.declared(in_force);
        let explanation = |decision: &str, reason: EgressReason, message: String| ConnectionExplanation {
            url: url.to_owned(),
            name: at.host.to_string(),
            port,
            decision: decision.to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            ..ConnectionExplanation::default()
        };
        let servers = declared.at(&at, &self.domains);
        let opened_by = if is_tls && let Some(server) = servers.first() {
            if let Err(reason) = self.opened_name(&servers, &at) {
                let decision = refused(reason);
                let explained = explanation(decision.effect.as_str(), decision.reason, at.message(&decision, None));
                return Ok(ConnectionExplanation { server: Some(server.server.name.clone()), ..explained });
            }
            self.interception.describe()
        } else {
            None
        };
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        if is_http || opened_by.is_some() {
            match place(&declared, &self.domains, (&at, is_tls), &Method::GET, &target) {
                RequestPlace::Server(
                    ServerTarget::Endpoint(server) | ServerTarget::Messages { server, .. } | ServerTarget::Description(server, _),
                ) => {
                    let name = server.name.clone();
                    let message =
                        format!("Governed: it leads to the declared server {name}, whose policies decide on each call.");
                    return Ok(ConnectionExplanation {
                        server: Some(name),
                        opened_by,
                        ..explanation(GOVERNED, EgressReason::None, message)
                    });
                }
                RequestPlace::OtherPath => {
                    let decision = refused(EgressReason::OtherPath);
                    let explained = explanation(decision.effect.as_str(), decision.reason, at.message(&decision, None));
                    return Ok(ConnectionExplanation { opened_by, ..explained });
                }
                RequestPlace::Elsewhere => {}
            }
        }
        let (decision, address) = match self.judge(in_force, &at).await {
            Judgement::Open { decision, .. } => (decision, None),
            Judgement::Refused { decision, address } => (decision, address),
        };
        let explained = explanation(decision.effect.as_str(), decision.reason, at.message(&decision, address));
        Ok(ConnectionExplanation { policy: decision.policy.as_deref().map(str::to_owned), ..explained })
    }
}

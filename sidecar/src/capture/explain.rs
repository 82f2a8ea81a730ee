//! What would become of a connection that nobody opens.

use std::sync::Arc;

use http::{Method, Uri, uri::PathAndQuery};
use toolweir_crds::{explain::ConnectionExplanation, port_of};
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

/// What becomes of a request to the host of declared servers.
#[derive(Default)]
struct DeclaredPlace {
    /// The server that it is for, or whose TLS is not opened.
    server: Option<String>,
    /// Why it is refused, if it is.
    refusal: Option<EgressReason>,
    /// Who signs what its client sees, where its TLS is opened.
    opened_by: Option<String>,
}

impl Capture {
    /// Explains what would become of a connection for a URL: a GET of it for `http` and for `https` that is opened. Other schemes
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
        let port = port_of(&uri).ok_or("`url` has no port that can be connected to; write one from 1 to 65535")?;
        let at = HostAndPort { host, port };
        let explanation = |decision: &str, reason: EgressReason, message: String| ConnectionExplanation {
            url: url.to_owned(),
            name: at.host.to_string(),
            port,
            decision: decision.to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            ..ConnectionExplanation::default()
        };
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let found = if is_http || is_tls { self.declared_at(in_force, (&at, is_tls), &target) } else { None };
        if let Some(DeclaredPlace { server, refusal, opened_by }) = found {
            let explained = match refusal.map(refused) {
                Some(decision) => explanation(decision.effect.as_str(), decision.reason, at.message(&decision, None)),
                None => {
                    let name = server.as_deref().unwrap_or_default();
                    let message =
                        format!("Governed: it leads to the declared server {name}, whose policies decide on each call.");
                    explanation(GOVERNED, EgressReason::None, message)
                }
            };
            return Ok(ConnectionExplanation { server, opened_by, ..explained });
        }
        let (decision, address) = match self.judge(in_force, &at).await {
            Judgement::Open { decision, .. } => (decision, None),
            Judgement::Refused { decision, address } => (decision, address),
        };
        let explained = explanation(decision.effect.as_str(), decision.reason, at.message(&decision, address));
        Ok(ConnectionExplanation { policy: decision.policy.as_deref().map(str::to_owned), ..explained })
    }

    /// Finds what becomes of a request to the host of declared servers, over TLS or not; none where it is no such host.
    fn declared_at(
        &self,
        in_force: &Arc<InForce>,
        (at, is_tls): (&HostAndPort, bool),
        target: &PathAndQuery,
    ) -> Option<DeclaredPlace> {
        let servers = self.declared(in_force).at(at, &self.domains);
        let first = servers.first()?;
        let mut found = DeclaredPlace::default();
        if is_tls {
            if let Err(reason) = self.opened_name(&servers, at) {
                return Some(DeclaredPlace { server: Some(first.server.name.clone()), refusal: Some(reason), opened_by: None });
            }
            found.opened_by = self.interception.describe();
        }
        match place(&servers, is_tls, &Method::GET, target) {
            RequestPlace::Server(
                ServerTarget::Endpoint(server) | ServerTarget::Messages { server, .. } | ServerTarget::Description(server, _),
            ) => found.server = Some(server.name.clone()),
            RequestPlace::OtherPath => found.refusal = Some(EgressReason::OtherPath),
            RequestPlace::Elsewhere => return None,
        }
        Some(found)
    }
}

//! Exchanges with servers that have a credential: the sidecar shows it, whatever the agent sent in its place.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Response, StatusCode, Uri, header};
use hyper::body::Incoming;

use super::{
    exchange::{AgentRequest, Outgoing},
    failure::RequestFailure,
    forwarding::forwarded,
    origin::origin,
    state::Proxy,
};
use crate::{
    credentials::{
        CredentialProblem,
        material::{CredentialMaterial, ReadyCredential},
        server_credential::ServerCredential,
    },
    in_force::{CredentialSlot, ServerInForce},
};

/// Removes what an agent sends in place of a credential: `Authorization`, and `header` in every form that some servers take for it:
/// those of CGI and WSGI do not tell `_` from `-`.
fn remove_own(headers: &mut HeaderMap, header: Option<&HeaderName>) {
    headers.remove(header::AUTHORIZATION);
    let Some(header) = header else { return };
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let alike = |name: &HeaderName| name.as_str().bytes().map(plain).eq(header.as_str().bytes().map(plain));
    while let Some(name) = headers.keys().find(|name| alike(name)).cloned() {
        headers.remove(name);
    }
}

/// The end of one attempt.
enum Attempt {
    /// The server did not refuse the credential.
    Done(Result<Response<Incoming>, RequestFailure>),
    /// It did: how.
    Refused(&'static str),
}

impl Proxy {
    /// Sends a request with the server's credential. One that the server refuses is renewed once, and the request sent once more: a
    /// server that refuses it has not carried anything out.
    pub(super) async fn exchange_with_credential(
        &self,
        slot: &CredentialSlot,
        message: AgentRequest<'_>,
        server: &ServerInForce,
    ) -> Result<Response<Incoming>, RequestFailure> {
        let unavailable = |problem| RequestFailure::Credential(server.name.clone(), problem);
        // An HTTP+SSE stream may have been opened when the policies said another URL.
        if !server.url.as_ref().is_some_and(|url| is_same_origin(url, &message.url)) {
            let message = "the message goes to another URL than the policy's; open the stream anew";
            return Err(unavailable(CredentialProblem::lasting(message)));
        }
        let Some(credential) = slot.get() else {
            return Err(unavailable(CredentialProblem::lasting("nothing looks after it: a defect")));
        };
        let ready = match credential.current() {
            Some(ready) => ready,
            None => Box::pin(credential.wait()).await.map_err(unavailable)?,
        };
        match self.attempt(&message, credential, &ready, server).await {
            Attempt::Done(done) => settled(credential, done),
            // Boxed: it is rare, and a call that needs it not is not made larger by it.
            Attempt::Refused(how) => Box::pin(self.repeat(&message, credential, &ready, how, server)).await,
        }
    }

    /// Sends a request once more, with another credential than the one that the server refused, if there is one.
    async fn repeat(
        &self,
        message: &AgentRequest<'_>,
        credential: &ServerCredential,
        refused: &ReadyCredential,
        how: &'static str,
        server: &ServerInForce,
    ) -> Result<Response<Incoming>, RequestFailure> {
        let how = match credential.renewed(refused).await {
            None => how,
            Some(other) => match self.attempt(message, credential, &other, server).await {
                Attempt::Done(done) => return settled(credential, done),
                Attempt::Refused(how) => how,
            },
        };
        credential.set_refused();
        Err(RequestFailure::CredentialRefused(server.name.clone(), how))
    }

    async fn attempt(
        &self,
        message: &AgentRequest<'_>,
        credential: &ServerCredential,
        ready: &Arc<ReadyCredential>,
        server: &ServerInForce,
    ) -> Attempt {
        let mut headers = forwarded(message.headers, &server.name);
        remove_own(&mut headers, credential.header());
        let outgoing =
            |headers| Outgoing { method: message.method, headers, url: message.url.clone(), body: message.body.clone() };
        let (sent, _) = match &ready.material {
            CredentialMaterial::Header(name, value) => {
                headers.insert(name.clone(), value.clone());
                self.exchange_once(outgoing(headers), server, self.credentialed.plain()).await
            }
            CredentialMaterial::Certificate(tls) => {
                let client = self.credentialed.showing(tls, &server.name, ready);
                self.exchange_once(outgoing(headers), server, &client).await
            }
        };
        match sent {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => Attempt::Refused("status 401"),
            Err(RequestFailure::CredentialRefused(_, how)) => Attempt::Refused(how),
            done => Attempt::Done(done),
        }
    }
}

/// Returns true for URLs of one origin. That of the policy is nearly always the same, and compared first.
fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    (one.scheme() == other.scheme() && one.authority() == other.authority()) || origin(one) == origin(other)
}

fn settled(
    credential: &ServerCredential,
    done: Result<Response<Incoming>, RequestFailure>,
) -> Result<Response<Incoming>, RequestFailure> {
    if done.is_ok() {
        credential.set_accepted();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_an_agent_sends_in_place_of_the_credential_is_removed_in_every_spelling() {
        let mut headers = HeaderMap::new();
        for name in ["Authorization", "AUTHORIZATION", "X-Api-Key", "x_api_key", "X-API_Key", "x-api-key", "X-Api-Keys", "apikey"]
        {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("own"));
        }
        let left = |headers: &HeaderMap| headers.keys().map(ToString::to_string).collect::<BTreeSet<_>>();
        let others_alone = BTreeSet::from(["x-api-keys", "apikey"].map(str::to_owned));
        let mut others = headers.clone();
        remove_own(&mut headers, Some(&HeaderName::from_static("x-api-key")));
        assert_eq!(left(&headers), others_alone);
        remove_own(&mut others, Some(&HeaderName::from_static("x_api_key")));
        assert_eq!(left(&others), others_alone);
    }
}

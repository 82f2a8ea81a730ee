//! The head of an answer as the client gets it: whatever names the server there names the sidecar.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{challenge, cookies, forwarding::sidecar_origin, oauth, request_guard::ServerGuard, state::Proxy};

impl Proxy {
    /// Makes what names the server in the head of an answer name the sidecar. A client that uses the server's own URL gets what names
    /// the server as it is.
    pub(super) fn localize(&self, headers: &mut HeaderMap, asked: &HeaderMap, at: &ServerGuard<'_, '_>) {
        let server = &at.server;
        let Some(url) = &server.url else { return };
        if headers.contains_key(header::SET_COOKIE) && !at.request.captured {
            let set: Vec<_> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
            headers.remove(header::SET_COOKIE);
            for value in set.iter().filter_map(|value| cookies::to_client(value.as_bytes(), &server.name, url)) {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(header::SET_COOKIE, value);
                }
            }
        }
        if server.credential.is_some() {
            // The agent has nothing to show the server, and is not asked for anything.
            for name in [header::WWW_AUTHENTICATE, HeaderName::from_static("authentication-info")] {
                headers.remove(name);
            }
        }
        if headers.contains_key(header::WWW_AUTHENTICATE) && !at.request.captured {
            let local = format!("{}{}/{}", sidecar_origin(asked), oauth::WELL_KNOWN, server.name);
            let set: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect();
            headers.remove(header::WWW_AUTHENTICATE);
            let mut first = None;
            for old in set {
                let new = challenge::rewrite(old.as_bytes(), url, &local);
                if new.cut {
                    tracing::warn!(server = server.name, "a part of WWW-Authenticate cannot be read and was left out");
                }
                let value = new.value.map_or(Ok(old), |new| HeaderValue::from_bytes(&new));
                if let Ok(value) = value {
                    headers.append(header::WWW_AUTHENTICATE, value);
                }
                first = first.or(new.named);
            }
            if let Some(path) = first {
                self.state.described.learn(&server.name, url, path);
            }
        }
    }
}

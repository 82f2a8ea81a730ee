//! The URL of the webhook. It is secret: no error has more of it than the host.

use std::{net::IpAddr, str::FromStr};

use http::Uri;
use toolweir_crds::{port_of, text::escaped};

/// Where messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookUrl {
    /// True for https.
    pub tls: bool,
    /// The host, without the brackets of an IPv6 address.
    pub host: String,
    /// The host, if it is an address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Host and port as the URL has them.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// Ends of names that lead nowhere but into the cluster, or to the machine itself.
const INTERNAL: [&str; 4] = [".svc", ".svc.cluster.local", ".cluster.local", ".localhost"];

impl FromStr for WebhookUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "the webhook's URL is not one; write it into the Secret, such as https://hooks.example.com/services/...";
        let uri: Uri = text.parse().map_err(|_| wrong.to_owned())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong.to_owned()) };
        if authority.as_str().contains('@') {
            return Err(
                "the webhook's URL has a user or password; receivers tell senders by the path or the signature".to_owned()
            );
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let tls = match scheme {
            "https" => true,
            "http" if is_internal(&host, address) => false,
            "http" => {
                let host = escaped(&host, 80);
                return Err(format!("the webhook's URL is http:// and leads out of the cluster, to {host}; write https://"));
            }
            _ => return Err("the webhook's URL is neither https:// nor http://; write https://".to_owned()),
        };
        if host.is_empty() {
            return Err(wrong.to_owned());
        }
        let port = port_of(&uri).ok_or_else(|| wrong.to_owned())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { tls, host, address, port, authority: authority.as_str().to_owned(), path: path.to_owned() })
    }
}

/// Returns whether a host is the machine itself or of the cluster. A name without a dot is that of a Service of the operator's namespace.
fn is_internal(host: &str, address: Option<IpAddr>) -> bool {
    match address {
        Some(address) => address.is_loopback(),
        None => !host.contains('.') || INTERNAL.iter().any(|end| host.trim_end_matches('.').ends_with(end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_leads_anywhere_and_http_into_the_cluster() {
        for (text, tls, host, port, path) in [
            ("https://hooks.example.com/services/T0/B0/x?y=1", true, "hooks.example.com", 443, "/services/T0/B0/x?y=1"),
            ("https://10.0.0.1:8443", true, "10.0.0.1", 8443, "/"),
            ("https://[2001:db8::1]/a", true, "2001:db8::1", 443, "/a"),
            ("http://chat.tools.svc/hook", false, "chat.tools.svc", 80, "/hook"),
            ("http://chat.tools.svc.cluster.local:8080/", false, "chat.tools.svc.cluster.local", 8080, "/"),
            ("http://chat:8080/hook", false, "chat", 8080, "/hook"),
            ("http://localhost:1/", false, "localhost", 1, "/"),
            ("http://127.0.0.1/", false, "127.0.0.1", 80, "/"),
            ("http://[::1]:9/", false, "::1", 9, "/"),
        ] {
            let url: WebhookUrl = text.parse().unwrap();
            assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (tls, host, port, path));
        }
    }

    #[test]
    fn what_would_be_sent_in_clear_or_is_no_url_is_refused() {
        for text in [
            "",
            "hooks.example.com",
            "/hook",
            "ftp://example.com/",
            "http://hooks.example.com/T0",
            "http://10.0.0.1/",
            "http://svc.example.com/",
            "https://user:word@example.com/",
            "https://:443/",
            "https://example.com:99999/",
            "http://evilsvc.cluster.local.example.com/",
        ] {
            let refused = text.parse::<WebhookUrl>();
            assert!(refused.is_err(), "{text}: {refused:?}");
        }
    }
}

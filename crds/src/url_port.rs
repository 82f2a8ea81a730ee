//! The port of a URL.

use http::Uri;

/// Returns the port to which a URL leads: the one that it names, else that of its scheme (`http`, `https`). None where it names what is no
/// port from 1 to 65535, which the parser of [`Uri`] takes for no port at all, and where neither has one.
///
/// ```
/// let port = |url: &str| toolweir_crds::port_of(&url.parse().unwrap());
/// assert_eq!((port("http://a/"), port("https://[::1]/"), port("tcp://a:5432"), port("tcp://a")), (Some(80), Some(443), Some(5432), None));
/// assert_eq!((port("http://a:99999/"), port("http://a:0/"), port("https://a:x/")), (None, None, None));
/// ```
pub fn port_of(url: &Uri) -> Option<u16> {
    let authority = url.authority()?;
    let (_, named) = authority.as_str().rsplit_once(authority.host())?;
    if named.len() > 1 {
        return authority.port_u16().filter(|port| *port != 0);
    }
    match url.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    }
}

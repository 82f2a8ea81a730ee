//! How servers find the path of a URI, as simple as it can be: nothing here is shared with what is tested.

/// A URI, cut at its marks as Python's `urlsplit` does.
pub struct Pieces<'a> {
    pub scheme: &'a str,
    pub host: Option<&'a str>,
    pub path: &'a str,
}

/// Cuts a URI. None without a scheme.
pub fn split(uri: &str) -> Option<Pieces<'_>> {
    let (scheme, rest) = uri.split_once(':')?;
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let rest = rest.split('#').next().unwrap_or_default();
    let rest = rest.split('?').next().unwrap_or_default();
    let Some(rest) = rest.strip_prefix("//") else { return Some(Pieces { scheme, host: None, path: rest }) };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some(Pieces { scheme, host: Some(host), path })
}

/// Python's `unquote`: what is no code stays, bytes that are no text are replaced.
pub fn decoded(text: &str) -> String {
    let (bytes, mut found, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.filter(|_| bytes[at] == b'%') {
            Some(code) => {
                found.push(u8::from_str_radix(code, 16).unwrap());
                at += 3;
            }
            None => {
                found.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// Python's `posixpath.normpath`: any number of slashes is one, and above the root is the root.
fn normalized(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    format!("/{}", kept.join("/"))
}

fn drive(name: &str) -> bool {
    name.len() == 2 && name.as_bytes()[0].is_ascii_alphabetic() && name.ends_with([':', '|'])
}

/// What a file system of Windows makes of a path.
fn on_windows(path: &str) -> String {
    let path = path.replace('\\', "/");
    let name = |segment: &str| {
        let plain = segment.split(":$").next().unwrap_or_default().trim_end_matches(':');
        if matches!(segment, "." | "..") || drive(segment) {
            segment.to_owned()
        } else {
            plain.trim_end_matches(['.', ' ']).to_owned()
        }
    };
    path.split('/').map(name).collect::<Vec<_>>().join("/")
}

/// The characters that browsers and Python drop before they read.
fn stripped(uri: &str) -> String {
    uri.trim_matches(|c: char| c <= ' ').replace(['\t', '\n', '\r'], "")
}

fn python(uri: &str, times: usize) -> Option<String> {
    let uri = stripped(uri);
    let mut path = split(&uri)?.path.to_owned();
    for _ in 0..times {
        path = decoded(&path);
    }
    Some(normalized(path.split('\0').next().unwrap_or_default()))
}

fn resolved_before_it_is_decoded(uri: &str) -> Option<String> {
    let path = normalized(split(uri)?.path);
    Some(normalized(&decoded(&path)))
}

/// The URL standard of browsers, `ada` and the crate `url`: encoded dots are dots, `\` is `/`, and a drive stays.
fn whatwg(uri: &str) -> Option<String> {
    let uri = stripped(uri);
    let scheme = split(&uri)?.scheme.to_ascii_lowercase();
    let special = ["file", "http", "https", "ws", "wss", "ftp"].contains(&scheme.as_str());
    let uri = if special { uri.replace('\\', "/") } else { uri };
    let path = split(&uri)?.path;
    if !special && !path.starts_with('/') {
        return Some(decoded(path));
    }
    let mut kept: Vec<String> = Vec::new();
    for segment in path.trim_start_matches('/').split('/') {
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." => {}
            // The crate `url` keeps what looks like a drive anywhere, `ada` a first name that only begins like one.
            ".." if kept.last().is_some_and(|name| name.get(..2).is_some_and(drive)) => {}
            ".." => {
                kept.pop();
            }
            _ if scheme == "file" && kept.is_empty() && drive(segment) => kept.push(segment.replace('|', ":")),
            _ => kept.push(segment.to_owned()),
        }
    }
    Some(decoded(&format!("/{}", kept.join("/"))))
}

/// A strict reader, as Go's: a code that is none, and a control character, end it.
fn strict(uri: &str) -> Option<String> {
    let path = split(uri)?.path;
    let mut codes = path.split('%').skip(1).map(|rest| rest.get(..2));
    let good = codes.all(|code| code.is_some_and(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit())));
    (good && !uri.contains(|c: char| c.is_ascii_control())).then(|| normalized(&decoded(path)))
}

/// A handler that cuts the scheme off and decodes what is left.
fn cut_off(uri: &str) -> Option<String> {
    let pieces = split(uri)?;
    let local = pieces.host.is_none_or(|host| host.is_empty() || host.eq_ignore_ascii_case("localhost"));
    if !pieces.scheme.eq_ignore_ascii_case("file") || !local {
        return None;
    }
    let rest = uri.split_once(':')?.1.trim_start_matches("//");
    let rest = if rest.starts_with('/') { rest } else { &rest[rest.find('/')?..] };
    Some(normalized(&decoded(rest)))
}

/// Java's servlets: what follows `;` in a segment is no part of the path.
fn servlet(uri: &str) -> Option<String> {
    let pieces = split(uri)?;
    if !pieces.scheme.to_ascii_lowercase().starts_with("http") {
        return None;
    }
    let path: Vec<_> = pieces.path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    Some(normalized(&decoded(&path.join("/"))))
}

fn windows(uri: &str) -> Option<String> {
    let pieces = split(uri).filter(|pieces| pieces.scheme.eq_ignore_ascii_case("file"))?;
    let path = normalized(&on_windows(&decoded(pieces.path)));
    Some(path.strip_prefix("/C|/").map_or(path.clone(), |rest| format!("/C:/{rest}")))
}

/// A reader that takes every blank and dot at the ends for a slip.
fn lenient(uri: &str) -> Option<String> {
    python(uri.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}'), 1).map(|path| path.trim().to_owned())
}

type Reader = fn(&str) -> Option<String>;

/// The readers, by name. Each returns the path of the resource, or none where it refuses the URI.
pub const READERS: [(&str, Reader); 11] = [
    ("Python", |uri| python(uri, 1)),
    ("Python, decoded twice", |uri| python(uri, 2)),
    ("Python, decoded three times", |uri| python(uri, 3)),
    ("resolved before it is decoded", resolved_before_it_is_decoded),
    ("WHATWG", whatwg),
    ("WHATWG, decoded twice", |uri| whatwg(uri).map(|path| decoded(&path))),
    ("strict", strict),
    ("scheme cut off", cut_off),
    ("servlet", servlet),
    ("Windows", windows),
    ("lenient", lenient),
];

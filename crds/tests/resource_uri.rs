//! URIs of resources: no two that a server could read alike are two for a policy, and what is accepted is read alike by all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod uri_readers;

use proptest::prelude::*;
use toolweir_crds::{
    bounds::{RESOURCE_URI, TEMPLATE_WITNESSES},
    resource_uri::{AmbiguousUri, ResourceUri, covers, pattern_problem, template_witnesses},
    tool_name::exactly,
};
use uri_readers::{READERS, decoded, split};

/// What is denied.
const SECRET: &str = "file:///data/secret key.txt";

/// Spellings that some server reads as [`SECRET`], with their canonical form.
const ACCEPTED: [(&str, &str); 16] = [
    (SECRET, SECRET),
    ("FILE:///data/secret key.txt", SECRET),
    ("fIlE:/data/secret%20key.txt", SECRET),
    ("file:/data/secret key.txt", SECRET),
    ("file://localhost/data/secret key.txt", SECRET),
    ("file://LocalHost/data/secret%20key.txt", SECRET),
    ("file:///data/%73ecret%20key%2etxt", SECRET),
    ("file:///%64%61%74%61/%73%65%63%72%65%74%20%6b%65%79%2E%74%78%74", SECRET),
    ("file:///data/./secret key.txt", SECRET),
    ("file:///./data/secret key.txt", SECRET),
    ("file:///data/public/../secret key.txt", SECRET),
    ("file:///a/../b/.././data/secret key.txt", SECRET),
    ("file:///data/secret+key.txt", "file:///data/secret+key.txt"),
    ("file:///data/secret%2Bkey.txt", "file:///data/secret+key.txt"),
    ("file:///data/secret key.txt/", "file:///data/secret key.txt/"),
    ("file:///data/secret key.txt/.", "file:///data/secret key.txt/"),
];

/// Spellings that some server reads as [`SECRET`], and others as something else or not at all.
const REFUSED: [(&str, AmbiguousUri); 44] = [
    ("/data/secret key.txt", AmbiguousUri::Scheme),
    ("://data/secret key.txt", AmbiguousUri::Scheme),
    ("fi le:///data/secret key.txt", AmbiguousUri::Scheme),
    ("file%3A///data/secret key.txt", AmbiguousUri::Scheme),
    ("c:/data/secret key.txt", AmbiguousUri::Drive),
    ("file:///c|/data/secret key.txt", AmbiguousUri::Drive),
    ("file:///x/../C%7C/data/secret key.txt", AmbiguousUri::Drive),
    ("file:///c:/../data/secret key.txt", AmbiguousUri::AboveRoot),
    ("file://c:/data/secret key.txt", AmbiguousUri::FileHost),
    ("file://data/secret key.txt", AmbiguousUri::FileHost),
    ("file://127.0.0.1/data/secret key.txt", AmbiguousUri::FileHost),
    ("file://user@localhost/data/secret key.txt", AmbiguousUri::FileHost),
    ("file://localhost:80/data/secret key.txt", AmbiguousUri::FileHost),
    ("file://local%68ost/data/secret key.txt", AmbiguousUri::FileHost),
    ("file:data/secret key.txt", AmbiguousUri::Relative),
    ("file:./data/secret key.txt", AmbiguousUri::Relative),
    ("file://localhost", AmbiguousUri::Relative),
    ("file:////data/secret key.txt", AmbiguousUri::EmptySegment),
    ("file:///data//secret key.txt", AmbiguousUri::EmptySegment),
    ("file:///data/x//../secret key.txt", AmbiguousUri::EmptySegment),
    ("file:///../data/secret key.txt", AmbiguousUri::AboveRoot),
    ("file:///data/../../data/secret key.txt", AmbiguousUri::AboveRoot),
    ("file:///data/public/%2e%2e/secret key.txt", AmbiguousUri::EncodedDots),
    ("file:///data/public/.%2E/secret key.txt", AmbiguousUri::EncodedDots),
    ("file:///data/%2e/secret key.txt", AmbiguousUri::EncodedDots),
    ("file:///data/public/..%2Fsecret key.txt", AmbiguousUri::EncodedSeparator),
    ("file:///data%2fsecret key.txt", AmbiguousUri::EncodedSeparator),
    ("file:///data/secret key.txt%3F", AmbiguousUri::EncodedSeparator),
    ("file:///data/secret key.txt%23", AmbiguousUri::EncodedSeparator),
    ("file:///data/secret key.txt?", AmbiguousUri::FileQuery),
    ("file:///data/secret key.txt?.md", AmbiguousUri::FileQuery),
    ("file:///data/secret key.txt#top", AmbiguousUri::FileQuery),
    ("file:///data/secret%2520key.txt", AmbiguousUri::EncodedTwice),
    ("file:///data/%2573ecret key.txt", AmbiguousUri::EncodedTwice),
    ("file:///data/%25%37%33ecret key.txt", AmbiguousUri::EncodedTwice),
    ("file:///data\\secret key.txt", AmbiguousUri::Backslash),
    ("file:\\\\\\data\\secret key.txt", AmbiguousUri::Backslash),
    ("file:///data%5Csecret key.txt", AmbiguousUri::Backslash),
    ("file:///data/sec\tret key.txt", AmbiguousUri::Control),
    ("file:///data/secret key.txt%00.md", AmbiguousUri::Control),
    (" file:///data/secret key.txt", AmbiguousUri::Blank),
    ("file:///data/secret key.txt%20", AmbiguousUri::Blank),
    ("file:///data/secret key.txt.", AmbiguousUri::FileName),
    ("file:///data/secret key.txt::$DATA", AmbiguousUri::FileName),
];

#[test]
fn no_spelling_of_a_denied_file_is_another_file() {
    for (spelling, canonical) in ACCEPTED {
        let uri = ResourceUri::read(spelling).unwrap_or_else(|error| panic!("{spelling}: {error}"));
        assert_eq!(uri.as_str(), canonical, "{spelling}");
        assert!(uri.variants().any(|variant| variant == SECRET), "{spelling}");
    }
    for (spelling, expected) in REFUSED {
        assert_eq!(ResourceUri::read(spelling).unwrap_err(), expected, "{spelling}");
    }
}

/// The table is about something: each spelling is the secret to one of the readers, but for those that no reader here takes.
#[test]
fn readers_take_most_spellings_for_the_denied_file() {
    let wanted = decoded(split(SECRET).unwrap().path);
    let taken = |spelling: &str| READERS.iter().any(|(_, read)| read(spelling).is_some_and(|path| path == wanted));
    let spellings = ACCEPTED.iter().map(|(spelling, _)| *spelling).chain(REFUSED.iter().map(|(spelling, _)| *spelling));
    let count = spellings.filter(|spelling| taken(spelling)).count();
    assert!(count >= 40, "{count}");
}

#[test]
fn one_resource_has_one_canonical_form() {
    for (uri, canonical) in [
        ("HTTPS://Example.COM", "https://example.com/"),
        ("https://example.com:443/a%7eb", "https://example.com/a~b"),
        ("https://example.com.:0443/", "https://example.com/"),
        ("http://example.com:/x/./y/../z", "http://example.com/x/z"),
        ("http://example.com:8080/x/..", "http://example.com:8080/"),
        ("ws://127.0.0.1:80/", "ws://127.0.0.1/"),
        ("http://[::0001]:8080/", "http://[::1]:8080/"),
        ("http://h/?", "http://h/"),
        ("http://h/#", "http://h/"),
        ("http://h/x?q=%61%26%3d%2b%20%c3%a9#", "http://h/x?q=a%26%3D%2B é"),
        ("http://h/x?to=http%3A%2F%2Fa%2F..%2Fb", "http://h/x?to=http://a/../b"),
        ("http://h/x?q=100%25", "http://h/x?q=100%25"),
        ("Memo://Inbox/A%20b", "memo://Inbox/A b"),
        ("memo:/inbox", "memo:///inbox"),
        ("memo:inbox/%41", "memo:inbox/A"),
        ("memo://", "memo://"),
        ("memo://inbox?", "memo://inbox"),
        ("memo://inbox?x#%79", "memo://inbox?x#y"),
        ("URN:isbn:0451450523", "urn:isbn:0451450523"),
        ("file:///C:/Users/%C3%A9.txt", "file:///C:/Users/é.txt"),
        ("file:///é", "file:///é"),
        ("file:///100%25", "file:///100%25"),
        ("file:///100%25zz", "file:///100%25zz"),
        ("file:///a;b=*&{c}", "file:///a;b=*&{c}"),
        ("file:///..hidden/.git/a..b", "file:///..hidden/.git/a..b"),
        ("file:///", "file:///"),
        ("file:///a/..", "file:///"),
    ] {
        let read = ResourceUri::read(uri).unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert_eq!(read.as_str(), canonical, "{uri}");
    }
}

/// Other URIs that read in two ways.
const AMBIGUOUS: [(&str, AmbiguousUri); 55] = [
    ("", AmbiguousUri::Length(0)),
    ("memo:", AmbiguousUri::Empty),
    ("https:example.com/", AmbiguousUri::NoHost),
    ("https:/example.com/", AmbiguousUri::NoHost),
    ("https:///example.com/", AmbiguousUri::NoHost),
    ("https://user@example.com/", AmbiguousUri::User),
    ("https://example.com%2f@evil/", AmbiguousUri::User),
    ("https://ex%61mple.com/", AmbiguousUri::EncodedHost),
    ("https://exa mple.com/", AmbiguousUri::Host),
    ("https://bücher.example/", AmbiguousUri::Host),
    ("https://example.com../", AmbiguousUri::Host),
    ("http://2130706433/", AmbiguousUri::Host),
    ("http://127.1/", AmbiguousUri::Host),
    ("http://0x7f.0.0.0x1/", AmbiguousUri::Host),
    ("http://0177.0.0.1/", AmbiguousUri::Host),
    ("http://[::ffff:127.0.0.1]/", AmbiguousUri::Host),
    ("http://[::1]x/", AmbiguousUri::Host),
    ("http://[::1/", AmbiguousUri::Host),
    ("http://h:0/", AmbiguousUri::Port),
    ("http://h:65536/", AmbiguousUri::Port),
    ("http://h:+80/", AmbiguousUri::Port),
    ("http://h:80:80/", AmbiguousUri::Port),
    ("http://h/a;b", AmbiguousUri::Parameters),
    ("http://h/a%3Bb", AmbiguousUri::Parameters),
    ("http://h/a#b", AmbiguousUri::Fragment),
    ("http://h/..", AmbiguousUri::AboveRoot),
    ("file:///a/C|/../c", AmbiguousUri::AboveRoot),
    ("file:///a:80/../c", AmbiguousUri::AboveRoot),
    ("http://h/a/C:/../c", AmbiguousUri::AboveRoot),
    ("http://h/%", AmbiguousUri::Triplet),
    ("http://h/%4", AmbiguousUri::Triplet),
    ("http://h/%u0041", AmbiguousUri::Triplet),
    ("http://h/%+1", AmbiguousUri::Triplet),
    ("http://h/%é", AmbiguousUri::Triplet),
    ("http://h/%c3", AmbiguousUri::NotUtf8),
    ("http://h/%c0%ae", AmbiguousUri::NotUtf8),
    ("http://h/?a=%ff", AmbiguousUri::NotUtf8),
    ("http://h/?a=%2526", AmbiguousUri::EncodedTwice),
    ("http://h/?a=%0a", AmbiguousUri::Control),
    ("http://h/?a=%5c", AmbiguousUri::Backslash),
    ("http://h/?a=b%20", AmbiguousUri::Blank),
    ("http://h/a%20?b", AmbiguousUri::Blank),
    ("memo://a/%C2%A0b", AmbiguousUri::Blank),
    ("memo:// a/b", AmbiguousUri::Blank),
    ("memo://a/../b", AmbiguousUri::Dots),
    ("memo://a/./b", AmbiguousUri::Dots),
    ("memo://../b", AmbiguousUri::Dots),
    ("memo:a/../b", AmbiguousUri::Dots),
    ("memo:..", AmbiguousUri::Dots),
    ("memo://a%20b/c", AmbiguousUri::EncodedHost),
    ("memo://a@b/c", AmbiguousUri::User),
    ("memo://a//b", AmbiguousUri::EmptySegment),
    ("memo:a%2fb", AmbiguousUri::EncodedSeparator),
    ("memo:a\u{85}", AmbiguousUri::Control),
    ("memo:a\u{feff}", AmbiguousUri::Blank),
];

#[test]
fn a_uri_that_reads_two_ways_is_refused() {
    for (uri, expected) in AMBIGUOUS {
        assert_eq!(ResourceUri::read(uri).unwrap_err(), expected, "{uri}");
        let told = expected.to_string();
        assert!(told.contains(';') && !told.contains('\n'), "{told}");
    }
    let long = |bytes: usize| format!("xx:/{}", "a".repeat(bytes - 4));
    assert!(ResourceUri::read(&long(RESOURCE_URI - 2)).is_ok());
    // Too long in canonical form alone, then as it is.
    assert_eq!(ResourceUri::read(&long(RESOURCE_URI)).unwrap_err(), AmbiguousUri::Length(RESOURCE_URI + 2));
    assert_eq!(ResourceUri::read(&long(RESOURCE_URI + 1)).unwrap_err(), AmbiguousUri::Length(RESOURCE_URI + 1));
}

#[test]
fn a_denied_resource_has_no_second_name() {
    for (denied, asked) in [
        ("db://tables/secret", "db://tables/secret?limit=1"),
        ("db://tables/secret", "db://tables/secret/"),
        ("db://tables/secret", "db://tables/secret/?limit=1#rows"),
        ("db://tables/secret?limit=1", "db://tables/secret?limit=1#rows"),
        ("db://tables/secret?limit=1", "db://tables/secret/?limit=1"),
        ("db://tables/secret", "db:///tables/secret"),
        ("db://tables/secret", "db:/tables/secret"),
        ("db://tables/secret", "db:tables/secret"),
        ("db:///tables/secret", "db://tables/secret"),
        ("db:tables/secret", "db://tables/secret"),
        ("db://tables/top secret", "db://tables/top+secret"),
        ("https://h/admin", "https://h/admin/?x=1"),
    ] {
        let uri = ResourceUri::read(asked).unwrap();
        assert!(uri.variants().any(|variant| variant == denied), "{asked}: {:?}", uri.variants().collect::<Vec<_>>());
    }
    let plain = ResourceUri::read(SECRET).unwrap();
    assert_eq!(plain.variants().collect::<Vec<_>>(), [SECRET]);
}

#[test]
fn entries_are_written_as_uris_are_compared() {
    for good in [
        "*",
        "file://*",
        "file:///*",
        "file:///data/*",
        "file:///data/**/x",
        "file:///100%25*",
        r"file:///2\*3",
        "*.txt",
        "*/secret/*",
        "http://*",
        "http*://h/*",
        "https://*.example.com/*",
        "https://h:*/",
        "https://*:*/x",
        "https://h/?q=*",
        "memo://*",
        "memo:*",
        "memo://*?q=a%26b*",
        "*://h/x",
        "https://h*a",
        "urn:isbn:*",
        "file:///..*",
        "https://h*",
        "file:///é*",
    ] {
        assert_eq!(pattern_problem(good), None, "{good}");
    }
    for (bad, remedy) in [
        ("FILE:///data/*", "write `file:///data/*`"),
        ("file:/data/*", "write `file:///data/*`"),
        ("file:*", "write `file://*`"),
        ("file://localhost/*", "write `file:///*`"),
        ("file:///a/../b/*", "write `file:///b/*`"),
        ("file:///%61%20b/*", "write `file:///a b/*`"),
        ("file:///2%2A3", r"write `file:///2\*3`"),
        ("HTTP://*", "write `http://*`"),
        ("https://*.Example.com/*", "write `https://*.example.com/*`"),
        ("https://Example*", "write `https://example*`"),
        ("https://Example.com", "write `https://example.com/`"),
        ("https://Example.com:443/*", "write `https://example.com/*`"),
        ("https://h/?q=%61*", "write `https://h/?q=a*`"),
        ("", "has 0 bytes; from 1 to 2048"),
        ("file:///data/*/../x", "write the path that it leads to"),
        ("memo://a/../*", "write the path that it leads to"),
        ("file:///a//*", "write one `/`"),
        ("file:///a%2f*", "write it plainly"),
        ("file:///a%2*", "write `%25`"),
        ("file:///a?*", "leave out what begins there"),
        (r"C:\\data\\*", "write `/`"),
        (r"file:///a\b", "which no URI has"),
        ("/data/*", "write the whole URI"),
        ("file:///data/* ", "leave it out"),
        ("file:///data/a\n*", "leave it out"),
    ] {
        let problem = pattern_problem(bad).unwrap_or_else(|| panic!("{bad} is taken"));
        assert!(problem.contains(remedy) && !problem.contains('\n'), "{bad}: {problem}");
        if let Some((_, remedy)) = problem
            .trim_end_matches('`')
            .rsplit_once("; write `")
            .filter(|_| problem.ends_with('`') && problem.contains("compared"))
        {
            assert_eq!(pattern_problem(remedy), None, "{bad}: {remedy}");
        }
    }
    assert!(pattern_problem(&format!("x://{}", "a".repeat(RESOURCE_URI))).is_some());
}

#[test]
fn a_star_that_allows_does_not_reach_behind_a_question_mark() {
    for (entry, uri, expected) in [
        ("db://t/*.txt", "db://t/a.txt", true),
        ("db://t/*.txt", "db://t/a.txt?x=1", false),
        ("db://t/*.txt", "db://t/a.key?.txt", false),
        ("db://t/*.txt", "db://t/a.key#.txt", false),
        ("db://t/*", "db://t/a?x#y", true),
        ("*", "db://t/a?x#y", true),
        ("db://t/a", "db://t/a?x", false),
        ("db://t/a", "db://t/a", true),
        ("db://t/*?public=1", "db://t/a?public=1", true),
        ("db://t/*?public=1", "db://t/a#?public=1", false),
        ("db://t/*?public=1", "db://t/a?public=1#x", false),
        ("db://t/*?public=*", "db://t/a?public=1#x", true),
        ("db://t/*#*", "db://t/a?x#y", false),
        ("db://t/*?*#y", "db://t/a?x#y", true),
        ("db://t/*?*#y", "db://t/a?x#z", false),
        ("db://T/*", "db://t/a", false),
        (r"db://t/\*", "db://t/*", true),
        (r"db://t/\*", "db://t/a", false),
        ("file:///a/*/c*d", "file:///a/b/cd", true),
        ("file:///a/*/c*d", "file:///a/b/c", false),
        ("aa*a", "aa:x", false),
    ] {
        assert_eq!(covers(entry, &ResourceUri::read(uri).unwrap()), expected, "{entry} {uri}");
    }
}

#[test]
fn a_template_is_asked_about_by_uris_of_it() {
    let witnesses = |template: &str, entries: &[&str]| template_witnesses(template, entries.iter().copied());
    for (template, entries, expected) in [
        ("file:///data/{name}", vec![], vec!["file:///data/x"]),
        ("file:///data/a", vec!["file:///data/*"], vec!["file:///data/a"]),
        ("FILE:/data/{+path*}", vec!["file:///data/a b"], vec!["file:///data/x", "file:///data/a b"]),
        ("db://t{/id,part}{?q,r:3}{&s}", vec![], vec!["db://t/x/x?q=x&r=x&s=x", "db://t"]),
        ("db://t/{id}{.ext}{;v}{#f}", vec![], vec!["db://t/x.x;v=x#x", "db://t/x"]),
        ("{+uri}", vec!["file:///a", "memo:*"], vec!["xx://x", "file:///a", "memo:x"]),
        ("file:///{+path}", vec!["file:///data/*/pub/*.md"], vec!["file:///x", "file:///data/x/pub/x.md"]),
        (
            "file:///data/{n}/info",
            vec!["file:///*", "file:///data/a*", "file:///etc/*"],
            vec!["file:///data/x/info", "file:///data/ax/info"],
        ),
        ("db://t/{y}-{m}", vec!["db://t/2024-*", "db://t/2025-01"], vec!["db://t/x-x", "db://t/2024-x-x", "db://t/2025-01"]),
        ("file:///data/{name}", vec!["file:///data/../etc/*", "file:///data/%61*"], vec!["file:///data/x"]),
        ("file:///a/{b", vec!["*"], vec![]),
        ("file:///a/b}", vec!["*"], vec![]),
        ("file:///a/{}", vec!["*"], vec![]),
        ("file:///a/{=b}", vec!["*"], vec![]),
        ("file:///a/{b{c}}", vec!["*"], vec![]),
    ] {
        assert_eq!(witnesses(template, &entries), expected, "{template}");
    }
    let many: Vec<_> = (0..1000).map(|at| format!("file:///data/{at}")).collect();
    assert_eq!(template_witnesses("file:///data/{x}", many.iter().map(String::as_str)).len(), TEMPLATE_WITNESSES);
    assert_eq!(template_witnesses(&"{x}".repeat(1000), many.iter().map(String::as_str)), Vec::<String>::new());
}

/// How texts that are nearly URIs begin.
const BEGINNINGS: [&str; 16] = [
    "file:///",
    "file:/",
    "FILE://localhost/",
    "file://",
    "file:",
    "http://h/",
    "https://H.:443/",
    "http://h",
    "memo://",
    "memo://a/",
    "memo:///",
    "memo:/",
    "memo:",
    "x-y:",
    "c:/",
    "",
];

/// What they go on with.
const PIECES: [&str; 55] = [
    "/", "/", "/", ".", "..", "../", "./", "/..", "/.", "a", "b", "A", "%61", "%2e", "%2E", ".%2e", "%2f", "%5c", "\\", "%25",
    "%2525", "%", "%4", "41", "2e", "2f", "%C3%A9", "é", "%c3", "?", "#", "%3f", "%23", ";", "%3B", "&", "=", "%26", "%3d", "+",
    "%2b", " ", "%20", "\t", "%00", "C:", "C|", "%7c", ":$", "@", ":80", "*", "{x}", "\u{202e}", "\u{feff}",
];

/// Texts that are nearly URIs.
fn spelling() -> impl Strategy<Value = String> {
    let pieces = prop::collection::vec(prop::sample::select(PIECES.as_slice()), 0..9);
    (prop::sample::select(BEGINNINGS.as_slice()), pieces).prop_map(|(begin, pieces)| begin.to_owned() + &pieces.concat())
}

/// Says which reader finds another path in a text than the canonical form has, where the text is accepted.
fn disagreement(text: &str) -> Option<String> {
    let uri = ResourceUri::read(text).ok()?;
    let plain = |path: &str| path.trim_matches('/').to_lowercase();
    let wanted = plain(&decoded(split(uri.as_str()).unwrap().path));
    let differs = |found: &str| plain(found) != wanted;
    let (name, found) = READERS.iter().find_map(|(name, read)| Some((name, read(text).filter(|found| differs(found))?)))?;
    Some(format!("{name} reads {found} of {text}, which is {}", uri.as_str()))
}

/// The same as the property below, for every short text.
#[test]
fn all_readers_agree_on_short_uris() {
    let mut accepted = 0;
    for begin in BEGINNINGS {
        for one in PIECES {
            for two in PIECES {
                let text = format!("{begin}a{one}{two}");
                assert_eq!(disagreement(&text), None);
                accepted += usize::from(ResourceUri::read(&text).is_ok());
            }
        }
    }
    assert!(accepted > 10_000, "{accepted}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_text_is_read_without_a_panic(text in any::<String>(), entry in "[*?{}%:/a.\\\\]{0,12}") {
        let _ = ResourceUri::read(&text);
        let _ = pattern_problem(&text);
        let _ = pattern_problem(&entry);
        let _ = template_witnesses(&text, [entry.as_str()].into_iter());
        let _ = template_witnesses(&entry, [text.as_str(), "*"].into_iter());
    }

    #[test]
    fn a_canonical_form_is_its_own(text in spelling()) {
        let Ok(uri) = ResourceUri::read(&text) else { return Ok(()) };
        let canonical = uri.as_str();
        let again = ResourceUri::read(canonical);
        prop_assert_eq!(again.as_ref().map(ResourceUri::as_str), Ok(canonical));
        prop_assert_eq!(uri.variants().next(), Some(canonical));
        // A policy can name it, and only it.
        prop_assert_eq!(pattern_problem(&exactly(canonical)), None);
        prop_assert!(covers(&exactly(canonical), &uri));
    }

    #[test]
    fn what_is_accepted_has_nothing_to_read_in_two_ways(text in spelling()) {
        let Ok(uri) = ResourceUri::read(&text) else { return Ok(()) };
        let canonical = uri.as_str();
        let found = split(canonical).unwrap();
        let path = found.path;
        prop_assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "{}", canonical);
        prop_assert!(!path.contains("//") && !canonical.contains('\\') && !canonical.contains(char::is_control));
        for (at, _) in canonical.match_indices('%') {
            let code = &canonical[at..at + 3];
            prop_assert!(["%23", "%25", "%26", "%2B", "%2C", "%3B", "%3D"].contains(&code), "{}", canonical);
        }
    }

    /// Every reader ends where the canonical form leads, or refuses the URI.
    #[test]
    fn all_readers_agree_on_what_is_accepted(text in spelling()) {
        prop_assert_eq!(disagreement(&text), None);
    }

    /// What is written instead of an entry is right, and the entry that is right matches something.
    #[test]
    fn entries_that_are_told_can_be_written(text in spelling(), star in 0_usize..30) {
        let mut entry = text.replace(['\\', '*'], "");
        if let Some((at, _)) = entry.char_indices().nth(star) {
            entry.insert(at, '*');
        }
        if let Some(problem) = pattern_problem(&entry)
            && let Some((_, remedy)) = problem.split_once("compared; write `")
        {
            let remedy = remedy.trim_end_matches('`').replace("\\u{202e}", "\u{202e}").replace("\\u{feff}", "\u{feff}");
            prop_assert_eq!(pattern_problem(&remedy), None, "{} for {}", remedy, entry);
        }
    }

    #[test]
    fn witnesses_are_canonical_uris_of_their_template(text in spelling(), entry in spelling()) {
        let template = format!("{text}{{+x}}");
        for witness in template_witnesses(&template, [entry.as_str()].into_iter()) {
            let uri = ResourceUri::read(&witness).unwrap();
            prop_assert_eq!(uri.as_str(), &witness);
        }
    }
}

//! A stream of events through the rewriter, in pieces of every kind.

use toolweir_sidecar::mcp::{
    edits::Filtered,
    list,
    sse::{self, EndpointMatch, EventVerdict, RewriteMode, Rewriter, SseError, spells_ask, spells_list},
};

use super::{
    events::{Event, events},
    list::{RULES, shows_entry},
};

/// Longer than any input of the fuzzer.
const ALL: usize = 1 << 20;

/// Name, data, and whether some client takes it for an endpoint.
type Seen = Vec<(Vec<u8>, Vec<u8>, bool)>;
type Decide<'d> = &'d dyn Fn(&[u8]) -> EventVerdict;

/// The output of a rewriter, what it was asked about, and how it ended. Events that some client takes for an endpoint are
/// told, and pass.
fn rewrite(
    stream: &[u8],
    pieces: &[usize],
    most: usize,
    watch: RewriteMode,
    decide: Decide<'_>,
) -> (Vec<u8>, Seen, Result<(), SseError>) {
    let (mut rewriter, mut out, mut seen) = (Rewriter::new(most, watch), Vec::new(), Seen::new());
    let mut decide = |event: sse::SseEvent<'_>| {
        seen.push((event.name.to_vec(), event.data.to_vec(), event.endpoint != EndpointMatch::No));
        Ok(if event.endpoint == EndpointMatch::No { decide(event.data) } else { EventVerdict::Pass })
    };
    let (mut rest, mut sizes, mut end) = (stream, pieces.iter().cycle(), Ok(()));
    while !rest.is_empty() && end.is_ok() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        let (piece, later) = rest.split_at(size);
        rest = later;
        end = rewriter.push(piece, &mut decide).map(|bytes| out.extend_from_slice(&bytes));
        assert!(end.is_err() || rewriter.held() <= most.max(31), "holds {} of at most {most} bytes", rewriter.held());
    }
    if end.is_ok() {
        end = rewriter.finish(&mut decide).map(|bytes| out.extend_from_slice(&bytes));
    }
    assert!(rewriter.work() <= 3 * stream.len(), "looked at {} bytes of {}", rewriter.work(), stream.len());
    (out, seen, end)
}

/// The lines of a stream with their ends: those that are comments, sorted, and the others. A comment leaves before the lines that are held,
/// and so before another comment that stays with them behind a CR.
fn lines(stream: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut comments, mut others, mut first) = (Vec::new(), Vec::new(), true);
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r'))
            .map_or(rest.len(), |at| at + if rest[at..].starts_with(b"\r\n") { 2 } else { 1 });
        let (line, later) = rest.split_at(end);
        let text = if first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if text.starts_with(b":") {
            comments.push(line.to_vec());
        } else {
            others.extend_from_slice(line);
        }
        (rest, first) = (later, false);
    }
    comments.sort();
    (comments, others)
}

/// Returns true if some line names an endpoint to a client that ends lines where Python's `splitlines` does and trims what it reads.
fn names_endpoint(stream: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stream);
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    // Java's `trim` takes control characters for blanks, and others what Unicode calls white space.
    let is_blank = |c: char| c <= ' ' || c == '\u{7f}' || !c.is_ascii();
    let trimmed = |text: &str| text.trim_matches(is_blank).to_ascii_lowercase();
    text.split(ends)
        .filter_map(|line| line.split_once(':'))
        .any(|(field, value)| trimmed(field) == "event" && trimmed(value) == "endpoint")
}

/// Sizes of pieces that look random and are the same for the same stream.
fn uneven(stream: &[u8]) -> Vec<usize> {
    let mut state =
        stream.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 60).unwrap_or(1)
    };
    (0..17).map(|_| next()).collect()
}

fn pass(_: &[u8]) -> EventVerdict {
    EventVerdict::Pass
}

fn filter(data: &[u8]) -> EventVerdict {
    match list::filter(data, &RULES, &mut shows_entry).map(|read| read.filtered) {
        Ok(Filtered::Edited(new)) => EventVerdict::Replace(new),
        Ok(Filtered::Same) | Err(_) => EventVerdict::Pass,
    }
}

/// The check.
pub fn check(stream: &[u8]) {
    let dispatched = events(stream);
    // The last event is told, too, where no blank line ends it.
    let all = events(&[stream, b"\n\n"].concat());
    let told: Vec<(&[u8], &[u8])> = all.iter().map(|event| (&*event.name, &*event.data)).collect();
    let seen_of = |seen: &Seen| seen.iter().filter(|(.., endpoint)| !endpoint).count();
    let endpoint = names_endpoint(stream);
    for pieces in [vec![stream.len().max(1)], vec![1], uneven(stream)] {
        let (out, seen, end) = rewrite(stream, &pieces, ALL, RewriteMode::All, &pass);
        match end {
            Ok(()) => {
                assert!(lines(&out) == lines(stream), "pieces {pieces:?}: not what came: {:?}", String::from_utf8_lossy(&out));
                assert_eq!(events(&out), dispatched, "pieces {pieces:?}: other events than those that came");
                let named: Vec<_> = seen.iter().filter(|(_, data, endpoint)| !endpoint || !data.is_empty()).collect();
                let named: Vec<(&[u8], &[u8])> = named.iter().map(|(name, data, _)| (&**name, &**data)).collect();
                let told: Vec<_> =
                    told.iter().filter(|told| !endpoint || !told.1.is_empty() || named.contains(told)).copied().collect();
                assert_eq!(named, told, "pieces {pieces:?}: other events than a client sees");
            }
            Err(error) => assert!(
                matches!(error, SseError::UnclearEndpoint | SseError::Unreadable) && (endpoint || spells(stream)),
                "pieces {pieces:?}: {error}"
            ),
        }
        if !endpoint {
            let (out, seen, end) = rewrite(stream, &pieces, ALL, RewriteMode::All, &filter);
            // More may be taken for an endpoint than names one: that is as strict as can be.
            if end.is_err() || seen.iter().any(|(.., endpoint)| *endpoint) {
                continue;
            }
            assert_eq!(seen_of(&seen), told.len());
            let changed = |decide: Decide<'_>| -> Vec<Event> {
                let changed = dispatched.iter().filter_map(|event| match decide(&event.data) {
                    EventVerdict::Pass => Some(event.clone()),
                    EventVerdict::Replace(data) => Some(Event { data, ..event.clone() }),
                    EventVerdict::Take | EventVerdict::TakeData => None,
                });
                changed.collect()
            };
            assert_eq!(events(&out), changed(&filter), "pieces {pieces:?}: other events than those filtered");
            let (out, _, _) = rewrite(stream, &pieces, ALL, RewriteMode::All, &|_| EventVerdict::Take);
            assert_eq!(events(&out), [], "pieces {pieces:?}: an event that was taken");
            let (out, _, _) = rewrite(stream, &pieces, ALL, RewriteMode::All, &|_| EventVerdict::TakeData);
            assert_eq!(events(&out), [], "pieces {pieces:?}: an event whose data was taken");
            let replace: Decide<'_> = &|_| EventVerdict::Replace(b"a\nb".to_vec());
            let (out, _, _) = rewrite(stream, &pieces, ALL, RewriteMode::All, replace);
            if !seen.iter().any(|(.., endpoint)| *endpoint) {
                assert_eq!(events(&out), changed(replace), "pieces {pieces:?}: other events than those replaced");
            }
        }

        // Held for so little, most events pass unseen; those that are seen are whole, and in order.
        for most in [0, 5, 24] {
            let (out, seen, end) = rewrite(stream, &pieces, most, RewriteMode::All, &pass);
            if end.is_ok() {
                assert!(lines(&out) == lines(stream), "pieces {pieces:?}, {most} held: what passes is not what came");
                let unseen = |told: &(&[u8], &[u8])| !seen.iter().any(|(name, data, _)| (&**name, &**data) == *told);
                let tools = told.iter().find(|told| spells(told.1) && unseen(told));
                assert_eq!(tools, None, "pieces {pieces:?}, {most} held: passed unseen");
                assert!(
                    !endpoint || seen.iter().any(|(.., endpoint)| *endpoint) || without_data(stream),
                    "{most} held: an endpoint passed"
                );
            }
            let mut later = told.iter();
            for (name, data, endpoint) in seen {
                let known = endpoint && data.is_empty() || later.any(|told| *told == (&*name, &*data));
                assert!(known, "pieces {pieces:?}, {most} held: saw {data:?}, which no client does");
            }
        }

        // What is no event stream passes as it is, or ends.
        let (out, _, end) = rewrite(stream, &pieces, ALL, RewriteMode::Foreign, &pass);
        match end {
            Ok(()) => assert!(out == stream && !endpoint, "pieces {pieces:?}: passed as no event stream"),
            Err(_) => assert!(stream.starts_with(&out) && (endpoint_letters(stream) || spells(stream))),
        }
    }
}

/// Returns true where a key stands in a text that does not pass unread.
fn spells(text: &[u8]) -> bool {
    spells_list(text) || spells_ask(text)
}

/// Returns true if no event has data, so that none can name a place.
fn without_data(stream: &[u8]) -> bool {
    !String::from_utf8_lossy(stream).to_ascii_lowercase().contains("data")
}

fn endpoint_letters(stream: &[u8]) -> bool {
    String::from_utf8_lossy(stream).to_ascii_lowercase().contains("endpoint")
}

//! A stream of events through the rewriter, in pieces of every kind.

use toolweir_sidecar::mcp::{
    list::{self, Filtered},
    sse::{Rewriter, SseError, Verdict, spells_tools},
};

use super::{
    events::{Event, events},
    list::shows,
};

/// Longer than any input of the fuzzer.
const ALL: usize = 1 << 20;

type Seen = Vec<(Vec<u8>, Vec<u8>)>;
type Decide<'d> = &'d dyn Fn(&[u8], &[u8]) -> Verdict;

/// What comes out of a rewriter, what it was asked about, and how it ended.
fn rewrite(stream: &[u8], pieces: &[usize], most: usize, decide: Decide<'_>) -> (Vec<u8>, Seen, Result<(), SseError>) {
    let (mut rewriter, mut out, mut seen) = (Rewriter::new(most), Vec::new(), Seen::new());
    let (mut rest, mut sizes) = (stream, pieces.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        let (piece, later) = rest.split_at(size);
        rest = later;
        let pushed = rewriter.push(piece, &mut |name, data| {
            seen.push((name.to_vec(), data.to_vec()));
            Ok(decide(name, data))
        });
        match pushed {
            Ok(bytes) => out.extend_from_slice(&bytes),
            Err(error) => return (out, seen, Err(error)),
        }
        assert!(rewriter.held() <= most.max(31), "holds {} of at most {most} bytes", rewriter.held());
    }
    out.extend_from_slice(&rewriter.finish());
    (out, seen, Ok(()))
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

fn pass(_: &[u8], _: &[u8]) -> Verdict {
    Verdict::Pass
}

fn filter(_: &[u8], data: &[u8]) -> Verdict {
    match list::filter(data, &shows, &mut |_| {}) {
        Ok(Filtered::Edited(new)) => Verdict::Replace(new),
        Ok(Filtered::Same) | Err(_) => Verdict::Pass,
    }
}

/// The check.
pub fn check(stream: &[u8]) {
    let dispatched = events(stream);
    let told: Seen = dispatched.iter().map(|event| (event.name.clone(), event.data.clone())).collect();
    for pieces in [vec![stream.len().max(1)], vec![1], uneven(stream)] {
        let (out, seen, end) = rewrite(stream, &pieces, ALL, &pass);
        assert_eq!(end, Ok(()));
        assert!(out == stream, "pieces {pieces:?}: what passes is not what came: {:?}", String::from_utf8_lossy(&out));
        assert_eq!(seen, told, "pieces {pieces:?}: other events than a client sees");

        let (out, _, end) = rewrite(stream, &pieces, ALL, &filter);
        assert_eq!(end, Ok(()));
        let expected: Vec<Event> = dispatched
            .iter()
            .map(|event| match filter(&event.name, &event.data) {
                Verdict::Pass => event.clone(),
                Verdict::Replace(data) => Event { data, ..event.clone() },
            })
            .collect();
        assert_eq!(events(&out), expected, "pieces {pieces:?}: other events than those filtered");

        let (out, _, _) = rewrite(stream, &pieces, ALL, &|_, _| Verdict::Replace(b"a\nb".to_vec()));
        let expected: Vec<Event> = dispatched.iter().map(|event| Event { data: b"a\nb".to_vec(), ..event.clone() }).collect();
        assert_eq!(events(&out), expected, "pieces {pieces:?}: other events than those replaced");

        // Held for so little, most events pass unseen; those that are seen are whole, and in order.
        for most in [0, 5, 24] {
            let (out, seen, end) = rewrite(stream, &pieces, most, &pass);
            match end {
                Ok(()) => {
                    assert!(out == stream, "pieces {pieces:?}, {most} held: what passes is not what came");
                    let unseen = told.iter().find(|event| spells_tools(&event.1) && !seen.contains(event));
                    assert_eq!(unseen, None, "pieces {pieces:?}, {most} held: passed unseen");
                }
                Err(error) => {
                    assert_eq!(error, SseError::TooLarge(most));
                    assert!(stream.starts_with(&out), "pieces {pieces:?}, {most} held: what passed is not what came");
                }
            }
            let mut later = told.iter();
            for event in seen {
                assert!(later.any(|told| *told == event), "pieces {pieces:?}, {most} held: saw {event:?}, which no client does");
            }
        }
    }
}

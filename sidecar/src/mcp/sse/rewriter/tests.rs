use super::*;

type Seen = Vec<(String, String)>;

/// Pushes a stream in pieces of a size; replaces data `old` by `new`.
fn rewrite(stream: &[u8], piece: usize, most: usize) -> Result<(String, Seen), SseError> {
    let (mut rewriter, mut out, mut seen) = (Rewriter::new(most, RewriteMode::All), Vec::new(), Seen::new());
    let mut decide = |event: SseEvent<'_>| {
        seen.push((String::from_utf8_lossy(event.name).into(), String::from_utf8_lossy(event.data).into()));
        Ok(if event.data == b"old" { EventVerdict::Replace(b"new".to_vec()) } else { EventVerdict::Pass })
    };
    for chunk in stream.chunks(piece) {
        out.extend_from_slice(&rewriter.push(chunk, &mut decide)?);
    }
    out.extend_from_slice(&rewriter.finish(&mut decide)?);
    Ok((String::from_utf8_lossy(&out).into(), seen))
}

#[test]
fn events_are_found_whatever_ends_their_lines_and_however_they_come() {
    for end in ["\n", "\r\n", "\r"] {
        let stream = [
            "\u{feff}: hello",
            "retry: 5",
            "",
            "event: endpoint",
            "data: /x",
            "",
            "",
            "data: a",
            "data:b",
            "id: 1",
            "",
            "data: tail",
        ]
        .join(end);
        for piece in 1..=stream.len() {
            let (out, seen) = rewrite(stream.as_bytes(), piece, 1000).unwrap();
            assert_eq!(out, stream, "{end:?} {piece}");
            let expected =
                [("endpoint", "/x"), ("message", "a\nb"), ("message", "tail")].map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(seen, expected, "{end:?} {piece}");
        }
    }
}

#[test]
fn only_the_data_of_a_replaced_event_changes() {
    for piece in 1..40 {
        let (out, _) = rewrite(b": c\nevent: message\nid: 7\ndata: old\nretry: 3\n\ndata: keep\n\n", piece, 1000).unwrap();
        assert_eq!(out, ": c\nevent: message\nid: 7\ndata: new\nretry: 3\n\ndata: keep\n\n");
    }
}

#[test]
fn an_event_too_large_to_hold_passes_unless_it_could_hold_tools() {
    let large = format!("data: {}\n\ndata: old\n\n", "x".repeat(100));
    for piece in 1..60 {
        let (out, seen) = rewrite(large.as_bytes(), piece, 50).unwrap();
        assert_eq!(out, large.replace("old", "new"), "{piece}");
        assert_eq!(seen.last().unwrap().1, "old");
    }
    let tools = format!("data: {{\"tools\":{}\n\n", "x".repeat(100));
    assert_eq!(rewrite(tools.as_bytes(), 7, 50), Err(SseError::TooLarge(50)));
    // An escape of another letter is no reason to end the stream; one of the key is, wherever a piece ends.
    let accent = large.replace("xx", r"\u00e9");
    assert_eq!(rewrite(accent.as_bytes(), 7, 50).unwrap().0, accent.replace("old", "new"));
    let escaped = large.replace("xxxx\n", "\"\\u0074\\u006f\\u006f\\u006c\\u0073\":1\n");
    for piece in 1..60 {
        assert_eq!(rewrite(escaped.as_bytes(), piece, 50), Err(SseError::TooLarge(50)), "{piece}");
    }
}

#[test]
fn an_event_too_large_to_hold_does_not_pass_when_the_key_comes_late() {
    for (before, after) in [(100, 100), (100, 0), (44, 100), (46, 0)] {
        let stream = format!("data: {}{{\"tools\":1}}{}\n\ndata: b\n\n", "x".repeat(before), "x".repeat(after));
        for piece in 1..10 {
            assert_eq!(rewrite(stream.as_bytes(), piece, 50), Err(SseError::TooLarge(50)), "{before} {after} {piece}");
        }
    }
}

#[test]
fn the_rest_of_an_event_too_large_to_hold_is_no_event_of_its_own() {
    for end in ["\n", "\r\n", "\r"] {
        let x = "x".repeat(60);
        for large in
            [format!("data: {x}{end}ab{end}data: y{end}{end}"), format!("data: {x}{end}a{end}b{end}c{end}data: d{end}{end}")]
        {
            let stream = format!("{large}data: old{end}{end}");
            for piece in 1..20 {
                let (_, seen) = rewrite(stream.as_bytes(), piece, 50).unwrap();
                assert_eq!(seen, [("message".to_owned(), "old".to_owned())], "{end:?} {piece}");
            }
        }
    }
}

#[test]
fn a_byte_order_mark_in_the_rest_of_an_event_too_large_to_hold_opens_no_stream() {
    let stream = format!("data: {}\u{feff}\ndata: {}\n\ndata: old\n\n", "x".repeat(80), "y".repeat(40));
    for piece in 1..20 {
        let (_, seen) = rewrite(stream.as_bytes(), piece, 50).unwrap();
        assert_eq!(seen, [("message".to_owned(), "old".to_owned())], "{piece}");
    }
}

/// The stream as a client sees it, an endpoint being replaced by `/ours` and ending the stream where it is unclear, as
/// on a stream that a GET opened.
fn get(stream: &[u8], piece: usize, most: usize, watch: RewriteMode) -> Result<String, SseError> {
    let (mut rewriter, mut out) = (Rewriter::new(most, watch), Vec::new());
    let mut decide = |event: SseEvent<'_>| match event.endpoint {
        EndpointMatch::No => Ok(EventVerdict::Pass),
        EndpointMatch::Yes => Ok(EventVerdict::Replace(b"/ours".to_vec())),
        EndpointMatch::Unclear => Err(SseError::UnclearEndpoint),
    };
    for chunk in stream.chunks(piece) {
        out.extend_from_slice(&rewriter.push(chunk, &mut decide)?);
    }
    out.extend_from_slice(&rewriter.finish(&mut decide)?);
    Ok(String::from_utf8_lossy(&out).into())
}

#[test]
fn an_endpoint_is_known_however_its_name_is_written() {
    for name in [
        "event: endpoint",
        "event:endpoint",
        "event:   endpoint  ",
        "event:\tendpoint\t",
        " event : endpoint ",
        "event:\u{a0}endpoint\u{a0}",
        "event:\u{2003}endpoint\u{3000}",
        "event: \u{feff}endpoint",
        "event: endpoint\0",
        "EVENT: Endpoint",
        "event : ENDPOINT",
        "\u{feff}event: endpoint",
        "event:\x0bendpoint",
    ] {
        for stream in [format!("{name}\ndata: http://evil/\n\n"), format!(": c\n\ndata: http://evil/\n{name}\nid: 7\n\n")] {
            for piece in 1..stream.len() {
                let out = get(stream.as_bytes(), piece, 1000, RewriteMode::All).unwrap();
                assert!(out.ends_with("event: endpoint\ndata: /ours\n\n") || out.ends_with("data: /ours\nid: 7\n\n"), "{out:?}");
                assert!(!out.contains("evil"), "{name:?} {piece}");
            }
        }
    }
    for other in [
        "event: endpoints",
        "event: end point",
        "events: endpoint",
        "data: event: endpoint",
        "event endpoint",
        ": event: endpoint",
    ] {
        let stream = format!("{other}\ndata: x\n\n");
        assert_eq!(get(stream.as_bytes(), 7, 1000, RewriteMode::All), Ok(stream.clone()), "{other:?}");
    }
}

#[test]
fn an_endpoint_that_clients_read_differently_passes_to_none() {
    for stream in [
        "event: endpoint\nevent: message\ndata: http://evil/\n\n",
        "event: message\nevent: endpoint\ndata: http://evil/\n\n",
        "event: endpoint\nevent:\ndata: http://evil/\n\n",
        "event: endpoint\ndata: /m\n data: http://evil/\n\n",
        "event: endpoint\ndata : http://evil/\n\n data: x",
        "data: {}\u{2028}event: endpoint\u{2028}data: http://evil/\n\n",
        "id: \u{85}event: endpoint\ndata: http://evil/\n\n",
        ": c\x0cevent: endpoint\x0cdata: http://evil/\n",
        ": c\x1eevent: endpoint",
        ": c\u{2029}data: {\"result\":{\"tools\":[]}}\u{2029}\u{2029}\n",
        " data: {\"result\":{\"tools\":[]}}\n\n",
    ] {
        for piece in 1..stream.len() {
            match get(stream.as_bytes(), piece, 1000, RewriteMode::All) {
                Err(_) => {}
                Ok(out) => panic!("{stream:?} {piece}: {out:?}"),
            }
        }
    }
}

#[test]
fn an_event_too_large_to_hold_does_not_pass_where_it_names_an_endpoint() {
    let x = "x".repeat(200);
    for stream in [
        format!("event: endpoint\ndata: {x}\n\n"),
        format!("data: {x}\nevent: endpoint\n\n"),
        format!("data: {x}\n event : EndPoint\r\n\r\n"),
        format!("data: {x}\r\u{feff}event:{}endpoint\r\r", " ".repeat(300)),
        format!("event:{}endpoint\ndata: http://evil/\n\n", " ".repeat(300)),
        format!("{}event: endpoint\ndata: http://evil/\n\n", " ".repeat(300)),
        format!("data: {x}\nevent: endpoint"),
        format!("data: {x}\u{2028}event: endpoint\u{2028}data: http://evil/\n\n"),
    ] {
        for piece in 1..stream.len() {
            assert_eq!(get(stream.as_bytes(), piece, 100, RewriteMode::All), Err(SseError::TooLarge(100)), "{stream:?} {piece}");
        }
    }
}

#[test]
fn what_is_no_event_stream_passes_unless_a_client_could_find_an_endpoint_in_it() {
    for body in ["{\"tools\":[]}", "<h1>event: endpoint</h1>", "a\n\nb\r\n", "x: \"tools\"\n"] {
        for piece in 1..=body.len() {
            assert_eq!(get(body.as_bytes(), piece, 5, RewriteMode::Foreign).as_deref(), Ok(body), "{piece}");
        }
    }
    for body in ["event: endpoint\ndata: http://evil/\n\n", "x\n event :endpoint", "{}\ndata: {\"result\":{\"tools\":[]}}"] {
        for piece in 1..=body.len() {
            assert!(get(body.as_bytes(), piece, 1000, RewriteMode::Foreign).is_err(), "{body:?} {piece}");
        }
    }
    // Nothing of it is held.
    let mut rewriter = Rewriter::new(1000, RewriteMode::Foreign);
    assert_eq!(rewriter.push(b"{\"a\":", &mut |_| Ok(EventVerdict::Pass)).unwrap(), "{\"a\":");
    assert!(rewriter.between_events());
}

#[test]
fn the_last_event_is_decided_on_though_no_blank_line_ends_it() {
    for end in ["", "\n", "\r", "\r\n"] {
        let stream = format!("data: a\n\ndata: old{end}");
        for piece in 1..=stream.len() {
            assert_eq!(rewrite(stream.as_bytes(), piece, 1000).unwrap().0, "data: a\n\ndata: new\n", "{end:?} {piece}");
        }
        let endpoint = format!("event: endpoint\ndata: http://evil/{end}");
        assert_eq!(get(endpoint.as_bytes(), 5, 1000, RewriteMode::All).unwrap(), "event: endpoint\ndata: /ours\n");
    }
}

#[test]
fn a_comment_that_is_taken_out_joins_no_line_ends_around_it() {
    // Without the comment, CR and LF would be one end, and the event would go on in the next.
    let stream = b"data: a\r: x\n\ndata: b\n\n";
    for size in 1..=stream.len() {
        let mut rewriter = Rewriter::new(1000, RewriteMode::All);
        let (mut out, mut told) = (Vec::new(), Vec::new());
        let mut decide = |event: SseEvent<'_>| {
            told.push(event.data.to_vec());
            Ok(EventVerdict::Pass)
        };
        for piece in stream.chunks(size) {
            out.extend_from_slice(&rewriter.push(piece, &mut decide).unwrap());
        }
        assert_eq!((out.as_slice(), told.len()), (stream.as_slice(), 2), "in pieces of {size}");
    }
}

#[test]
fn a_comment_does_not_wait_for_the_event_around_it() {
    let mut rewriter = Rewriter::new(1000, RewriteMode::All);
    let mut push = |chunk: &str| {
        let out = rewriter.push(chunk.as_bytes(), &mut |_| Ok(EventVerdict::Pass)).unwrap();
        (String::from_utf8(out.to_vec()).unwrap(), rewriter.between_events())
    };
    for (chunk, out, between) in [
        (":hb\n", ":hb\n", true),
        (":h", "", true),
        ("b\r", ":hb\r", true),
        ("\n", "\n", true),
        ("data: a\n", "", false),
        (": still\n", ": still\n", false),
        (":and\r", ":and\r", false),
        ("\ndata: b\n", "\n", false),
        ("\n", "data: a\ndata: b\n\n", true),
    ] {
        assert_eq!(push(chunk), (out.to_owned(), between), "{chunk:?}");
    }
}

#[test]
fn a_stream_that_comes_in_single_bytes_costs_no_more_work_than_one_that_comes_whole() {
    let x = "x".repeat(50_000);
    let lines = "data: y\n".repeat(5_000);
    for (stream, watch) in [
        (format!("data: {x}\n\n"), RewriteMode::All),
        (format!("{lines}\n{lines}"), RewriteMode::All),
        (format!(": {x}\n"), RewriteMode::All),
        (format!("data: {x}{x}{x}\n\n"), RewriteMode::All),
        (format!("data: {}\n\n", "\"tool".repeat(20_000)), RewriteMode::All),
        (format!("{x}{x}"), RewriteMode::Foreign),
    ] {
        for piece in [1, 2, 1000, stream.len()] {
            let mut rewriter = Rewriter::new(100_000, watch);
            for chunk in stream.as_bytes().chunks(piece) {
                rewriter.push(chunk, &mut |_| Ok(EventVerdict::Pass)).unwrap();
            }
            rewriter.finish(&mut |_| Ok(EventVerdict::Pass)).unwrap();
            assert!(rewriter.work() <= 3 * stream.len(), "{piece}: {} for {}", rewriter.work(), stream.len());
        }
    }
}

#[test]
fn events_are_read_as_clients_read_them() {
    let (_, seen) = rewrite(b"event: endpoint\nevent:\ndata:\ndata\ndata: x\n\nevent: a\n\ndata\n\n", 1000, 1000).unwrap();
    assert_eq!(seen, [("message", "\n\nx"), ("message", "")].map(|(a, b)| (a.to_owned(), b.to_owned())));
}

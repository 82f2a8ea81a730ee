//! Between real clients and real servers: authorization, browsers, load balancers, networks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::float_cmp)]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    allow_all, call,
    client::{Answer, Ask, Http, Wire},
    folder::Folder,
    list, logs, policy, program, request, result,
    sidecar::Sidecar,
    tls::Authority,
    until,
    upstream::{Deed, Raw, Reply, Seen, Upstream},
    within,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

fn pay() -> Ask {
    Ask::post(call("7", "pay", "{}"))
}

fn all<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

// Authorization.

/// A server that describes its authorization at one path and whose 401 has these challenges.
async fn describes(path: &'static str, challenges: &'static [&'static str]) -> Upstream {
    Upstream::start(move |seen| {
        let origin = format!("http://{}", seen.header("host"));
        if seen.path == path {
            return Reply::json(format!(
                "{{\"resource\":\"{origin}/mcp\",\"authorization_servers\":[\"https://login.example\"]}}"
            ));
        }
        if seen.path != "/mcp" {
            return Reply::new(404, "text/html", "nothing");
        }
        challenges
            .iter()
            .fold(Reply::status(401), |reply, value| reply.with("www-authenticate", &value.replace("ORIGIN", &origin)))
    })
    .await
}

#[tokio::test]
async fn a_description_is_found_by_path_at_the_root_and_where_the_challenge_names_it() {
    for (path, challenge) in [
        ("/.well-known/oauth-protected-resource/mcp", "Bearer"),
        (WELL_KNOWN, "Bearer"),
        ("/about/auth?of=mcp", "Bearer resource_metadata=\"ORIGIN/about/auth?of=mcp\""),
        ("/about/auth", "Bearer resource_metadata=/about/auth"),
    ] {
        let upstream = describes(path, Box::leak(Box::new([challenge]))).await;
        let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
        for http in Http::BOTH {
            assert_eq!(pay().over(http, sidecar.address).await.status, 401, "{path}");
            for local in ["/.well-known/oauth-protected-resource/bank", "/.well-known/oauth-protected-resource/bank/"] {
                let answer = Ask::get().to(local).over(http, sidecar.address).await;
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                assert_eq!(answer.json()["resource"], format!("http://{}/bank", sidecar.address), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_description_is_not_looked_for_at_another_origin() {
    let other = describes("/about", &["Bearer"]).await;
    let named: &'static str = Box::leak(format!("Bearer resource_metadata=\"http://{}/about\"", other.address).into_boxed_str());
    let upstream = describes("/nowhere", Box::leak(Box::new([named]))).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    assert_eq!(sidecar.ask(&pay()).await.header("www-authenticate"), named);
    let answer = sidecar.ask(&Ask::get().to("/.well-known/oauth-protected-resource/bank")).await;
    assert_eq!((answer.status, answer.text()), (404, "nothing".to_owned()));
    assert!(other.seen().is_empty());
    let asked: Vec<String> = upstream.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, ["/mcp", "/.well-known/oauth-protected-resource/mcp", WELL_KNOWN]);
}

#[tokio::test]
async fn a_page_in_the_place_of_a_description_does_not_hide_the_one_at_the_root() {
    let upstream = Upstream::start(|seen| match seen.path.as_str() {
        WELL_KNOWN => Reply::json("{\"resource\":\"x\"}"),
        _ => Reply::new(200, "text/html", "<html>"),
    })
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let answer = sidecar.ask(&Ask::get().to("/.well-known/oauth-protected-resource/bank")).await;
    assert_eq!(answer.json(), json!({"resource": format!("http://{}/bank", sidecar.address)}));
}

#[tokio::test]
async fn a_description_is_read_up_to_its_bound_wherever_it_is() {
    for path in ["/.well-known/oauth-protected-resource/mcp", WELL_KNOWN] {
        for (length, status) in [(256 * 1024, 200), (256 * 1024 + 1, 502)] {
            let upstream = Upstream::start(move |seen| {
                let text = format!("{{\"resource\":\"x\",\"x\":\"{}\"}}", "y".repeat(length - 23));
                if seen.path == path { Reply::json(text) } else { Reply::status(404) }
            })
            .await;
            let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
            let answer = sidecar.ask(&Ask::get().to("/.well-known/oauth-protected-resource/bank")).await;
            assert_eq!(answer.status, status, "{path}: {length}");
            until("its room to be free", async || sidecar.scrape().await.sum("toolweir_held_bytes", &[]) == 0.0).await;
        }
    }
}

#[tokio::test]
async fn every_challenge_of_every_line_names_the_sidecar() {
    let upstream = describes(
        "/about",
        &[
            "Negotiate abc==, BEARER realm=\"a, b\", Resource_Metadata = \"ORIGIN/about\", DPoP resource_metadata=ORIGIN/about",
            "Bearer error=\"x\" resource_metadata=\"ORIGIN/other\", resource_metadata=\"https://elsewhere.example/x\"",
            "Bearer realm=\"x\", resource_metadata=\"ORIGIN/about",
        ],
    )
    .await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let own = format!("resource_metadata=\"http://{}/.well-known/oauth-protected-resource/bank\"", sidecar.address);
    assert_eq!(
        all(&sidecar.ask(&pay()).await, "www-authenticate"),
        [
            format!("Negotiate abc==, BEARER realm=\"a, b\", {own}, DPoP {own}"),
            format!("Bearer error=\"x\" {own}, resource_metadata=\"https://elsewhere.example/x\""),
            "Bearer realm=\"x\"".to_owned(),
        ]
    );
    assert_eq!(sidecar.ask(&Ask::get().to("/.well-known/oauth-protected-resource/bank")).await.status, 200);
}

// Browsers.

fn preflight(origin: &str) -> Ask {
    pay().method("OPTIONS").without("content-type").with("origin", origin).with("access-control-request-method", "POST")
}

#[tokio::test]
async fn a_page_on_an_accepted_origin_may_ask_and_read() {
    let upstream = Upstream::start(|seen| {
        let id = serde_json::from_slice::<serde_json::Value>(&seen.body).map_or("1".to_owned(), |body| body["id"].to_string());
        Reply::json(result(&id))
            .with("mcp-session-id", "s")
            .with("access-control-allow-origin", "*")
            .with("access-control-expose-headers", "X-Trace")
    })
    .await;
    let sidecar =
        Sidecar::with(&allow_all(&upstream.url()), |config| config.allowed_hosts = vec!["chat.example".to_owned()]).await;
    for origin in ["http://localhost:6274", "http://127.0.0.1:8000", "http://[::1]:1", "https://chat.example"] {
        for http in Http::BOTH {
            let ask = preflight(origin)
                .with("access-control-request-headers", "content-type,authorization,mcp-session-id,mcp-param-x,last-event-id")
                .with("access-control-request-private-network", "true");
            let answer = ask.over(http, sidecar.address).await;
            assert_eq!(answer.status, 204, "{origin}");
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            assert_eq!(answer.header("access-control-allow-methods"), "GET, POST, DELETE");
            let allowed = "content-type, authorization, mcp-session-id, mcp-param-x, last-event-id";
            assert_eq!(answer.header("access-control-allow-headers"), allowed);
            assert_eq!(answer.header("access-control-allow-private-network"), "true");
            assert_eq!(answer.header("access-control-allow-credentials"), "");

            let answer = pay().with("origin", origin).over(http, sidecar.address).await;
            assert_eq!((answer.status, all(&answer, "access-control-allow-origin")), (200, vec![origin]));
            let exposed = "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After, X-Trace";
            assert_eq!(all(&answer, "access-control-expose-headers"), [exposed]);
            assert!(all(&answer, "vary").contains(&"Origin"));
            // What fails must be read, too.
            for ask in [pay().to("/nobody/here"), Ask::post("{"), Ask::get().to("/.well-known/oauth-protected-resource/x")] {
                let answer = ask.plain().with("origin", origin).over(http, sidecar.address).await;
                assert!(answer.status >= 400 && answer.header("access-control-allow-origin") == origin, "{}", answer.text());
            }
        }
    }
    assert!(upstream.seen().iter().all(|seen| seen.method == "POST" && seen.header("origin").is_empty()));
    let counted = &[("method", "_preflight"), ("outcome", "ok")];
    assert_eq!(sidecar.scrape().await.sum("toolweir_requests_total", counted), 8.0);
    // Who is no page gets nothing of it.
    let answer = sidecar.ask(&pay()).await;
    assert_eq!(all(&answer, "access-control-expose-headers"), ["X-Trace"]);
}

#[tokio::test]
async fn a_page_on_another_origin_may_do_nothing() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    for origin in ["https://chat.example", "null", "http://192.168.1.1", "http://localhost.example"] {
        for ask in [preflight(origin), pay().with("origin", origin), Ask::get().with("origin", origin)] {
            let answer = sidecar.ask(&ask).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""), "{origin}");
        }
    }
    // No page asks twice, nor for another host.
    let twice = pay().with("origin", "http://localhost:1").with("origin", "https://chat.example");
    let rebound = preflight("http://localhost:1").with("host", "chat.example");
    for ask in [twice, rebound] {
        let answer = sidecar.ask(&ask).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
    }
    // Nor is an OPTIONS without a page a preflight.
    let answer = sidecar.ask(&pay().method("OPTIONS")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, "POST, GET, DELETE"));
    assert!(upstream.seen().is_empty());
}

// Load balancers.

#[tokio::test]
async fn a_cookie_of_a_server_comes_back_to_it_and_to_no_other() {
    let sets = |name: &'static str| {
        Upstream::start(move |seen| {
            Reply::json(result(&seen.json()["id"].to_string()))
                .with("set-cookie", &format!("{name}=a/b==; Path=/mcp; Secure; HttpOnly; SameSite=None"))
                .with("set-cookie", "__Host-s=1; Secure; Path=/")
                .with("set-cookie", "foreign=1; Domain=example.com")
        })
    };
    let (bank, shop) = (sets("AWSALB").await, sets("AWSALBCORS").await);
    let servers = allow_all(&bank.url())
        + &format!("  - {{name: shop, url: \"{}\", tools: [{{name: \"*\", action: Allow}}]}}\n", shop.url());
    let sidecar = Sidecar::start(&servers).await;
    for http in Http::BOTH {
        let (at_bank, at_shop) = (pay().over(http, sidecar.address).await, pay().to("/shop").over(http, sidecar.address).await);
        assert_eq!(
            all(&at_bank, "set-cookie"),
            ["toolweir~bank~AWSALB=a/b==; HttpOnly; Path=/bank", "toolweir~bank~__Host-s=1; Path=/bank"]
        );
        // A client that looks at no path sends all to both.
        let jar: Vec<String> = [&at_bank, &at_shop]
            .iter()
            .flat_map(|answer| all(answer, "set-cookie"))
            .map(|cookie| cookie.split(';').next().unwrap().to_owned())
            .collect();
        let ask = pay().with("cookie", &jar.join("; ")).with("cookie", "own=1");
        ask.over(http, sidecar.address).await;
        ask.to("/shop").over(http, sidecar.address).await;
        let last = |upstream: &Upstream| -> Seen { upstream.seen().last().unwrap().clone() };
        assert_eq!(last(&bank).headers.get_all("cookie").iter().collect::<Vec<_>>(), ["AWSALB=a/b==; __Host-s=1; own=1"]);
        assert_eq!(last(&shop).header("cookie"), "AWSALBCORS=a/b==; __Host-s=1; own=1");
        pay().with("cookie", "toolweir~shop~AWSALBCORS=1").over(http, sidecar.address).await;
        assert!(!last(&bank).headers.contains_key("cookie"));
    }
}

// Refused before it was read.

/// Sends all of a request before it reads a byte, as common clients do, and gives the status.
async fn sends_first(sidecar: &Sidecar, ask: &Ask) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(sidecar.address).await?;
    // With a small buffer the rest waits until the sidecar reads.
    for piece in ask.bytes("localhost").chunks(16 * 1024) {
        within("writing", stream.write_all(piece)).await?;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within("the answer", stream.read_u8()).await?);
    }
    Ok(String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().to_owned())
}

#[tokio::test]
async fn a_request_that_is_refused_early_gets_its_answer_however_much_follows() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.body = 1024 * 1024).await;
    let long = call("7", "pay", &format!("{{\"x\":\"{}\"}}", "y".repeat(12 << 20)));
    for (name, ask, status) in [
        ("too large", Ask::post(long.as_str()), "413"),
        ("too large, in chunks", Ask::post(long.as_str()).with("transfer-encoding", "chunked"), "413"),
        ("an unknown path", Ask::post(long.as_str()).to("/bank/mcp"), "404"),
        ("another method", Ask::post(long.as_str()).method("PUT"), "405"),
        ("no JSON", Ask::post(long.as_str()).without("content-type"), "415"),
        ("another origin", Ask::post(long.as_str()).with("origin", "https://chat.example"), "403"),
        ("closing", Ask::post(long.as_str()).with("connection", "close"), "413"),
    ] {
        let got = sends_first(&sidecar, &ask.clone().plain()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(got, status, "{name}");
        // A client of MCP is told by its id, but where MCP has an error of HTTP.
        let got = sends_first(&sidecar, &ask).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(got, if matches!(status, "403" | "405") { status } else { "200" }, "{name}");
    }
    assert!(upstream.seen().is_empty());
    // The connection is one to go on with.
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post(long.as_str()).plain().bytes("localhost")).await;
    assert_eq!(wire.next_status().await, Some(413));
    wire.write(&pay().bytes("localhost")).await;
    assert_eq!(wire.next_status().await, Some(200));
}

#[tokio::test]
async fn what_follows_a_refused_request_is_discarded_within_bounds() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.body = 1024).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post("").plain().to("/no/where").with("content-length", "1000000000").bytes("localhost")).await;
    wire.write(&vec![b'x'; 17 * 1024]).await;
    assert!(wire.closed().await.starts_with("HTTP/1.1 404 "));
    // Who waits for leave to send is told at once, and sends nothing.
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(
        &Ask::post("").plain().to("/no/where").with("expect", "100-continue").with("content-length", "5").bytes("localhost"),
    )
    .await;
    assert!(wire.closed().await.starts_with("HTTP/1.1 404 "));
    // A stop does not wait for it.
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post("").plain().to("/no/where").with("content-length", "500").bytes("localhost")).await;
    assert_eq!(wire.next_status().await, Some(404));
    let began = std::time::Instant::now();
    assert!(sidecar.stop(Duration::from_secs(5)).await);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_discarded_is_a_request_under_way() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), |config| config.limits.requests = 1).await;
    let mut wire = Wire::connect(sidecar.address).await;
    wire.write(&Ask::post("").plain().to("/no/where").with("content-length", "500").bytes("localhost")).await;
    assert_eq!(wire.next_status().await, Some(404));
    assert_eq!(sidecar.ask(&pay().plain()).await.status, 503);
    wire.write(&[b'x'; 500]).await;
    until("its place to be free", async || sidecar.ask(&pay().plain()).await.status == 200).await;
    // Who finds no place is told so, however much follows.
    wire.write(&Ask::post("").plain().to("/no/where").with("content-length", "500").bytes("localhost")).await;
    assert_eq!(wire.next_status().await, Some(404));
    let long = Ask::post(vec![b'x'; 3 << 20]).plain();
    assert_eq!(sends_first(&sidecar, &long).await.unwrap(), "503");
}

// Heads of answers.

#[tokio::test]
async fn the_value_of_content_encoding_decides_and_not_that_it_is_there() {
    let coding = Arc::new(Mutex::new(""));
    let current = Arc::clone(&coding);
    let upstream = Upstream::start(move |seen| {
        let coding = *current.lock().unwrap();
        let listed = list("1", &["pay", "hidden"]);
        let reply = match (seen.method.as_str(), seen.path.as_str()) {
            ("GET", "/mcp") => Reply::new(200, "text/event-stream; charset=utf8", ": open\n\n"),
            ("GET", _) => Reply::json("{\"resource\":\"x\"}"),
            _ if seen.header("mcp-session-id") == "json" => Reply::new(200, "application/json; charset=utf8", listed),
            _ => Reply::new(200, "text/event-stream;charset=utf8", format!("data: {listed}\n\n")),
        };
        reply.with("content-encoding", coding)
    })
    .await;
    let sidecar = Sidecar::start(&policy(&upstream.url(), "[{name: pay}]")).await;
    let lists = Ask::post(request("1", "tools/list", "{}"));
    let described = Ask::get().to("/.well-known/oauth-protected-resource/bank");
    for (value, plain) in
        [("", true), ("identity", true), ("Identity, ", true), ("gzip", false), ("none", false), ("identity, br", false)]
    {
        *coding.lock().unwrap() = value;
        for ask in [lists.clone(), lists.clone().with("mcp-session-id", "json"), Ask::get(), described.clone()] {
            let answer = sidecar.ask(&ask.clone().plain()).await;
            assert_eq!(answer.status, if plain { 200 } else { 502 }, "{value}: {ask:?} {}", answer.text());
            assert!(!answer.text().contains("hidden"));
            assert_eq!(answer.text().contains("it is compressed"), !plain, "{value}: {ask:?} {}", answer.text());
        }
    }
}

#[tokio::test]
async fn an_answer_may_have_many_headers_but_not_any_number() {
    let head = |count: usize| {
        let more: String = (0..count).map(|number| format!("X-{number}: {number}\r\n")).collect();
        let body = result("7");
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len())
    };
    for (count, status) in [(150, 200), (900, 200), (1100, 502)] {
        let upstream = Raw::start(Deed::Say(head(count).into_bytes())).await;
        let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
        let answer = sidecar.ask(&pay().plain()).await;
        assert_eq!(answer.status, status, "{count}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.header(&format!("x-{}", count - 1)), (count - 1).to_string());
        }
    }
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(600 * 1024));
    let upstream = Raw::start(Deed::Say(long.into_bytes())).await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    assert_eq!(sidecar.ask(&pay().plain()).await.status, 502);
}

// Networks.

#[tokio::test]
async fn localhost_is_reached_by_either_address_without_dns() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let body = result("7");
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        let sidecar = Sidecar::start(&allow_all(&format!("http://localhost:{port}/mcp"))).await;
        for _ in 0..4 {
            assert_eq!(sidecar.ask(&pay()).await.text(), result("7"), "{address}");
        }
    }
}

#[tokio::test]
async fn why_a_server_cannot_be_reached_is_in_its_answer_and_in_the_log() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let plain = Upstream::bank().await;
    for (url, why, again) in [
        (format!("http://{nobody}/mcp"), "nobody listens at its address", true),
        (
            format!("https://{}/mcp", plain.address),
            "it does not speak TLS at this port; if that is meant, write http:// in the policy's url",
            false,
        ),
    ] {
        let log = logs::log();
        let sidecar = Sidecar::start(&allow_all(&url)).await;
        let answer = sidecar.ask(&pay().plain()).await;
        let message = format!("The MCP server bank cannot be connected to: {why}.");
        assert_eq!((answer.status, &answer.json()["error"]["message"]), (502, &json!(message)));
        assert_eq!(answer.header("retry-after"), if again { "1" } else { "" });
        assert!(log.text().contains(why), "{why} is not in {}", log.text());
    }
}

/// The reason that is given for a server with this certificate, where these are trusted.
async fn certified(acceptor: tokio_rustls::TlsAcceptor, trusted: String, host: &str) -> (u16, String) {
    let upstream = Upstream::with_tls(acceptor, |_| Reply::json(result("7"))).await;
    let folder = Folder::new();
    let ca = folder.write("ca.pem", trusted);
    let file = folder.write("policy.yaml", allow_all(&format!("https://{host}:{}/mcp", upstream.address.port())));
    let sidecar = Sidecar::at(folder, file, |config| config.upstream_ca = Some(ca)).await;
    let answer = sidecar.ask(&pay().plain()).await;
    (answer.status, answer.text())
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_the_remedy() {
    // As `openssl req -x509` makes one: that of an authority, shown by the server itself.
    let own = Authority::self_shown("localhost", true);
    let (status, said) = certified(own.1, own.0, "localhost").await;
    assert!(
        status == 502 && said.contains("is that of an authority") && said.contains("basicConstraints=critical,CA:FALSE"),
        "{said}"
    );
    // The remedy is one.
    let own = Authority::self_shown("localhost", false);
    let (status, said) = certified(own.1, own.0, "localhost").await;
    assert_eq!((status, said), (200, result("7")));
    let (authority, other) = (Authority::new(), Authority::new());
    let (status, said) = certified(authority.acceptor("localhost", &[]), other.pem(), "localhost").await;
    assert!(
        status == 502
            && said.contains("no trusted authority signed its certificate; give the authority's certificate with --upstream-ca"),
        "{said}"
    );
    let (status, said) = certified(authority.acceptor("bank.example", &[]), authority.pem(), "localhost").await;
    assert!(status == 502 && said.contains("bank.example") && said.contains("not for localhost; write such a name"), "{said}");
}

/// A proxy of the network: it keeps the heads of what it was asked, and connects wherever it is told, or to this port.
struct Proxy {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(to: u16, refuses: Option<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:p%40ss@{}", listener.local_addr().unwrap());
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&heads);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(client.read_u8().await.unwrap());
                    }
                    let text = String::from_utf8(head).unwrap();
                    kept.lock().unwrap().push(text.clone());
                    if let Some(status) = refuses {
                        let _ = client.write_all(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
                        return;
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    if text.starts_with("CONNECT ") {
                        client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
                    } else {
                        server.write_all(text.as_bytes()).await.unwrap();
                    }
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { url, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_server_is_reached_through_a_proxy_that_sees_nothing_of_tls() {
    let authority = Authority::new();
    for protocols in [["h2", "http/1.1"].as_slice(), &["http/1.1"]] {
        let upstream = Upstream::with_tls(authority.acceptor("bank.invalid", protocols), |_| Reply::json(result("7"))).await;
        let proxy = Proxy::start(upstream.address.port(), None).await;
        let folder = Folder::new();
        let ca = folder.write("ca.pem", authority.pem());
        let file = folder.write("policy.yaml", allow_all("https://bank.invalid/mcp"));
        let sidecar = Sidecar::at(folder, file, |config| {
            config.upstream_ca = Some(ca);
            config.upstream_proxy = Some(proxy.url.parse().unwrap());
            config.workers = 1;
        })
        .await;
        for _ in 0..3 {
            assert_eq!(sidecar.ask(&pay()).await.text(), result("7"));
        }
        let head =
            "CONNECT bank.invalid:443 HTTP/1.1\r\nHost: bank.invalid:443\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n";
        assert_eq!(proxy.heads(), [head]);
        let seen = upstream.seen()[0].clone();
        assert!(seen.text() == call("7", "pay", "{}") && !seen.headers.contains_key("proxy-authorization"));
    }
}

#[tokio::test]
async fn a_server_without_tls_is_asked_for_by_its_whole_url() {
    let upstream = Upstream::bank().await;
    let proxy = Proxy::start(upstream.address.port(), None).await;
    let through = |config: &mut toolweir_sidecar::run::RunConfig| config.upstream_proxy = Some(proxy.url.parse().unwrap());
    let sidecar = Sidecar::with(&allow_all("http://bank.invalid:8000/mcp"), through).await;
    assert_eq!(sidecar.ask(&pay().with("proxy-authorization", "Basic other")).await.text(), result("7"));
    let heads = proxy.heads();
    assert!(heads[0].starts_with("POST http://bank.invalid:8000/mcp HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains("host: bank.invalid:8000\r\n"), "{heads:?}");
    assert_eq!(heads[0].matches("roxy-authorization: ").collect::<Vec<_>>().len(), 1);
    assert!(heads[0].contains("proxy-authorization: Basic dXNlcjpwQHNz\r\n"), "{heads:?}");
    // Loopback would be another machine's there.
    let sidecar = Sidecar::with(&allow_all(&upstream.url()), through).await;
    assert_eq!(sidecar.ask(&pay()).await.text(), result("7"));
    assert_eq!(proxy.heads().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_said_to() {
    for (status, remedy) in
        [(407, "; write a user and a password in its URL"), (403, "; it must allow CONNECT to this host and port")]
    {
        let proxy = Proxy::start(1, Some(status)).await;
        for url in ["https://bank.invalid/mcp", "http://bank.invalid/mcp"] {
            let sidecar = Sidecar::with(&allow_all(url), |config| config.upstream_proxy = Some(proxy.url.parse().unwrap())).await;
            let answer = sidecar.ask(&pay().plain()).await;
            if url.starts_with("http:") && status == 403 {
                // It may be the server's own: nobody can tell.
                assert_eq!(answer.status, 403);
                continue;
            }
            let said = format!("the proxy of --upstream-proxy answers with status {status}{remedy}.");
            assert!(answer.status == 502 && answer.text().contains(&said), "{}", answer.text());
            assert_eq!(sidecar.counted("connect_failed").await, 1.0);
        }
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sidecar = Sidecar::with(&allow_all("https://bank.invalid/mcp"), |config| {
        config.upstream_proxy = Some(format!("http://{nobody}").parse().unwrap());
    })
    .await;
    let said = sidecar.ask(&pay()).await.text();
    assert!(said.contains("the proxy of --upstream-proxy cannot be reached: nobody listens at its address."), "{said}");
}

#[tokio::test]
async fn a_refusal_that_may_be_the_servers_own_gives_no_place_back() {
    for (url, counts) in [("https://bank.invalid/mcp", false), ("http://bank.invalid/mcp", true)] {
        let proxy = Proxy::start(1, Some(407)).await;
        let text = policy(url, "[{name: pay, limits: [{max: 1, window: hour}]}]");
        let sidecar = Sidecar::with(&text, |config| config.upstream_proxy = Some(proxy.url.parse().unwrap())).await;
        assert_eq!(sidecar.ask(&pay().plain()).await.status, 502);
        assert_eq!(sidecar.ask(&pay().plain()).await.status, if counts { 200 } else { 502 }, "{url}");
        assert_eq!((proxy.heads().len(), sidecar.counted("denied").await), if counts { (1, 1.0) } else { (2, 0.0) });
    }
}

#[tokio::test]
async fn a_proxy_of_the_environment_alone_is_not_used_and_the_start_says_so() {
    let upstream = Upstream::bank().await;
    let proxy = Proxy::start(upstream.address.port(), None).await;
    let folder = Folder::new();
    let file = folder.write("policy.yaml", allow_all("http://bank.invalid/mcp"));
    let arguments = ["run", "--policy", file.to_str().unwrap(), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let arguments = [arguments.as_slice(), &["--admin-listen", "127.0.0.1:0", "--log-format", "json"]].concat();
    for (flags, through) in [(&[][..], false), (&["--upstream-proxy", &proxy.url], true)] {
        let mut command = program::command(&[arguments.as_slice(), flags].concat());
        let mut child = command.env("HTTPS_PROXY", &proxy.url).env("NO_PROXY", "other.invalid").spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut told = String::new();
        let address: std::net::SocketAddr = loop {
            let line = within("the log", log.next_line()).await.unwrap().expect("it ended before it was ready");
            told.push_str(&line);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "ready" {
                break line["listen"].as_str().unwrap().parse().unwrap();
            }
        };
        let answer = pay().plain().over(Http::One, address).await;
        assert_eq!(answer.status, if through { 200 } else { 502 }, "{}", answer.text());
        assert_eq!(told.contains("HTTPS_PROXY") && told.contains("give --upstream-proxy"), !through, "{told}");
        assert!(!told.contains("ss@") && !told.contains("dXNl"), "{told}");
        assert_eq!(proxy.heads().len(), usize::from(through));
    }
    let output = program::command(&[arguments.as_slice(), &["--upstream-proxy", "https://user:secret@proxy"]].concat())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("write http://HOST:PORT"), "{said}");
}

#[tokio::test]
async fn connections_are_closed_when_nothing_is_left_to_discard() {
    let upstream = Upstream::bank().await;
    let sidecar = Sidecar::start(&allow_all(&upstream.url())).await;
    let ask = Ask::post(vec![b'x'; 5 << 20]).to("/no/where");
    assert_eq!(sends_first(&sidecar, &ask).await.unwrap(), "404");
    until("its connection to close", async || sidecar.scrape().await.sum("toolweir_connections", &[]) == 0.0).await;
}

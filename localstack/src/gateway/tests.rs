//! Requests over HTTP, to a gateway before an upstream that records what reaches it.

use super::*;
use axum::body::Bytes;
use axum::http::request::Parts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A gateway, and what reaches the upstream behind it, which answers everything with `{}`.
struct Tried {
    gateway: Gateway,
    passed: mpsc::UnboundedReceiver<(Parts, Bytes)>,
    _upstream: JoinSet<()>,
}

impl Tried {
    async fn start() -> Self {
        let (sender, passed) = mpsc::unbounded_channel();
        let listener = Gateway::listen(None).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let take = async |State(sender): State<mpsc::UnboundedSender<(Parts, Bytes)>>, request: Request| {
            let (parts, body) = request.into_parts();
            sender.send((parts, to_bytes(body, BODY_BYTES).await.unwrap())).unwrap();
            "{}"
        };
        let app = Router::new().fallback(take).with_state(sender);
        let mut upstream = JoinSet::new();
        upstream.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let served = Served {
            routes: Routes::of(
                &[
                    ["GET", "/products", "catalog"],
                    ["GET", "/products/{product_id}", "catalog"],
                    ["POST", "/reservations", "reserve"],
                    ["GET", "/admin/products", "admin"],
                ],
                Some("catalog"),
            ),
            functions: ["catalog", "reserve", "admin", "expire"].map(str::to_owned).into(),
            cors: None,
            signer: Signer::load().unwrap(),
        };
        let listener = Gateway::listen(None).await.unwrap();
        let seconds = Duration::from_secs(10);
        let gateway = Gateway::open(listener, Upstream::new(base, seconds).unwrap(), served).unwrap();
        Self { gateway, passed, _upstream: upstream }
    }

    /// Sends a request byte for byte, since a client would tidy its path; the status and the body of the answer.
    async fn send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let address = self.gateway.url().strip_prefix("http://").unwrap();
        let mut head = format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// What was passed on since the last call.
    fn passed(&mut self) -> Vec<(Parts, Bytes)> {
        std::iter::from_fn(|| self.passed.try_recv().ok()).collect()
    }
}

const INVOKE: &str = "POST /2015-03-31/functions/expire/invocations";

#[tokio::test]
async fn a_dot_segment_is_not_found_and_reaches_nobody() {
    let mut tried = Tried::start().await;
    let not_found = (404, r#"{"message":"Not Found"}"#.to_owned());
    for path in [
        "/products/..",
        "/products/.",
        "/./products",
        "/products/%2e%2e",
        "/products/%2E%2e",
        "/products/.%2e",
        "/products/%2e./x",
        "/products/%2e",
        "/%2e%2e/admin/products",
        "/products/../admin/products",
        "/products\\..\\admin",
        "/products/%2e%2e?limit=1",
        "/2015-03-31/functions/%2e%2e/invocations",
    ] {
        for method in ["GET", "POST", "OPTIONS"] {
            let answer = tried.send(&format!("{method} {path}"), &[], b"").await;
            assert_eq!(answer, not_found, "{method} {path}");
        }
    }
    assert!(tried.passed().is_empty());
}

#[tokio::test]
async fn every_other_path_is_passed_on_as_it_was_sent() {
    let mut tried = Tried::start().await;
    for (path, passed) in [
        ("/products/tea", "/products/tea"),
        ("/products/...", "/products/..."),
        ("/products/%2e%2ex", "/products/%2e%2ex"),
        ("/products/a%2Fb?x=..&y=%2e", "/products/a%2Fb?x=..&y=%2e"),
        ("/products/a\\b", "/products/a%5Cb"),
        // No route knows these.
        ("//products", "/lambda-url/catalog//products"),
        ("/products//", "/lambda-url/catalog/products//"),
        ("/admin\\products", "/lambda-url/catalog/admin%5Cproducts"),
    ] {
        assert_eq!(tried.send(&format!("GET {path}"), &[], b"").await.0, 200, "{path}");
        let sent = tried.passed();
        let paths: Vec<_> = sent.iter().map(|(parts, _)| parts.uri.to_string()).collect();
        assert_eq!(paths, [passed], "{path}");
    }
}

#[tokio::test]
async fn no_header_of_the_lambda_runtime_is_passed_on() {
    let mut tried = Tried::start().await;
    let headers = [
        ("lambda-runtime-client-context", "not json"),
        ("Lambda-Runtime-Aws-Request-Id", "1"),
        ("Lambda-Runtime-Anything", "1"),
        ("lambda-other", "kept"),
    ];
    for line in ["GET /products", "GET /unknown", INVOKE] {
        assert_eq!(tried.send(line, &headers, b"{}").await.0, 200, "{line}");
        let (parts, _) = tried.passed().remove(0);
        let names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert!(!names.iter().any(|name| name.starts_with("lambda-runtime-")), "{line}: {names:?}");
        assert!(names.contains(&"lambda-other"), "{line}: {names:?}");
    }
}

#[tokio::test]
async fn only_programs_on_this_machine_invoke_and_only_known_functions() {
    let mut tried = Tried::start().await;
    for host in ["127.0.0.1", "127.0.0.1:3000", "localhost", "LOCALHOST:9000", "[::1]", "[::1]:3000"] {
        assert_eq!(tried.send(INVOKE, &[("Host", host)], b"{}").await.0, 200, "{host}");
        let (parts, body) = tried.passed().remove(0);
        assert_eq!((parts.uri.path(), &body[..]), ("/2015-03-31/functions/expire/invocations", &b"{}"[..]));
    }
    for host in ["shop.example", "shop.example:3000", "127.0.0.1.shop.example", "localhost.shop.example", "[::2]", ""] {
        assert_eq!(tried.send(INVOKE, &[("Host", host)], b"{}").await.0, 403, "{host}");
    }
    for origin in ["https://shop.example", "http://127.0.0.1:3000", "null"] {
        let headers = [("Origin", origin), ("Content-Type", "text/plain")];
        assert_eq!(tried.send(INVOKE, &headers, b"{}").await.0, 403, "{origin}");
    }
    for function in ["holdfast-local", "_", "expire%20"] {
        let line = format!("POST /2015-03-31/functions/{function}/invocations");
        assert_eq!(tried.send(&line, &[], b"{}").await.0, 404, "{function}");
    }
    assert_eq!(tried.send(INVOKE, &[], b"\"\xff\"").await.0, 400);
    assert!(tried.passed().is_empty());
    // The API itself is for everybody: pages of another origin are the business of CORS.
    let page = [("Host", "shop.example"), ("Origin", "https://shop.example")];
    assert_eq!(tried.send("GET /products", &page, b"").await.0, 200);
}

#[tokio::test]
async fn a_body_is_passed_on_byte_for_byte_and_marked_if_it_is_not_text() {
    let mut tried = Tried::start().await;
    let text = "{\"name\":\"Grün\"}".as_bytes();
    let (latin, zipped) = (&b"{\"name\":\"Gr\xfcn\"}"[..], &b"\x1f\x8b\x08\x00\xff"[..]);
    for (body, kind, passed) in [
        (text, Some("application/json"), Some("application/json")),
        (text, None, None),
        (latin, Some("application/json; charset=Latin1"), Some("APPLICATION/JSON; charset=Latin1")),
        (latin, Some("text/plain"), Some("TEXT/PLAIN")),
        (latin, None, Some("APPLICATION/OCTET-STREAM")),
        (zipped, Some("application/json"), Some("APPLICATION/JSON")),
    ] {
        let mut headers: Vec<(&str, &str)> = kind.map(|kind| ("Content-Type", kind)).into_iter().collect();
        if body == zipped {
            headers.push(("Content-Encoding", "gzip"));
        }
        assert_eq!(tried.send("POST /reservations", &headers, body).await.0, 200, "{kind:?}");
        let (parts, received) = tried.passed().remove(0);
        let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!((&received[..], header("content-type").as_deref()), (body, passed), "{kind:?}");
        assert_eq!(header("content-encoding").is_some(), body == zipped, "{kind:?}");
    }
}

#[tokio::test]
async fn a_token_is_given_to_this_machine_and_the_apis_own_page_only() {
    let mut tried = Tried::start().await;
    let own = tried.gateway.url();
    let ask =
        async |headers: &[(&str, &str)], body: &str| tried.send("POST /local/token", headers, body.as_bytes()).await;
    let admin = r#"{"role":"admin"}"#;
    for headers in [&[][..], &[("Origin", own)], &[("Host", "localhost:1"), ("Origin", "http://localhost:1")]] {
        let (status, body) = ask(headers, admin).await;
        assert!(status == 200 && body.starts_with(r#"{"token":"ey"#), "{headers:?}: {status} {body}");
    }
    for headers in [
        &[("Origin", "http://evil.example")][..],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Origin", "null")],
        &[("Origin", "")],
        &[("Host", "evil.example"), ("Origin", "http://evil.example")],
        &[("Host", "evil.example")],
    ] {
        assert_eq!(ask(headers, admin).await.0, 403, "{headers:?}");
    }
    for (body, part) in [
        ("", "not a role"),
        (r#"{"role":"root"}"#, "not a role"),
        (r#"{"role":"admin","sub":"guest:1"}"#, "guests"),
        (r#"{"role":"admin","sub":1}"#, "not a role"),
    ] {
        let (status, answer) = ask(&[], body).await;
        assert!(status == 400 && answer.contains(part), "{body}: {status} {answer}");
    }
    assert_eq!(tried.passed().len(), 0);
}

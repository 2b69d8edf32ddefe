//! A proxy between the functions and the emulator.
//!
//! It records which permissions the functions need, and can refuse calls as if a service were away. The caller is
//! identified by the credentials, as in AWS: each function signs with an access key id that is its own name. (ministack
//! and LocalStack accept any, except twelve digits, which they take for an account.)
//!
//! Invariant: every call is recorded, even if it is not understood, and passed on unchanged.

use crate::calls::{Names, Need, Request as Asked, caller};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_local::error::{Context, Result};
use holdfast_local::gateway::HOP_BY_HOP;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// More than any service accepts: DynamoDB's largest request is 16 MB.
const BODY_BYTES: usize = 17 * 1024 * 1024;
/// The operation, in the protocol of DynamoDB and SQS.
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// A running recorder. It stops when it is dropped.
pub struct Recorder {
    url: String,
    tap: Arc<Tap>,
    /// Ends the server when it is dropped.
    _server: JoinSet<()>,
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The permissions that each function needed, by its name.
    pub needs: BTreeMap<String, BTreeSet<Need>>,
    /// Calls that could not be attributed or understood, with the reason.
    pub not_understood: BTreeSet<String>,
}

/// A function's call, before it is passed on.
#[derive(Debug)]
pub struct Call<'a> {
    /// The function.
    pub function: &'a str,
    /// The permissions that it needs.
    pub needs: &'a [Need],
    /// The body, as text.
    pub body: &'a str,
}

impl Call<'_> {
    /// Whether it is a call of this service, such as `dynamodb`.
    pub fn is_of(&self, service: &str) -> bool {
        self.needs.iter().any(|need| need.action.split(':').next() == Some(service))
    }
}

/// How a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// "Internal error": the service is away. SDKs retry.
    Away,
    /// Access denied. SDKs do not retry.
    Denied,
    /// It is executed, and the connection breaks in the middle of the response.
    Cut,
}

/// Refuses calls until it is dropped.
pub struct Refused {
    tap: Arc<Tap>,
    id: u64,
    met: watch::Receiver<usize>,
}

impl Refused {
    /// Number of calls refused so far, and every change of it.
    pub fn met(&self) -> watch::Receiver<usize> {
        self.met.clone()
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        lock(&self.tap.rules).retain(|rule| rule.id != self.id);
    }
}

struct Rule {
    id: u64,
    which: Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>,
    how: Refusal,
    met: watch::Sender<usize>,
}

struct Tap {
    emulator: String,
    client: reqwest::Client,
    names: Names,
    functions: BTreeSet<String>,
    recorded: Mutex<Recorded>,
    rules: Mutex<Vec<Rule>>,
    /// Whether the emulator did not answer the last call.
    away: AtomicBool,
}

impl Recorder {
    /// Listens on any free port of 127.0.0.1, and passes the calls of `functions` on to the emulator at this URL.
    ///
    /// # Errors
    /// No port, or no HTTP client.
    pub async fn start(emulator: &str, names: Names, functions: BTreeSet<String>) -> Result<Self> {
        // Everything is on this machine: a proxy set in the environment must not be used.
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        let tap = Arc::new(Tap {
            emulator: emulator.trim_end_matches('/').to_owned(),
            client: client.context(|| "cannot make an HTTP client".into())?,
            names,
            functions,
            recorded: Mutex::default(),
            rules: Mutex::default(),
            away: AtomicBool::new(false),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context(|| "the recorder cannot listen".into())?;
        let address = listener.local_addr().context(|| "cannot tell the recorder's port".into())?;
        let app = Router::new().fallback(pass).with_state(Arc::clone(&tap));
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the recorder ended: {error}");
            }
        });
        Ok(Self { url: format!("http://{address}"), tap, _server: server })
    }

    /// The URL that the functions use as AWS.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Everything that was recorded so far.
    pub fn recorded(&self) -> Recorded {
        lock(&self.tap.recorded).clone()
    }

    /// From now on, calls for which `which` is true fail in this way. They are recorded nevertheless.
    pub fn refuse(&self, how: Refusal, which: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static) -> Refused {
        let (sender, met) = watch::channel(0);
        let mut rules = lock(&self.tap.rules);
        let id = rules.last().map_or(0, |last| last.id + 1);
        rules.push(Rule { id, which: Box::new(which), how, met: sender });
        Refused { tap: Arc::clone(&self.tap), id, met }
    }
}

async fn pass(State(tap): State<Arc<Tap>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY_BYTES).await {
        Ok(body) => body,
        // A caller that was killed while it sent, or one that sends too much: not a call, since no service saw it
        // complete.
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    match tap.record(&parts, &body) {
        Some(Refusal::Away) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
        Some(Refusal::Denied) => refusal(StatusCode::BAD_REQUEST, "AccessDeniedException"),
        Some(Refusal::Cut) => cut(tap.pass_on(parts, body).await).await,
        None => tap.pass_on(parts, body).await,
    }
}

impl Tap {
    /// Records a call. Returns how it is refused, if it is.
    fn record(&self, parts: &Parts, body: &Bytes) -> Option<Refusal> {
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let text = String::from_utf8_lossy(body);
        let function = header(header::AUTHORIZATION).and_then(caller).filter(|name| self.functions.contains(*name));
        let request = Asked {
            method: parts.method.as_str(),
            path: parts.uri.path_and_query().map_or("/", |path| path.as_str()),
            target: header(TARGET),
            body: &serde_json::from_str(&text).unwrap_or(Value::Null),
        };
        let (function, needs) = match (function, self.names.needs(request)) {
            (Some(function), Ok(needs)) => (function, needs),
            (function, needs) => {
                let who = function.unwrap_or("signed by no function");
                let what = needs.map_or_else(|why| why.to_string(), |needs| format!("{needs:?}"));
                lock(&self.recorded).not_understood.insert(format!("{who}: {what}"));
                return None;
            }
        };
        lock(&self.recorded).needs.entry(function.to_owned()).or_default().extend(needs.iter().cloned());
        let call = Call { function, needs: &needs, body: &text };
        let rules = lock(&self.rules);
        let rule = rules.iter().find(|rule| (rule.which)(&call))?;
        rule.met.send_modify(|met| *met += 1);
        Some(rule.how)
    }

    async fn pass_on(&self, mut parts: Parts, body: Bytes) -> Response {
        // Replaced by the emulator's own host, from which it makes the URLs of queues.
        parts.headers.remove(header::HOST);
        for name in HOP_BY_HOP {
            parts.headers.remove(name);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", self.emulator);
        let sent = self.client.request(parts.method, url).headers(parts.headers).body(body).send().await;
        let answer = match sent {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers().clone());
                response.bytes().await.map(|body| (status, headers, body))
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok((status, mut headers, body)) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    eprintln!("the emulator answers the recorder again");
                }
                for name in HOP_BY_HOP {
                    headers.remove(name);
                }
                let mut response = Response::new(Body::from(body));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                response
            }
            // To the caller it is a broken connection; its SDK retries.
            Err(error) => {
                // Logged once: every function calls several times a second.
                if !self.away.swap(true, Ordering::Relaxed) {
                    eprintln!("the emulator does not answer the recorder: {}", holdfast_local::error::chain(&error));
                }
                StatusCode::BAD_GATEWAY.into_response()
            }
        }
    }
}

fn refusal(status: StatusCode, code: &str) -> Response {
    // The SDKs of all three services find the code in either place.
    let headers = [(header::CONTENT_TYPE.as_str(), "application/x-amz-json-1.0"), ("x-amzn-errortype", code)];
    (status, headers, json!({ "__type": code, "message": "refused by the recorder" }).to_string()).into_response()
}

/// The first half of an answer: the server closes a connection whose body fails.
async fn cut(answer: Response) -> Response {
    let (parts, body) = answer.into_parts();
    let half = to_bytes(body, BODY_BYTES).await.map(|body| body.slice(..body.len() / 2));
    let broken = Err(axum::Error::new("cut by the recorder"));
    Response::from_parts(parts, Body::from_stream(futures_util::stream::iter([half, broken])))
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_local::bootstrap::Resources;
    use holdfast_local::template::{Attributes, Scope};

    /// An emulator that answers with what it received.
    async fn echo() -> (String, JoinSet<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(|request: Request| async {
            let (parts, body) = request.into_parts();
            let body = to_bytes(body, BODY_BYTES).await.unwrap();
            let host = parts.headers[header::HOST].to_str().unwrap();
            let text = format!("{} {} {host} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
            (StatusCode::IM_A_TEAPOT, [("x-echo", "yes")], text)
        });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        (url, server)
    }

    async fn recorder(emulator: &str) -> Recorder {
        let mut resources = Resources::new(Scope {
            stack: "s".to_owned(),
            region: "r".to_owned(),
            parameters: BTreeMap::new(),
            resources: BTreeMap::from([(
                "Table".to_owned(),
                Attributes {
                    reference: "s-Table".to_owned(),
                    attributes: BTreeMap::from([("Arn".to_owned(), "arn:t".to_owned())]),
                },
            )]),
        });
        resources.tables.insert("Table".to_owned(), "s-Table".to_owned());
        let names = Names::new(&resources).unwrap();
        Recorder::start(emulator, names, BTreeSet::from(["reserve".to_owned()])).await.unwrap()
    }

    async fn call(recorder: &Recorder, key: &str, operation: &str, body: &str) -> (u16, String) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client
            .post(format!("{}/some/path?a=b", recorder.url()))
            .header("authorization", format!("AWS4-HMAC-SHA256 Credential={key}/20261121/r/dynamodb/aws4_request"))
            .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
            .body(body.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    const BODY: &str = r#"{"TableName":"s-Table","Key":{"pk":{"S":"HOLD#1"}}}"#;

    #[tokio::test]
    async fn a_call_is_recorded_and_passed_on_as_it_came() {
        let (url, _emulator) = echo().await;
        let recorder = recorder(&url).await;
        let answer = call(&recorder, "reserve", "GetItem", BODY).await;
        let host = url.strip_prefix("http://").unwrap();
        assert_eq!(answer, (418, format!("POST /some/path?a=b {host} {BODY}")));
        let recorded = recorder.recorded();
        let needs: Vec<String> = recorded.needs["reserve"].iter().map(ToString::to_string).collect();
        assert_eq!(needs, ["dynamodb:GetItem on arn:t of HOLD#"]);
        assert!(recorded.not_understood.is_empty());
    }

    #[tokio::test]
    async fn what_is_not_understood_is_recorded_as_that() {
        let (url, _emulator) = echo().await;
        let recorder = recorder(&url).await;
        for (key, operation, body) in
            [("test", "GetItem", BODY), ("reserve", "ExecuteStatement", BODY), ("reserve", "GetItem", "not JSON")]
        {
            assert_eq!(call(&recorder, key, operation, body).await.0, 418);
        }
        let Recorded { needs, not_understood } = recorder.recorded();
        assert!(needs.is_empty());
        for part in ["signed by no function", "ExecuteStatement", "TableName"] {
            assert!(not_understood.iter().any(|why| why.contains(part)), "{part}: {not_understood:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_meets_the_calls_that_it_is_meant_for_and_ends_with_its_guard() {
        let (url, _emulator) = echo().await;
        let recorder = recorder(&url).await;
        let other = recorder.refuse(Refusal::Denied, |call| call.body.contains("HOLD#2"));
        let away = recorder.refuse(Refusal::Away, |call| call.is_of("dynamodb") && call.body.contains("HOLD#1"));
        let (status, body) = call(&recorder, "reserve", "UpdateItem", BODY).await;
        assert!(status == 500 && body.contains("InternalServerError"), "{status} {body}");
        let second = BODY.replace("HOLD#1", "HOLD#2");
        let (status, body) = call(&recorder, "reserve", "GetItem", &second).await;
        assert!(status == 400 && body.contains("AccessDeniedException"), "{status} {body}");
        assert_eq!(call(&recorder, "reserve", "GetItem", &BODY.replace("HOLD#1", "HOLD#3")).await.0, 418);
        assert_eq!((*away.met().borrow(), *other.met().borrow()), (1, 1));
        drop(away);
        assert_eq!(call(&recorder, "reserve", "UpdateItem", BODY).await.0, 418);
        assert_eq!(recorder.recorded().needs["reserve"].len(), 2, "what was refused was asked for too");
        drop(other);
        assert_eq!(call(&recorder, "reserve", "UpdateItem", &second).await.0, 418);
    }

    #[tokio::test]
    async fn a_call_that_is_cut_is_carried_out_and_its_answer_breaks_off() {
        let carried_out = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::clone(&carried_out);
        let app = Router::new().fallback(move |body: String| async move {
            lock(&seen).push(body.clone());
            body
        });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let recorder = recorder(&url).await;
        let cut = recorder.refuse(Refusal::Cut, |_| true);
        let request = reqwest::Client::builder().no_proxy().build().unwrap().post(recorder.url()).body(BODY);
        let request = request
            .header("authorization", "AWS4-HMAC-SHA256 Credential=reserve/20261121/r/dynamodb/aws4_request")
            .header("x-amz-target", "DynamoDB_20120810.UpdateItem");
        let answered = async { request.send().await?.text().await };
        answered.await.unwrap_err();
        assert_eq!(*lock(&carried_out), [BODY]);
        assert_eq!(*cut.met().borrow(), 1);
    }
}

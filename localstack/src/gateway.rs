//! The one way to the functions: a front door that stands where API Gateway stands in the cloud.
//!
//! It exists because of a limit of `cargo lambda watch` 1.9.2. Its queue for each function holds 100 requests, and a
//! request that finds the queue full waits while it holds a lock that every function needs to fetch its next one: from
//! then on nothing is ever answered again, on any route. So what must always hold: no more than [`IN_FLIGHT`] requests
//! for one function wait inside at once, whoever sends them; the rest wait here, first come, first served.
//!
//! A request that is given up at its time limit goes on waiting inside, so it keeps its place until it is known to have
//! left the queue: when it is answered after all, or when one that was sent after it is, since the queue is first in,
//! first out. The latter is how a request whose function was killed, which is never answered, gives its place back.
//! Where a function is killed by every request, the places run out, and the stack has to be started again.
//!
//! It also keeps the time limit, and answers as API Gateway does when it is over: `watch` never answers a request whose
//! function was killed, and its own `--timeout` would end idle functions too.

use crate::error::{Context, Error, Result};
use crate::routes::Routes;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tower_http::cors::CorsLayer;

/// Well below 100, for requests may overtake one another on their way to the queue; more than any sensible number of
/// processes can use.
const IN_FLIGHT: usize = 64;
/// API Gateway's own limit on a body.
const BODY_BYTES: usize = 10 * 1024 * 1024;

/// Headers that belong to one connection and not to the message.
pub(crate) const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// `cargo lambda watch`, never given more than it can take.
#[derive(Clone)]
pub struct Upstream {
    base: String,
    client: reqwest::Client,
    timeout: Duration,
    lines: Arc<Mutex<BTreeMap<String, Arc<Line>>>>,
}

/// What stands before one function's queue.
struct Line {
    places: Arc<Semaphore>,
    /// How many requests have been sent: the number of the next one.
    sent: AtomicU64,
    /// How many of the requests that were sent first are known to have left the queue.
    left: watch::Sender<u64>,
}

/// Why an invocation has no result.
#[derive(Debug)]
pub enum InvokeError {
    /// The function answered with an error.
    Function(String),
    /// No answer within the time limit: the function hangs, or was killed.
    TimedOut,
    /// `cargo lambda watch` cannot be reached.
    Unreachable(String),
}

impl fmt::Display for InvokeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(body) => write!(f, "the function failed: {body}"),
            Self::TimedOut => {
                f.write_str("the function did not answer in time: it hangs, or was killed, which its log tells")
            }
            Self::Unreachable(why) => write!(f, "the function cannot be reached: {why}"),
        }
    }
}

impl std::error::Error for InvokeError {}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Upstream {
    /// `base` is where `watch` listens. A request that takes longer than `timeout`, once it is in, has failed.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub fn new(base: String, timeout: Duration) -> Result<Self> {
        let client = reqwest::Client::builder()
            // Everything is on this machine: a proxy of the environment is not meant.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context(|| "cannot make an HTTP client".into())?;
        Ok(Self { base, client, timeout, lines: Arc::default() })
    }

    /// Calls a function with an event, as Lambda's Invoke does.
    ///
    /// # Errors
    /// The function failed, or did not answer.
    pub async fn invoke(&self, function: &str, event: &Value) -> std::result::Result<Value, InvokeError> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let answer = self.send(function, Method::POST, &path, HeaderMap::new(), event.to_string().into_bytes()).await?;
        if !answer.status.is_success() {
            return Err(InvokeError::Function(String::from_utf8_lossy(&answer.body).into_owned()));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| InvokeError::Function(format!("its answer is not JSON: {error}")))
    }

    fn line(&self, function: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lines.entry(function.to_owned()).or_default())
    }

    #[expect(clippy::disallowed_methods, reason = "nothing freezes the stack's own process")]
    async fn send(
        &self,
        function: &str,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> std::result::Result<Answer, InvokeError> {
        let line = self.line(function);
        let permit = Arc::clone(&line.places).acquire_owned().await;
        let permit = permit.map_err(|error| InvokeError::Unreachable(error.to_string()))?;
        let number = line.sent.fetch_add(1, Ordering::Relaxed);
        let request = self.client.request(method, format!("{}{path}", self.base)).headers(headers).body(body);
        let (mut tell, told) = oneshot::channel();
        // On its own: a request that nobody waits for any more still has its place.
        tokio::spawn(async move {
            let exchange = async {
                let answer = exchange(request).await;
                if answer.is_ok() {
                    line.left.send_modify(|left| *left = (*left).max(number + 1));
                }
                answer
            };
            let out_of_the_queue_and_given_up = async {
                let _ = line.left.subscribe().wait_for(|left| *left > number).await;
                drop(permit);
                tell.closed().await;
            };
            let answer = tokio::select! {
                answer = exchange => answer,
                () = out_of_the_queue_and_given_up => return,
            };
            // Nobody may be left to hear it.
            let _ = tell.send(answer);
        });
        match tokio::time::timeout(self.timeout, told).await {
            Ok(Ok(answer)) => answer.map_err(|error| InvokeError::Unreachable(crate::error::chain(&error))),
            Ok(Err(_)) | Err(_) => Err(InvokeError::TimedOut),
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(IN_FLIGHT));
        Self { places, sent: AtomicU64::new(0), left: watch::channel(0).0 }
    }
}

async fn exchange(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.bytes().await?.to_vec();
    Ok(Answer { status, headers, body })
}

/// The front door, open until dropped.
pub struct Gateway {
    url: String,
    /// Ends the server when it is dropped.
    _server: JoinSet<()>,
}

impl Gateway {
    /// Listens on 127.0.0.1, on `port` or, without one, on any that is free. Long before the door opens: that a port
    /// is taken should be known before anything is built.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn listen(port: Option<u16>) -> Result<TcpListener> {
        let port = port.unwrap_or(0);
        let listening = TcpListener::bind(("127.0.0.1", port)).await;
        listening.context(|| format!("the API cannot listen on 127.0.0.1:{port} (`--port` names another)"))
    }

    /// Lets requests in.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn open(listener: TcpListener, upstream: Upstream, routes: Routes, cors: Option<CorsLayer>) -> Result<Self> {
        let address = listener.local_addr().context(|| "cannot tell the gateway's port".into())?;
        let app = Router::new()
            .route("/2015-03-31/functions/{function}/invocations", post(forward_invocation))
            .fallback(forward_known)
            .with_state((upstream, Arc::new(routes)));
        let app = match cors {
            Some(cors) => app.layer(cors),
            None => app,
        };
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the gateway ended: {error}");
            }
        });
        Ok(Self { url: format!("http://{address}"), _server: server })
    }

    /// Where the API is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

type Front = (Upstream, Arc<Routes>);

/// What API Gateway does not know goes to the function behind its route `$default`, or, without one, to none. (`watch`
/// would hold it for a default function of its own, which we do not start; it calls a function by name at
/// `/lambda-url`.)
async fn forward_known(State((upstream, routes)): State<Front>, request: Request) -> Response {
    if let Some(function) = routes.function(request.method().as_str(), request.uri().path()) {
        return forward(&upstream, function, "", request).await;
    }
    let Some(function) = routes.otherwise() else {
        return message(StatusCode::NOT_FOUND, "Not Found");
    };
    let prefix = format!("/lambda-url/{function}");
    forward(&upstream, function, &prefix, request).await
}

async fn forward_invocation(
    State((upstream, _)): State<Front>,
    Path(function): Path<String>,
    request: Request,
) -> Response {
    forward(&upstream, &function, "", request).await
}

async fn forward(upstream: &Upstream, function: &str, prefix: &str, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    };
    // `watch` answers 500 of its own to JSON that is not UTF-8. In the cloud an event's body is a text, whatever was sent.
    let body = String::from_utf8_lossy(&body).into_owned().into_bytes();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    join_repeated(&mut parts.headers);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = format!("{prefix}{path}");
    match upstream.send(function, parts.method, &path, parts.headers, body).await {
        Ok(mut answer) => {
            for name in HOP_BY_HOP {
                answer.headers.remove(name);
            }
            let mut response = Response::new(Body::from(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            response
        }
        Err(why) => {
            eprintln!("{path}: {why}");
            message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
        }
    }
}

/// API Gateway hands a header that came more than once over as one, with commas between (payload format 2.0). `watch`
/// would drop all but one.
fn join_repeated(headers: &mut HeaderMap) {
    let repeated: Vec<HeaderName> =
        headers.keys().filter(|&name| headers.get_all(name).iter().count() > 1).cloned().collect();
    for name in repeated {
        let values: Vec<&[u8]> = headers.get_all(&name).iter().map(header::HeaderValue::as_bytes).collect();
        if let Ok(joined) = header::HeaderValue::from_bytes(&values.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

/// A refusal of the gateway's own, in API Gateway's words.
fn message(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json!({ "message": text }).to_string()).into_response()
}

/// A port of 127.0.0.1 that is free now. It may be taken before it is used, so this is for servers that cannot be
/// given port 0; they fail loudly then.
pub fn free_port() -> Result<u16> {
    let probe = std::net::TcpListener::bind(("127.0.0.1", 0));
    let address = probe.and_then(|listener| listener.local_addr());
    let port = address.context(|| "cannot find a free port".into())?.port();
    if port == 0 { Err(Error::new("cannot find a free port")) } else { Ok(port) }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic is how a test fails, and nothing freezes it"
)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// What `watch` has in its queues, in order: the function, and the way to answer.
    type Queue = mpsc::UnboundedReceiver<(String, oneshot::Sender<()>)>;

    async fn watch_with_nobody_at_work() -> (String, Queue) {
        let (queue, queued) = mpsc::unbounded_channel();
        let app = Router::new().route(
            "/2015-03-31/functions/{function}/invocations",
            post(async move |Path(function): Path<String>| {
                let (answer, answered) = oneshot::channel();
                queue.send((function, answer)).unwrap();
                // Without an answer the function was killed.
                if answered.await.is_err() {
                    std::future::pending::<()>().await;
                }
                "{}"
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (url, queued)
    }

    #[tokio::test]
    async fn who_was_given_up_keeps_the_place_until_the_queue_has_passed_it() {
        let (url, mut queue) = watch_with_nobody_at_work().await;
        let upstream = Upstream::new(url, Duration::from_millis(100)).unwrap();
        let mut callers = JoinSet::new();
        for _ in 0..3 * IN_FLIGHT {
            let upstream = upstream.clone();
            callers.spawn(async move { upstream.invoke("reserve", &json!({})).await });
        }
        for _ in 0..IN_FLIGHT {
            let ended = callers.join_next().await.unwrap().unwrap();
            assert!(matches!(ended, Err(InvokeError::TimedOut)), "{ended:?}");
        }
        // One more time limit, at a queue of its own. Whoever a given-up request let in would be inside by now.
        let other = upstream.invoke("admin", &json!({})).await;
        assert!(matches!(other, Err(InvokeError::TimedOut)), "{other:?}");
        let mut inside = Vec::new();
        while let Ok((function, answer)) = queue.try_recv() {
            if function == "reserve" {
                inside.push(answer);
            }
        }
        assert_eq!(inside.len(), IN_FLIGHT);

        // All but the last meet a function that is killed; the answer to it gives every place back.
        let last = inside.pop().unwrap();
        drop(inside);
        last.send(()).unwrap();
        let all_end = async {
            let mut inside = Vec::new();
            while inside.len() < IN_FLIGHT {
                inside.push(queue.recv().await.unwrap());
            }
            inside.into_iter().for_each(|(_, answer)| _ = answer.send(()));
            loop {
                tokio::select! {
                    Some((_, answer)) = queue.recv() => { _ = answer.send(()) }
                    ended = callers.join_next() => if ended.is_none() { return },
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all_end).await.unwrap();
    }
}

//! The local gateway, in the place of API Gateway: the only way to the functions.
//!
//! It exists because of a limit of `cargo lambda watch` 1.9.2. Its queue for each function holds 100 requests, and a
//! request that finds the queue full waits while it holds a lock that every function needs to fetch its next one: a
//! deadlock of all routes. Invariant: no more than [`IN_FLIGHT`] requests with a waiting caller are in flight; the others
//! wait here, in order of arrival.
//!
//! A known gap: a request that is given up at its time limit stays in the queue of `watch`, uncounted, because it cannot be
//! distinguished from one whose function was killed. A hundred of those (the emulator frozen for a minute, with dozens of
//! callers that retry) block `watch` for good; then restart the stack.
//!
//! It also enforces the time limit and answers as API Gateway does: `watch` never answers a request whose function was
//! killed, and its own `--timeout` would end idle functions too.

use crate::error::{Context, Error, Result};
use crate::routes::Routes;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower_http::cors::CorsLayer;

/// Well below 100, more than any sensible number of processes can use.
const IN_FLIGHT: usize = 64;
/// API Gateway's own limit on a body.
const BODY_BYTES: usize = 10 * 1024 * 1024;

/// Headers that belong to one connection and not to the message.
pub const HOP_BY_HOP: [HeaderName; 6] = [
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
    permits: Arc<Semaphore>,
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
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context(|| "cannot make an HTTP client".into())?;
        Ok(Self { base, client, permits: Arc::new(Semaphore::new(IN_FLIGHT)) })
    }

    /// Calls a function with an event, as Lambda's Invoke does.
    ///
    /// # Errors
    /// The function failed, or did not answer.
    pub async fn invoke(&self, function: &str, event: &Value) -> std::result::Result<Value, InvokeError> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let answer = self.send(Method::POST, &path, HeaderMap::new(), event.to_string().into_bytes()).await?;
        if !answer.status.is_success() {
            return Err(InvokeError::Function(String::from_utf8_lossy(&answer.body).into_owned()));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| InvokeError::Function(format!("its answer is not JSON: {error}")))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> std::result::Result<Answer, InvokeError> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() {
                InvokeError::TimedOut
            } else {
                InvokeError::Unreachable(crate::error::chain(&error))
            }
        };
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|error| InvokeError::Unreachable(error.to_string()))?;
        let url = format!("{}{path}", self.base);
        let response = self.client.request(method, url).headers(headers).body(body).send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(failed)?.to_vec();
        Ok(Answer { status, headers, body })
    }
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
            .route("/2015-03-31/functions/{function}/invocations", post(forward))
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

/// An unknown route goes to the function behind the route `$default`, or is 404 without one. (`watch` would wait for a
/// default function of its own, which does not run; it calls a function by name at `/lambda-url`.)
async fn forward_known(front: State<Front>, request: Request) -> Response {
    let routes = &front.0.1;
    if routes.know(request.method().as_str(), request.uri().path()) {
        return forward(front, request).await;
    }
    let Some(function) = routes.otherwise() else {
        return message(StatusCode::NOT_FOUND, "Not Found");
    };
    let prefix = format!("/lambda-url/{function}");
    forward_to(&front.0.0, &prefix, request).await
}

async fn forward(State((upstream, _)): State<Front>, request: Request) -> Response {
    forward_to(&upstream, "", request).await
}

async fn forward_to(upstream: &Upstream, prefix: &str, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    };
    // `watch` itself answers 500 to JSON that is not UTF-8. In the cloud the body of an event is always text.
    let body = String::from_utf8_lossy(&body).into_owned().into_bytes();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    join_repeated(&mut parts.headers);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = format!("{prefix}{path}");
    match upstream.send(parts.method, &path, parts.headers, body).await {
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

/// An error of the gateway itself, as API Gateway would send it.
fn message(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json!({ "message": text }).to_string()).into_response()
}

/// A port of 127.0.0.1 that is free now, for servers that cannot be given port 0. It may be taken before it is used; they
/// then fail to start.
///
/// # Errors
/// No port is free.
pub fn free_port() -> Result<u16> {
    let probe = std::net::TcpListener::bind(("127.0.0.1", 0));
    let address = probe.and_then(|listener| listener.local_addr());
    let port = address.context(|| "cannot find a free port".into())?.port();
    if port == 0 { Err(Error::new("cannot find a free port")) } else { Ok(port) }
}

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
//! killed, and its own `--timeout` would end idle functions too. It gives tokens to whoever asks on this machine
//! (`POST /local/token`), in the place of a sign-in page. And it is as strict as API Gateway: what `watch` gets is
//! the path that the routes were asked about, the body as it was sent, and no header of the Lambda runtime.

use crate::error::{Context, Error, Result};
use crate::routes::Routes;
use crate::token::{Role, Signer, subject};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
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
        let body = event.to_string().into_bytes();
        let answer = self.send(Method::POST, &invocations(function), HeaderMap::new(), body).await?;
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

/// What the gateway serves.
pub struct Served {
    /// The API's routes.
    pub routes: Routes,
    /// The functions, by name: Invoke calls no other.
    pub functions: BTreeSet<String>,
    /// Which other origins' pages may call the API.
    pub cors: Option<CorsLayer>,
    /// Signs the tokens that it gives.
    pub signer: Signer,
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
    pub fn open(listener: TcpListener, upstream: Upstream, served: Served) -> Result<Self> {
        let address = listener.local_addr().context(|| "cannot tell the gateway's port".into())?;
        let Served { routes, functions, cors, signer } = served;
        let app = Router::new()
            .route("/local/token", post(give_token))
            .route("/2015-03-31/functions/{function}/invocations", post(invoke))
            .fallback(call)
            .with_state(Arc::new(Front { upstream, routes, functions, signer }));
        let app = match cors {
            Some(cors) => app.layer(cors),
            None => app,
        };
        let app = app.layer(middleware::from_fn(without_dot_segments));
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

struct Front {
    upstream: Upstream,
    routes: Routes,
    functions: BTreeSet<String>,
    signer: Signer,
}

/// Refuses a path with a dot segment, encoded or not, before anything else sees it. The HTTP client resolves dot segments
/// as a browser does, so that `watch` would get another path than the one that the routes were asked about.
async fn without_dot_segments(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // To the client, a backslash separates segments too.
    let is_dots = |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    // `OPTIONS *` has no path.
    if !path.starts_with('/') || path.split(['/', '\\']).any(is_dots) {
        return message(StatusCode::NOT_FOUND, "Not Found");
    }
    next.run(request).await
}

/// Calls the function of a route. An unknown route goes to the function behind the route `$default`, or is 404 without
/// one. (`watch` would wait for a default function of its own, which does not run; it calls a function by name at
/// `/lambda-url`.)
async fn call(State(front): State<Arc<Front>>, request: Request) -> Response {
    let uri = request.uri();
    // The client would make a backslash a slash.
    let path = uri.path().replace('\\', "%5C");
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let prefix = if front.routes.know(request.method().as_str(), uri.path()) {
        String::new()
    } else if let Some(function) = front.routes.otherwise() {
        format!("/lambda-url/{function}")
    } else {
        return message(StatusCode::NOT_FOUND, "Not Found");
    };
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return too_large();
    };
    if std::str::from_utf8(&body).is_err() {
        mark_as_binary(&mut parts.headers);
    }
    front.upstream.forward(parts.method, &format!("{prefix}{path}{query}"), parts.headers, body.into()).await
}

/// Lambda's Invoke, for programs on this machine. An event may carry the claims of a caller, so whoever can send one can
/// be anybody; AWS asks for credentials here. A web page cannot send one: the browser adds the page's origin to a POST
/// and, if it is the page's own host name that resolves to this machine, that name as the host.
async fn invoke(State(front): State<Arc<Front>>, Path(function): Path<String>, request: Request) -> Response {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) || !is_for_this_machine(headers) {
        return message(StatusCode::FORBIDDEN, "Forbidden");
    }
    // `watch` would wait for a function of any binary's name, and its queue would fill up.
    if !front.functions.contains(&function) {
        return message(StatusCode::NOT_FOUND, &format!("Function not found: {function}"));
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES).await else {
        return too_large();
    };
    if std::str::from_utf8(&body).is_err() {
        return message(StatusCode::BAD_REQUEST, "Could not parse request body into json: it is not UTF-8");
    }
    front.upstream.forward(parts.method, &invocations(&function), parts.headers, body.into()).await
}

/// Whom a token is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    role: Role,
    /// The role's name, unless it is given.
    sub: Option<String>,
}

/// Gives a token to a program on this machine, or to the API's own page: another page may not even read the answer, but
/// the browser may have been told that its host name is this machine.
async fn give_token(State(front): State<Arc<Front>>, request: Request) -> Response {
    if !is_for_this_machine(request.headers()) || is_of_another_page(request.headers()) {
        return message(StatusCode::FORBIDDEN, "Forbidden");
    }
    let Ok(body) = to_bytes(request.into_body(), BODY_BYTES).await else {
        return too_large();
    };
    let token = serde_json::from_slice(&body).context(|| "the body is not a role and a sub".into());
    let token = token.and_then(|Wanted { role, sub }| {
        let sub = sub.map_or_else(|| Ok(role.name().to_owned()), |sub| subject(&sub))?;
        front.signer.token(&sub, role)
    });
    match token {
        Ok(token) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, json!({ "token": token }).to_string()).into_response()
        }
        Err(why) => message(StatusCode::BAD_REQUEST, &why.to_string()),
    }
}

/// Where a function is invoked.
fn invocations(function: &str) -> String {
    format!("/2015-03-31/functions/{function}/invocations")
}

/// Whether the request was sent to a name of this machine that no name server can give to another one.
fn is_for_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    host.is_some_and(|host| matches!(host.host().to_ascii_lowercase().as_str(), "127.0.0.1" | "localhost" | "[::1]"))
}

/// Whether a page of another origin sent the request. A browser adds the page's origin to every POST.
fn is_of_another_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    headers.contains_key(header::ORIGIN) && text(header::ORIGIN).strip_prefix("http://") != Some(text(header::HOST))
}

impl Upstream {
    /// Passes a request on, without the headers that are not the caller's to set, and its answer back.
    async fn forward(&self, method: Method, path: &str, mut headers: HeaderMap, body: Vec<u8>) -> Response {
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
        strip_runtime_headers(&mut headers);
        join_repeated(&mut headers);
        match self.send(method, path, headers, body).await {
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
}

/// `watch` takes the Lambda runtime's own headers from the request and hands them to the function, where one that cannot
/// be read ends the process.
fn strip_runtime_headers(headers: &mut HeaderMap) {
    let is_reserved = |name: &&HeaderName| name.as_str().starts_with("lambda-runtime-");
    let reserved: Vec<HeaderName> = headers.keys().filter(is_reserved).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// API Gateway hands a body that is not text over in Base64. `watch` decides by the media type alone: it takes `text/..`,
/// `application/json` and no type at all for text, and then answers 500 if the body is not UTF-8. Types are the same in
/// capitals, but not to `watch`: in capitals it hands the body over in Base64.
fn mark_as_binary(headers: &mut HeaderMap) {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b"application/octet-stream"[..], HeaderValue::as_bytes);
    let mut kind = kind.to_vec();
    // Its parameters may depend on case.
    let end = kind.iter().position(|&byte| byte == b';').unwrap_or(kind.len());
    kind[..end].make_ascii_uppercase();
    if let Ok(kind) = HeaderValue::from_bytes(&kind) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
}

/// API Gateway hands a header that came more than once over as one, with commas between (payload format 2.0). `watch`
/// would drop all but one.
fn join_repeated(headers: &mut HeaderMap) {
    let repeated: Vec<HeaderName> =
        headers.keys().filter(|&name| headers.get_all(name).iter().count() > 1).cloned().collect();
    for name in repeated {
        let values: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

fn too_large() -> Response {
    message(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large")
}

/// An error of the gateway itself, as API Gateway would send it.
fn message(status: StatusCode, text: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], json!({ "message": text }).to_string()).into_response()
}

/// A port of 127.0.0.1 that is free now, for servers that cannot be given port 0. It is none of those that Linux and macOS give
/// to connections and to whoever asks for any port, so that it is not taken before it is used, or while its server is
/// restarted.
///
/// # Errors
/// No port is free.
pub fn free_port() -> Result<u16> {
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let free = std::iter::repeat_with(|| fastrand::u16(20_000..32_000)).take(1_000).find(is_free);
    free.ok_or_else(|| Error::new("cannot find a free port"))
}

#[cfg(test)]
mod tests;

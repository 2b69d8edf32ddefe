//! The layers around every router: the request's id, one log line per request and its metrics, rendered problems.
//!
//! Invariant: even if a handler panics or hangs, the caller gets a response in the API's format and the environment can
//! serve the next request.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::HttpBody as _;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use futures_util::FutureExt as _;
use holdfast_aws::{log, metrics};
use holdfast_domain::RequestIds;
use holdfast_store::measure;
use lambda_http::{Context, request::RequestContext};
use tracing::{Instrument as _, field};

use crate::budgets::ANSWER_BUDGET;
use crate::{Authenticator, MAX_BODY_BYTES, Problem};

/// Adds the layers to `router`, and problems for unknown paths and methods.
pub fn serve(router: Router, authenticator: Authenticator) -> Router {
    router
        .fallback(async || Problem::route_not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(from_fn(answer))
        // Outermost, so that every extractor finds it.
        .layer(Extension(authenticator))
}

/// What a request came to, in one word for the log: `reserved`, `replayed`. As an extension of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub &'static str);

/// Logs each request once, renders its problem, and names the request in the response.
async fn answer(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = request_id(request.extensions());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let operation = operation(&request);
    let function = log::function();
    let trace_id = trace_id(request.extensions());
    let span =
        tracing::info_span!("request", function, request_id, trace_id, %method, path, reservation_id = field::Empty);
    let answered = async move {
        let read_only = method.is_safe();
        let mut response = run(request, next).await;
        let problem = response.extensions_mut().remove::<Problem>();
        // axum itself refuses an id in the path that is not UTF-8.
        let problem = problem.or_else(|| response.status().is_client_error().then(Problem::route_not_found));
        let duration_ms = log::millis(started.elapsed());
        measure::note_by(measure::LATENCY, &operation, duration_ms);
        let mut response = match problem {
            None => {
                let status = response.status().as_u16();
                let default = Outcome(if read_only { "read" } else { "done" });
                let Outcome(outcome) = response.extensions().get().copied().unwrap_or(default);
                count(outcome, "");
                tracing::info!(status, outcome, duration_ms, "answered");
                response
            }
            Some(problem) => {
                log_problem(&problem, duration_ms);
                let allow = response.headers_mut().remove(header::ALLOW);
                let mut rendered = problem.render(&request_id);
                if let Some(allow) = allow {
                    rendered.headers_mut().insert(header::ALLOW, allow);
                }
                rendered
            }
        };
        if let Ok(id) = HeaderValue::try_from(request_id) {
            response.headers_mut().insert("x-request-id", id);
        }
        response
    };
    metrics::measured(answered).instrument(span).await
}

/// Counts the outcome, where there is a metric of it.
fn count(outcome: &str, code: &str) {
    if let Some(metric) = measure::of_outcome(outcome) {
        measure::note_by(metric, code, 1);
    }
}

fn log_problem(problem: &Problem, duration_ms: u64) {
    let (status, code) = (problem.code.status, problem.code.code);
    let field = problem.members.get("field").and_then(serde_json::Value::as_str);
    let failed = problem.internal_message.as_ref().filter(|_| status.is_server_error());
    let outcome = if failed.is_some() { "failed" } else { "refused" };
    count(outcome, code);
    let status = status.as_u16();
    match failed {
        Some(internal_message) => {
            tracing::error!(status, outcome, code, internal_message, duration_ms, "answered");
        }
        None => tracing::info!(status, outcome, code, field, duration_ms, "answered"),
    }
}

/// The handler's response, or a problem if it panics or hangs.
async fn run(request: Request, next: Next) -> Response {
    // Checked here, so that the limit applies on every route, even if the handler ignores the body.
    if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Problem::too_large().into_response();
    }
    // Unwind safe: shared state is behind locks and only ever replaced as a whole.
    let handler = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(ANSWER_BUDGET, handler).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => Problem::internal(format!("panicked: {}", panic_message(&*panic))).into_response(),
        Err(_) => Problem::unavailable("the handler did not finish in time").into_response(),
    }
}

/// The message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The route as API Gateway names it. There is a fixed number of them, whatever callers send.
fn operation(request: &Request) -> String {
    let gateway = request.extensions().get::<RequestContext>().and_then(|context| match context {
        RequestContext::ApiGatewayV2(context) => context.route_key.clone(),
        _ => None,
    });
    gateway.unwrap_or_else(|| "$default".to_owned())
}

/// Extracts how the logs name the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named(pub RequestIds);

impl<S: Sync> FromRequestParts<S> for Named {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let trace_id = trace_id(&parts.extensions).map(str::to_owned);
        Ok(Self(RequestIds { request_id: request_id(&parts.extensions), trace_id }))
    }
}

/// The id of the request's trace, if Lambda names one.
fn trace_id(extensions: &Extensions) -> Option<&str> {
    log::trace_id(extensions.get::<Context>()?.xray_trace_id.as_deref())
}

/// API Gateway's request id, or Lambda's if there is no gateway.
pub(crate) fn request_id(extensions: &Extensions) -> String {
    let gateway = extensions.get::<RequestContext>().and_then(|context| match context {
        RequestContext::ApiGatewayV2(context) => context.request_id.clone(),
        _ => None,
    });
    let lambda = || extensions.get::<Context>().map(|context| context.request_id.clone());
    gateway.or_else(lambda).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::routing::{get, post};
    use lambda_http::Service;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn router() -> Router {
        let routes = Router::new()
            .route("/fine", get(async || "fine"))
            .route("/panics", get(async || -> String { panic!("the table is called {}", "secrets") }))
            .route("/hangs", get(async || std::future::pending::<String>().await))
            .route("/reads-nothing", post(async || "done"));
        serve(routes, Authenticator::default())
    }

    async fn ask(router: &mut Router, request: axum::http::request::Builder, body: String) -> (Response<()>, Value) {
        let mut context = Context::default();
        "the-request".clone_into(&mut context.request_id);
        let request = request.extension(context).body(Body::from(body)).unwrap();
        let (parts, body) = router.call(request).await.unwrap().into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (Response::from_parts(parts, ()), serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Checks that it is this problem, with all common members.
    fn is_problem((response, body): &(Response<()>, Value), status: u16, code: &str) {
        assert_eq!((response.status().as_u16(), &body["code"]), (status, &json!(code)), "{body}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!((&body["status"], &body["request_id"]), (&json!(status), &json!("the-request")));
        assert_eq!(response.headers()["x-request-id"], "the-request");
        assert_eq!(body["type"], format!("urn:holdfast:problem:{code}"));
    }

    fn to(method: &str, path: &str) -> axum::http::request::Builder {
        axum::http::Request::builder().method(method).uri(path)
    }

    #[tokio::test]
    async fn a_panic_is_a_500_without_its_message_and_the_next_request_is_served() {
        let mut router = router();
        for _ in 0..2 {
            let answer = ask(&mut router, to("GET", "/panics"), String::new()).await;
            is_problem(&answer, 500, "internal_error");
            assert!(!answer.1.to_string().contains("secrets"), "{}", answer.1);
        }
        assert_eq!(ask(&mut router, to("GET", "/fine"), String::new()).await.0.status(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_hangs_is_a_503_before_the_lambda_timeout() {
        let started = tokio::time::Instant::now();
        let answer = ask(&mut router(), to("GET", "/hangs"), String::new()).await;
        is_problem(&answer, 503, "unavailable");
        assert_eq!(answer.0.headers()[header::RETRY_AFTER], "1");
        assert_eq!(answer.1["retry_after_seconds"], 1);
        assert!(started.elapsed() < Duration::from_secs(10), "template.yaml's Timeout: {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_even_if_the_handler_ignores_it() {
        let longest = "x".repeat(MAX_BODY_BYTES);
        let mut router = router();
        assert_eq!(ask(&mut router, to("POST", "/reads-nothing"), longest.clone()).await.0.status(), 200);
        let answer = ask(&mut router, to("POST", "/reads-nothing"), longest + "x").await;
        is_problem(&answer, 413, "payload_too_large");
    }

    #[tokio::test]
    async fn an_unknown_path_is_404_and_an_unsupported_method_405_with_allow() {
        let mut router = router();
        is_problem(&ask(&mut router, to("GET", "/nowhere"), String::new()).await, 404, "route_not_found");
        let answer = ask(&mut router, to("DELETE", "/fine"), String::new()).await;
        is_problem(&answer, 405, "method_not_allowed");
        assert_eq!(answer.0.headers()[header::ALLOW], "GET,HEAD");
    }
}

//! What surrounds every router: the request's id, one log line a request, and problems in full.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use lambda_http::{Context, request::RequestContext};
use tracing::{Instrument, Span, field};

use crate::{Authenticator, Problem};

/// `router` with everything around it. Unknown paths and methods are problems too.
pub fn serve(router: Router, authenticator: Authenticator) -> Router {
    let not_found = async || route_not_found();
    let method = async || {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not answer to this method")
    };
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method)
        .layer(from_fn(answer))
        // Outermost, so that every extractor finds it.
        .layer(Extension(authenticator))
}

fn route_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "route_not_found", "there is nothing at this path")
}

/// Writes the reservation's id into every log line of this request from here on.
pub fn about_reservation(id: &impl std::fmt::Display) {
    Span::current().record("reservation_id", field::display(id));
}

/// Logs each request once, where it is answered, and renders its problem.
async fn answer(request: Request, next: Next) -> Response {
    let request_id = request_id(&request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("request", request_id, %method, path, reservation_id = field::Empty);
    async move {
        let mut response = next.run(request).await;
        let problem = response.extensions_mut().remove::<Problem>();
        // The one refusal that is not ours: axum's own, of an id in the path that is not UTF-8.
        let problem = problem.or_else(|| response.status().is_client_error().then(route_not_found));
        let Some(problem) = problem else {
            tracing::info!(status = response.status().as_u16(), "answered");
            return response;
        };
        let status = problem.status.as_u16();
        match (&problem.inside, problem.status.is_server_error()) {
            (Some(inside), true) => tracing::error!(status, code = problem.code, inside, "failed"),
            _ => tracing::info!(status, code = problem.code, "refused"),
        }
        let headers = std::mem::take(response.headers_mut());
        let mut rendered = problem.render(&request_id);
        for (name, value) in headers.iter().filter(|(name, _)| *name == axum::http::header::ALLOW) {
            rendered.headers_mut().insert(name, value.clone());
        }
        rendered
    }
    .instrument(span)
    .await
}

/// API Gateway's id of the request, or Lambda's where there is no gateway.
fn request_id(request: &Request) -> String {
    let gateway = request.extensions().get::<RequestContext>().and_then(|context| match context {
        RequestContext::ApiGatewayV2(context) => context.request_id.clone(),
        _ => None,
    });
    let lambda = || request.extensions().get::<Context>().map(|context| context.request_id.clone());
    gateway.or_else(lambda).unwrap_or_default()
}

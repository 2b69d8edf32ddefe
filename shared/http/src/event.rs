//! From an event of API Gateway's to a request, and back.

use axum::Router;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Error, LambdaEvent, Service as _};
use serde::Serialize;

/// The answer of `router` to an event.
///
/// # Errors
/// An event that API Gateway does not send.
pub async fn handle(
    router: Router,
    event: LambdaEvent<ApiGatewayV2httpRequest>,
) -> Result<impl Serialize + use<>, Error> {
    let LambdaEvent { payload, context } = event;
    let request = LambdaEvent::new(LambdaRequest::ApiGatewayV2(payload), context);
    Ok(Adapter::from(router).call(request).await?)
}

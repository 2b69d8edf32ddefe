//! Requests and events, sent to the functions as Lambda calls them.

use axum::Router;
use holdfast_http::handle;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_runtime::{Context, LambdaEvent};
use serde_json::Value;

use crate::answers::check;
use crate::request::request;
use crate::shop::{Shop, in_shop};

/// The maximum length of path and query: API Gateway accepts no more, including all headers.
const LONGEST: usize = 10_240;

/// A request to the function that its path belongs to, and to `catalog`, which answers unknown routes. The input is a
/// text as `src/request.rs` describes it.
pub fn requests(input: &[u8]) {
    let request = request(input);
    if request.target > LONGEST {
        return;
    }
    let mut segments = request.path.split('/').skip(1);
    let (first, last) = (segments.next().unwrap_or_default(), segments.last());
    in_shop(async |shop| {
        ask(shop, &shop.catalog, &request.event).await.expect("an answer");
        let answer = match (first, last) {
            ("admin", _) => ask(shop, &shop.admin, &request.event).await,
            ("reservations", Some("confirm")) => ask_confirm(shop, &request.event).await,
            ("reservations" | "orders", _) => ask(shop, &shop.reserve, &request.event).await,
            _ => return,
        };
        answer.expect("an answer");
    });
}

/// Any JSON as the event of every function: an event that a function does not know is an error, or an answer, and never
/// a crash.
pub fn events(input: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Value>(input) else { return };
    in_shop(async |shop| {
        for router in [&shop.catalog, &shop.reserve, &shop.admin] {
            // The function has to find out whether it is an event of API Gateway.
            _ = ask(shop, router, &event).await;
        }
        _ = ask_confirm(shop, &event).await;
        let released = expire::handle(&shop.expire, &event).await.expect("whatever the event says, the clock decides");
        assert!(released.complete, "{released:?}");
    });
}

/// A function's answer to an event, checked; an error if it does not accept the event.
pub(crate) async fn ask(shop: &Shop, router: &Router, event: &Value) -> Result<Value, lambda_runtime::Error> {
    let event: ApiGatewayV2httpRequest = serde_json::from_value(event.clone())?;
    let answer = handle(router.clone(), LambdaEvent::new(event, Context::default())).await?;
    let answer = serde_json::to_value(answer)?;
    check(&answer, &shop.calls());
    Ok(answer)
}

async fn ask_confirm(shop: &Shop, event: &Value) -> Result<Value, lambda_runtime::Error> {
    let (app, router) = &shop.confirm;
    let answer = confirm::handle(app, router.clone(), LambdaEvent::new(event.clone(), Context::default())).await?;
    let calls = shop.calls();
    match answer.get("batchItemFailures") {
        Some(failures) => assert!(failures.is_array(), "{answer}"),
        None => check(&answer, &calls),
    }
    Ok(answer)
}

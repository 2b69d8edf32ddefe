//! Requests and events, at the functions as Lambda calls them.

use axum::Router;
use holdfast_http::handle;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_runtime::{Context, LambdaEvent};
use serde_json::Value;

use crate::answers::check;
use crate::request::request;
use crate::shop::{Shop, in_shop};

/// The longest path and query: API Gateway takes no more, and all headers are counted in.
const LONGEST: usize = 10_240;

/// A request to the function that its path belongs to, and to `catalog`, which gets what no route knows. The input is a
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

/// Any text as the event of every function: what is none of theirs is an error, or an answer, and never a crash.
pub fn events(input: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Value>(input) else { return };
    in_shop(async |shop| {
        for router in [&shop.catalog, &shop.reserve, &shop.admin] {
            // Whether it is one of API Gateway's, the function has to find out.
            _ = ask(shop, router, &event).await;
        }
        _ = ask_confirm(shop, &event).await;
        let released = expire::handle(&shop.expire, &event).await.expect("whatever the event says, the clock decides");
        assert!(released.complete, "{released:?}");
    });
}

/// A function's answer to an event, checked; or that it takes no such event.
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

//! The server of a run, a process of its own: the real routers of catalog, reserve and confirm, each wired as its `main.rs`
//! does, behind one HTTP/1.1 server in the place of API Gateway.
//!
//! What Lambda adds is not measured: its runtime API, the event's JSON, and TLS to AWS.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::response::Response;
use holdfast_aws::config::{Environment, customers_confirm, rate_limit, table_name};
use holdfast_aws::{clock, log, metrics};
use holdfast_http::{Authenticator, Limiter, limited, serve};
use holdfast_store::Store;
use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED, TABLE};
use lambda_http::Service as _;
use lambda_http::aws_lambda_events::apigw::{
    ApiGatewayRequestAuthorizer, ApiGatewayRequestAuthorizerJwtDescription, ApiGatewayV2httpRequestContext,
};
use lambda_http::request::RequestContext;
use serde_json::json;

use crate::Result;
use crate::process::announce;

/// How often overdue holds are released, if they are. Scheduler calls at the end of each slot of 10 s.
const SWEEP: Duration = Duration::from_secs(1);
/// The roles' claim of Cognito.
const GROUPS: &str = "cognito:groups";

/// The functions' variables, with the defaults of template.yaml, but for the address of AWS.
pub(crate) const VARIABLES: &[(&str, &str)] = &[
    ("AWS_ACCESS_KEY_ID", "bench"),
    ("AWS_SECRET_ACCESS_KEY", "bench"),
    ("AWS_SESSION_TOKEN", ""),
    ("AWS_REGION", "us-east-1"),
    ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
    ("AWS_LAMBDA_LOG_LEVEL", "INFO"),
    ("STACK_NAME", "bench"),
    ("TABLE_NAME", TABLE),
    ("SCHEDULE_GROUP", "holds"),
    ("SCHEDULE_ROLE_ARN", "arn:aws:iam::000000000000:role/schedule"),
    ("SCHEDULE_DLQ_ARN", "arn:aws:sqs:us-east-1:000000000000:schedule-failures"),
    ("EXPIRE_FUNCTION_ARN", "arn:aws:lambda:us-east-1:000000000000:function:expire:live"),
    ("EXPIRY_SLOT_SECONDS", "10"),
    ("TABLE_LAYOUT", "2"),
    ("CONFIRMATIONS_QUEUE_URL", CONFIRMATIONS),
    ("FAILED_CONFIRMATIONS_QUEUE_URL", FAILED),
    ("ROLES_CLAIM", GROUPS),
    ("RATE_LIMIT_PER_SECOND", "0"),
    ("RATE_LIMIT_BURST", "20"),
    ("CONFIRMED_BY", "service"),
];

struct Functions {
    catalog: Router,
    reserve: Router,
    confirm: Router,
    /// Requests so far: their ids.
    requests: AtomicU64,
}

/// Serves until this process ends; with `sweeps`, it also calls `expire` every second.
///
/// # Errors
/// A variable is missing, or there is no port.
pub(crate) async fn run(sweeps: bool) -> Result<()> {
    log::init();
    metrics::init()?;
    let (environment, table) = (Environment::read()?, table_name()?);
    let store = || Store::new(environment.dynamodb(), table.as_str(), clock::system());
    let limiter = || Ok::<_, crate::Error>(rate_limit()?.map(|limit| Limiter::new(store(), clock::system(), limit)));
    let authenticator = || Authenticator::from_environment();
    let reserve = reserve::App { store: store(), schedules: environment.schedules()?, clock: clock::system() };
    let confirm = confirm::App {
        store: store(),
        queues: environment.queues()?,
        clock: clock::system(),
        customers_confirm: customers_confirm()?,
    };
    let catalog = catalog::App { store: store(), clock: clock::system() };
    let functions = Functions {
        catalog: serve(catalog::router(catalog), Authenticator::default()),
        reserve: serve(limited(reserve::router(reserve), limiter()?), authenticator()?),
        confirm: serve(limited(confirm::router(Arc::new(confirm)), limiter()?), authenticator()?),
        requests: AtomicU64::default(),
    };
    let expire = expire::App {
        store: store(),
        failed: environment.failed_queue()?,
        clock: clock::system(),
        moves_products: false,
    };
    let gateway = Router::new().fallback(answer).with_state(Arc::new(functions));
    let served = axum::serve(announce().await?, gateway).into_future();
    tokio::select! {
        served = served => served?,
        () = sweep(&expire), if sweeps => {}
    }
    Ok(())
}

/// What Scheduler and the recurring schedule do.
async fn sweep(app: &expire::App) {
    let mut every = tokio::time::interval(SWEEP);
    loop {
        every.tick().await;
        if let Err(error) = expire::handle(app, &json!({ "kind": "sweep" })).await {
            eprintln!("the sweep failed: {error}");
        }
    }
}

/// Calls the function of the route with the context that API Gateway would give it.
async fn answer(State(functions): State<Arc<Functions>>, mut request: Request) -> Response {
    let number = functions.requests.fetch_add(1, Ordering::Relaxed);
    let (route, router) = route(&functions, request.method(), request.uri().path());
    let mut context = ApiGatewayV2httpRequestContext::default();
    context.route_key = Some(route);
    context.request_id = Some(format!("bench-{number}"));
    context.authorizer = request.headers().get(header::AUTHORIZATION).and_then(|value| claims(value.to_str().ok()?));
    request.extensions_mut().insert(RequestContext::ApiGatewayV2(context));
    let mut router = router.clone();
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The key of the route, as in template.yaml, and its function.
fn route<'a>(functions: &'a Functions, method: &Method, path: &str) -> (String, &'a Router) {
    let mut segments = path.split('/').skip(1);
    match (segments.next().unwrap_or_default(), segments.next(), segments.next()) {
        ("reservations", None, _) => (format!("{method} /reservations"), &functions.reserve),
        ("reservations", Some(_), Some("confirm")) => {
            (format!("{method} /reservations/{{reservation_id}}/confirm"), &functions.confirm)
        }
        ("reservations", Some(_), _) => (format!("{method} /reservations/{{reservation_id}}"), &functions.reserve),
        ("products", None, _) => (format!("{method} /products"), &functions.catalog),
        ("products", Some(_), _) => (format!("{method} /products/{{product_id}}"), &functions.catalog),
        _ => ("$default".to_owned(), &functions.catalog),
    }
}

/// The claims of a token that the authorizer has verified. API Gateway does that, not a function, so here a token is plain
/// text: the caller, then the roles.
fn claims(authorization: &str) -> Option<ApiGatewayRequestAuthorizer> {
    let token = authorization.strip_prefix("Bearer ")?;
    let (sub, roles) = token.split_once(' ').unwrap_or((token, ""));
    let mut claims = HashMap::from([("sub".to_owned(), sub.to_owned())]);
    if !roles.is_empty() {
        claims.insert(GROUPS.to_owned(), format!("[{roles}]"));
    }
    let mut jwt = ApiGatewayRequestAuthorizerJwtDescription::default();
    jwt.claims = claims;
    let mut authorizer = ApiGatewayRequestAuthorizer::default();
    authorizer.jwt = Some(jwt);
    Some(authorizer)
}

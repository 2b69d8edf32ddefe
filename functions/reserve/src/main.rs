//! Wires the function `reserve`.

use holdfast_aws::config::{Environment, rate_limit, table_layout, table_name};
use holdfast_aws::{clock, connections, log, metrics};
use holdfast_http::{Authenticator, Limiter, handle, limited, serve};
use holdfast_store::Store;
use lambda_http::lambda_runtime::run_concurrent;
use lambda_http::{Error, service_fn};
use reserve::{App, router};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::init();
    metrics::init()?;
    let (environment, table) = (Environment::read()?, table_name()?);
    let store = || Store::new(environment.dynamodb(), table.as_str(), clock::system());
    let limiter = rate_limit()?.map(|limit| Limiter::new(store(), clock::system(), limit));
    let app = App {
        store: store().with_layout(table_layout()?),
        schedules: environment.schedules()?,
        clock: clock::system(),
    };
    connections::open(&app.store, Some(&app.schedules)).await;
    let router = limited(router(app), limiter);
    let router = serve(router, Authenticator::from_environment()?);
    // Where Lambda sends several requests at once, they share transactions. Plain Lambda sends one.
    run_concurrent(service_fn(move |event| handle(router.clone(), event))).await
}

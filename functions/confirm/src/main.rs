//! Wires the function `confirm`.

use std::sync::Arc;

use confirm::{App, handle, router};
use holdfast_aws::config::{Environment, customers_confirm, rate_limit, table_name};
use holdfast_aws::{clock, connections, log, metrics};
use holdfast_http::{Authenticator, Limiter, limited, serve};
use holdfast_store::Store;
use lambda_runtime::{Error, run, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::init();
    metrics::init()?;
    let (environment, table) = (Environment::read()?, table_name()?);
    let store = || Store::new(environment.dynamodb(), table.as_str(), clock::system());
    let limiter = rate_limit()?.map(|limit| Limiter::new(store(), clock::system(), limit));
    let app = Arc::new(App {
        store: store(),
        queues: environment.queues()?,
        clock: clock::system(),
        customers_confirm: customers_confirm()?,
    });
    connections::open(&app.store, None).await;
    let router = limited(router(app.clone()), limiter);
    let router = serve(router, Authenticator::from_environment()?);
    run(service_fn(|event| handle(&app, router.clone(), event))).await
}

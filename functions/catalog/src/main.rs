//! Wires the function `catalog`.

use catalog::{App, router};
use holdfast_aws::config::{Environment, table_name};
use holdfast_aws::{clock, connections, log, metrics};
use holdfast_http::{Authenticator, handle, serve};
use holdfast_store::Store;
use lambda_http::lambda_runtime::run;
use lambda_http::{Error, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::init();
    metrics::init()?;
    let environment = Environment::read()?;
    let store = Store::new(environment.dynamodb(), table_name()?, clock::system());
    let app = App { store, clock: clock::system() };
    connections::open(&app.store, None).await;
    let router = serve(router(app), Authenticator::default());
    run(service_fn(|event| handle(router.clone(), event))).await
}

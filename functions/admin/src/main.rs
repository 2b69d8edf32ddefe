//! Wires the function `admin`.

use admin::console::{self, ConsoleConfig};
use admin::{App, router};
use holdfast_aws::config::{Environment, default_max_per_customer, table_layout, table_name};
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
    let app = App {
        store: Store::new(environment.dynamodb(), table_name()?, clock::system()).with_layout(table_layout()?),
        queues: environment.queues()?,
        clock: clock::system(),
        default_max_per_customer: default_max_per_customer()?,
    };
    connections::open(&app.store, None).await;
    let console = console::router(&ConsoleConfig::from_environment()?);
    let router = serve(router(app).merge(console), Authenticator::from_environment()?);
    run(service_fn(|event| handle(router.clone(), event))).await
}

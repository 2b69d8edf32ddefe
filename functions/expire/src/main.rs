//! Wires the function `expire`.

use expire::{App, handle};
use holdfast_aws::clock;
use holdfast_aws::config::{Environment, table_name};
use holdfast_store::Store;
use lambda_runtime::{Error, LambdaEvent, run, service_fn, tracing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::read()?;
    let app = App {
        store: Store::new(environment.dynamodb(), table_name()?, clock::system()),
        failed: environment.failed_queue()?,
        clock: clock::system(),
    };
    run(service_fn(async |event: LambdaEvent<_>| Ok::<_, Error>(handle(&app, &event.payload).await?))).await
}

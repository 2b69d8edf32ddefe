//! Wires the function `expire`.

use expire::{App, handle};
use holdfast_aws::config::{Environment, moves_products, table_name};
use holdfast_aws::{clock, log, metrics};
use holdfast_store::Store;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use tracing::Instrument as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::init();
    metrics::init()?;
    let environment = Environment::read()?;
    let app = App {
        store: Store::new(environment.dynamodb(), table_name()?, clock::system()),
        moves_products: moves_products()?,
        failed: environment.failed_queue()?,
        clock: clock::system(),
    };
    run(service_fn(async |event: LambdaEvent<_>| {
        let span = log::event(&event.context.request_id, event.context.xray_trace_id.as_deref());
        Ok::<_, Error>(handle(&app, &event.payload).instrument(span).await?)
    }))
    .await
}

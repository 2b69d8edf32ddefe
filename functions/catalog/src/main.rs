//! Wires the function `catalog`.

use catalog::{App, router};
use holdfast_aws::config::{Environment, table_name};
use holdfast_http::{Authenticator, serve};
use holdfast_store::Store;
use lambda_http::{Error, run, tracing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let environment = Environment::read()?;
    let app = App { store: Store::new(environment.dynamodb(), table_name()?) };
    run(serve(router(app), Authenticator::default())).await
}

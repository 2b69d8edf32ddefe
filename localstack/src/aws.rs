//! The AWS clients of the local stack: one endpoint for all services, credentials that mean nothing.

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region, SharedHttpClient};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

/// The credentials of every emulator. Not a secret: nothing is behind them.
pub const CREDENTIAL: &str = "test";

/// Clients for one endpoint.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The endpoint.
    pub endpoint_url: String,
    /// The region.
    pub region: String,
    /// DynamoDB.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// SQS.
    pub sqs: aws_sdk_sqs::Client,
    /// EventBridge Scheduler.
    pub scheduler: aws_sdk_scheduler::Client,
}

impl Clients {
    /// Clients for `endpoint_url`, in the region that `AWS_REGION` names or, as emulators assume, us-east-1.
    #[expect(clippy::disallowed_methods, reason = "the ban keeps functions to one reader; this is a developer's tool")]
    pub fn new(endpoint_url: &str) -> Self {
        let region = std::env::var("AWS_REGION").ok().filter(|region| !region.is_empty());
        Self::in_region(endpoint_url, region.unwrap_or_else(|| "us-east-1".to_owned()))
    }

    /// Clients for `endpoint_url` in `region`.
    pub fn in_region(endpoint_url: &str, region: String) -> Self {
        let http: SharedHttpClient =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        macro_rules! client {
            ($sdk:ident) => {
                $sdk::Client::from_conf(
                    $sdk::Config::builder()
                        .behavior_version(BehaviorVersion::latest())
                        .endpoint_url(endpoint_url)
                        .region(Region::new(region.clone()))
                        .credentials_provider(Credentials::new(CREDENTIAL, CREDENTIAL, None, None, "local"))
                        .http_client(http.clone())
                        .build(),
                )
            };
        }
        Self {
            endpoint_url: endpoint_url.to_owned(),
            dynamodb: client!(aws_sdk_dynamodb),
            sqs: client!(aws_sdk_sqs),
            scheduler: client!(aws_sdk_scheduler),
            region,
        }
    }
}

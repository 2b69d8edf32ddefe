//! The only place that reads environment variables, and the AWS clients that are configured by them.
//!
//! A function reads only the variables that it needs, so that `template.yaml` gives each function only what it uses. If
//! a variable is missing or malformed the start fails, with its name.

use std::time::Duration;

use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region, SharedHttpClient};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use holdfast_domain::RateLimit;
use holdfast_store::Layout;

use crate::metrics::Calls;
use crate::queues::{FailedQueue, Queues};
use crate::schedules::{Schedules, Target};

/// How long one try of a call may take. DynamoDB answers in milliseconds; a call that hangs must leave time for another
/// one within the request.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The tries of one call. What fails after these is retried by the caller, or goes to a queue.
const MAX_ATTEMPTS: u32 = 3;
/// The first backoff. The SDK's default is a second after a throttle: longer than most requests last.
const INITIAL_BACKOFF: Duration = Duration::from_millis(50);

/// A variable that is missing or malformed.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {name}: {problem}")]
pub struct ConfigError {
    /// The variable.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// A client of one SDK: each has its own builder type, with the same methods.
macro_rules! client {
    ($(#[$doc:meta])* $name:ident, $sdk:ident) => {
        $(#[$doc])*
        pub fn $name(&self) -> $sdk::Client {
            let mut config = $sdk::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(self.region.clone())
                .credentials_provider(self.credentials.clone())
                .http_client(self.http.clone())
                .interceptor(Calls)
                .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS).with_initial_backoff(INITIAL_BACKOFF))
                .timeout_config(TimeoutConfig::builder().connect_timeout(ATTEMPT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build());
            config.set_endpoint_url(self.endpoint_url.clone());
            $sdk::Client::from_conf(config.build())
        }
    };
}

/// What all clients share: region, credentials, endpoint, connections.
#[derive(Debug, Clone)]
pub struct Environment {
    region: Region,
    credentials: Credentials,
    endpoint_url: Option<String>,
    http: SharedHttpClient,
}

impl Environment {
    /// Reads the variables that Lambda sets, and `AWS_ENDPOINT_URL`, which names an emulator in place of AWS.
    ///
    /// # Errors
    /// [`ConfigError`] for a variable that is missing or malformed.
    pub fn read() -> Result<Self, ConfigError> {
        let credentials = Credentials::new(
            required("AWS_ACCESS_KEY_ID")?,
            required("AWS_SECRET_ACCESS_KEY")?,
            optional("AWS_SESSION_TOKEN"),
            None,
            "environment",
        );
        Ok(Self {
            region: Region::new(required("AWS_REGION")?),
            credentials,
            endpoint_url: optional("AWS_ENDPOINT_URL"),
            http: https_client(),
        })
    }

    /// The environment of an emulator: for tools and tests, which do not run in Lambda.
    pub fn of_emulator(region: &str, endpoint_url: &str) -> Self {
        Self {
            region: Region::new(region.to_owned()),
            credentials: Credentials::new("test", "test", None, None, "emulator"),
            endpoint_url: Some(endpoint_url.to_owned()),
            http: https_client(),
        }
    }

    /// The same, with all calls sent through `http`: for tests that inject faults.
    #[must_use]
    pub fn with_http_client(self, http: SharedHttpClient) -> Self {
        Self { http, ..self }
    }

    client!(
        /// A client of DynamoDB.
        dynamodb,
        aws_sdk_dynamodb
    );
    client!(
        /// A client of SQS.
        sqs,
        aws_sdk_sqs
    );
    client!(
        /// A client of EventBridge Scheduler.
        scheduler,
        aws_sdk_scheduler
    );

    /// The two queues of confirmations: `CONFIRMATIONS_QUEUE_URL`, `FAILED_CONFIRMATIONS_QUEUE_URL`.
    ///
    /// # Errors
    /// [`ConfigError`] for a variable that is missing or malformed.
    pub fn queues(&self) -> Result<Queues, ConfigError> {
        let (confirmations, failed) =
            (required("CONFIRMATIONS_QUEUE_URL")?, required("FAILED_CONFIRMATIONS_QUEUE_URL")?);
        Ok(Queues::new(self.sqs(), confirmations, failed))
    }

    /// The dead-letter queue alone: `FAILED_CONFIRMATIONS_QUEUE_URL`.
    ///
    /// # Errors
    /// [`ConfigError`] for a variable that is missing or malformed.
    pub fn failed_queue(&self) -> Result<FailedQueue, ConfigError> {
        Ok(FailedQueue::new(self.sqs(), required("FAILED_CONFIRMATIONS_QUEUE_URL")?))
    }

    /// The reminders of holds: `SCHEDULE_GROUP`, `EXPIRE_FUNCTION_ARN`, `SCHEDULE_ROLE_ARN`, `SCHEDULE_DLQ_ARN`,
    /// `EXPIRY_SLOT_SECONDS`.
    ///
    /// # Errors
    /// [`ConfigError`] for a variable that is missing or malformed.
    pub fn schedules(&self) -> Result<Schedules, ConfigError> {
        let name = "EXPIRY_SLOT_SECONDS";
        let slot_seconds = required(name)?
            .parse()
            .ok()
            .filter(|seconds| (1..=3_600).contains(seconds))
            .ok_or(ConfigError { name, problem: "must be a whole number from 1 to 3600" })?;
        let target = Target {
            group: required("SCHEDULE_GROUP")?,
            function_arn: required("EXPIRE_FUNCTION_ARN")?,
            role_arn: required("SCHEDULE_ROLE_ARN")?,
            dead_letter_arn: required("SCHEDULE_DLQ_ARN")?,
        };
        Ok(Schedules::new(self.scheduler(), target, slot_seconds, crate::clock::system()))
    }
}

/// The table's name: `TABLE_NAME`.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn table_name() -> Result<String, ConfigError> {
    required("TABLE_NAME")
}

/// How the table's new items are written: `TABLE_LAYOUT`, 1 or 2; 3 is as 2, and products of layout 1 are moved.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn table_layout() -> Result<Layout, ConfigError> {
    Ok(if table_step()? == 1 { Layout::One } else { Layout::Two })
}

/// Whether the sweep moves products of layout 1: `TABLE_LAYOUT` is 3.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn moves_products() -> Result<bool, ConfigError> {
    Ok(table_step()? == 3)
}

fn table_step() -> Result<u8, ConfigError> {
    let name = "TABLE_LAYOUT";
    let number = required(name)?.parse().ok().filter(|number| (1..=3).contains(number));
    number.ok_or(ConfigError { name, problem: "must be 1, 2 or 3" })
}

/// The stack's name, which its metrics are told apart by: `STACK_NAME`.
pub(crate) fn stack_name() -> Result<String, ConfigError> {
    required("STACK_NAME")
}

/// The JSON Web Key Set of local tokens: `HOLDFAST_LOCAL_KEY_SET`. Only the local stack sets it. In AWS, API Gateway
/// verifies the tokens; without either, every token is refused.
pub fn local_key_set() -> Option<String> {
    optional("HOLDFAST_LOCAL_KEY_SET")
}

/// The log level that Lambda sets, or the one of a developer: `AWS_LAMBDA_LOG_LEVEL`, `RUST_LOG`.
pub(crate) fn log_level() -> Option<String> {
    optional("AWS_LAMBDA_LOG_LEVEL").or_else(|| optional("RUST_LOG"))
}

/// The function's name in its log, as Lambda sets it; empty outside of Lambda.
pub(crate) fn function_name() -> String {
    optional("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_default()
}

/// The claim that carries a token's roles: `ROLES_CLAIM`.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn roles_claim() -> Result<String, ConfigError> {
    required("ROLES_CLAIM")
}

/// Where the console's users sign in: a client of an OpenID Connect issuer, without a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// The issuer's page, which may have a query of its own.
    pub authorize_url: String,
    /// Where the page gets a token for its code.
    pub token_url: String,
    /// The client.
    pub client_id: String,
    /// The issuer's page that ends its own session.
    pub logout_url: Option<String>,
}

/// Where the console's users sign in, if there is such a place: `SIGN_IN_CLIENT_ID`, and with it `SIGN_IN_AUTHORIZE_URL`
/// and `SIGN_IN_TOKEN_URL`. Beside, `SIGN_IN_LOGOUT_URL` may be left out.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn sign_in() -> Result<Option<SignIn>, ConfigError> {
    let Some(client_id) = optional("SIGN_IN_CLIENT_ID") else { return Ok(None) };
    let checked = |name, url: String| {
        // The token's one goes into a header.
        let plain = url.bytes().all(|byte| byte.is_ascii_graphic() && !b";,'\"".contains(&byte));
        let problem = "must be an https URL";
        if plain && url.starts_with("https://") { Ok(url) } else { Err(ConfigError { name, problem }) }
    };
    let url = |name| checked(name, required(name)?);
    let (authorize_url, token_url) = (url("SIGN_IN_AUTHORIZE_URL")?, url("SIGN_IN_TOKEN_URL")?);
    let name = "SIGN_IN_LOGOUT_URL";
    let logout_url = optional(name).map(|url| checked(name, url)).transpose()?;
    Ok(Some(SignIn { authorize_url, token_url, client_id, logout_url }))
}

/// Whether a gateway gives tokens to whoever asks: `HOLDFAST_LOCAL_SIGN_IN`. Only the local gateway sets it.
pub fn local_sign_in() -> bool {
    optional("HOLDFAST_LOCAL_SIGN_IN").is_some()
}

/// The limit per customer of a product that is made without one, if there is any: `DEFAULT_MAX_PER_CUSTOMER`, 0 for none.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn default_max_per_customer() -> Result<Option<u32>, ConfigError> {
    let name = "DEFAULT_MAX_PER_CUSTOMER";
    let problem = "must be a whole number from 0 to 4294967295";
    let units = required(name)?.parse().map_err(|_| ConfigError { name, problem })?;
    Ok(Some(units).filter(|units| *units > 0))
}

/// Whether customers may confirm their own reservations, beside services: `CONFIRMED_BY`, `service` or `customer`.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn customers_confirm() -> Result<bool, ConfigError> {
    let name = "CONFIRMED_BY";
    match required(name)?.as_str() {
        "service" => Ok(false),
        "customer" => Ok(true),
        _ => Err(ConfigError { name, problem: "must be service or customer" }),
    }
}

/// The limit on each customer's requests: `RATE_LIMIT_PER_SECOND` (0 for none) and `RATE_LIMIT_BURST`.
///
/// # Errors
/// [`ConfigError`] for a variable that is missing or malformed.
pub fn rate_limit() -> Result<Option<RateLimit>, ConfigError> {
    let number = |name| {
        let problem = "must be a whole number from 0 to 10000";
        let number = required(name)?.parse().ok().filter(|number| *number <= 10_000);
        number.ok_or(ConfigError { name, problem })
    };
    Ok(RateLimit::new(number("RATE_LIMIT_PER_SECOND")?, number("RATE_LIMIT_BURST")?))
}

fn https_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https()
}

fn required(name: &'static str) -> Result<String, ConfigError> {
    optional(name).ok_or(ConfigError { name, problem: "is not set" })
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn optional(name: &'static str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

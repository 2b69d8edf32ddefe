//! What may go wrong with a call, how long to try again, and what the caller is told in the end.

use std::sync::Mutex;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use holdfast_domain::{Invalid, Refusal};
use tokio::time::Instant;

use crate::lock;

/// Why a command did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules say no. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The input says something that it may not. Nothing was changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No clear answer within the deadline. Nothing is acknowledged; whoever asks again under the same key finds out.
    #[error("{during}: no answer within the deadline ({last})")]
    Unavailable {
        /// The call.
        during: &'static str,
        /// The last thing that went wrong: for the log, never for the caller.
        last: String,
    },
    /// What no repetition mends: a missing permission, an item that makes no sense.
    #[error("{during}: {source}")]
    Internal {
        /// The call or the step.
        during: &'static str,
        /// What went wrong: for the log, never for the caller.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn internal(during: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { during, source: source.into() }
    }
}

/// Until when a request may go on trying. Past it nobody waits for the answer any more.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// From now on, for `length`.
    pub fn after(length: Duration) -> Self {
        Self(Instant::now() + length)
    }

    /// This, or `length` from now, whichever comes first.
    pub(crate) fn sooner(self, length: Duration) -> Self {
        Self(self.0.min(Instant::now() + length))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }
}

/// A failure that is worth another try, by what the next try should do differently.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Another transaction was on the item: not applied, and the next try may come at once.
    Conflict,
    /// Refused for its rate: not applied, and the next try should wait.
    Throttled,
    /// No answer came, or "internal error": applied or not, nobody knows.
    NoAnswer(String),
    /// No try will help.
    Fatal(Error),
}

/// What a failed call means, by its error code. Every code that is not named here is fatal: a new kind of refusal
/// must not become a loop.
pub(crate) fn fault<E>(during: &'static str, error: &SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(service) = error else {
        return match error {
            SdkError::ConstructionFailure(_) => Fault::Fatal(Error::internal(during, chain(error))),
            _ => Fault::NoAnswer(chain(error)),
        };
    };
    match service.err().code() {
        Some("TransactionConflictException") => Fault::Conflict,
        // The first try of this very transaction, whose answer was lost, is still running.
        Some("TransactionInProgressException") => Fault::Throttled,
        Some(
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "LimitExceededException",
        ) => Fault::Throttled,
        _ if service.raw().status().is_server_error() => Fault::NoAnswer(chain(error)),
        _ => Fault::Fatal(Error::internal(during, chain(error))),
    }
}

/// An error and its causes in one line, without the raw answer, which may carry items.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The tries of one request: bounded by its deadline, spaced with jitter so that those who collided do not collide
/// again.
pub(crate) struct Attempts<'a> {
    deadline: Deadline,
    random: &'a Mutex<fastrand::Rng>,
    failed: u32,
    last: String,
    /// Whether some try may have been applied although its answer was lost.
    pub(crate) ambiguous: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(deadline: Deadline, random: &'a Mutex<fastrand::Rng>) -> Self {
        Self { deadline, random, failed: 0, last: "never tried".to_owned(), ambiguous: false }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Counts a try that failed for a reason that is mended already, so that the next may come at once.
    pub(crate) fn count(&mut self) {
        self.failed += 1;
        "what was known of the stock or the product was out of date".clone_into(&mut self.last);
    }

    /// The end of all tries.
    pub(crate) fn unavailable(&self, during: &'static str) -> Error {
        Error::Unavailable { during, last: self.last.clone() }
    }

    /// Awaits `call`, but not past the deadline. What a call that is given up did stays unknown.
    pub(crate) async fn call<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Error> {
        match tokio::time::timeout_at(self.deadline.0, call).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.unavailable("call")),
        }
    }

    /// Waits as long as `fault` asks for, or gives up where that would pass the deadline.
    pub(crate) async fn pause(&mut self, fault: Fault) -> Result<(), Error> {
        self.failed += 1;
        let (base_ms, most_ms) = match fault {
            Fault::Fatal(error) => return Err(error),
            Fault::Conflict => {
                "another transaction was on the item".clone_into(&mut self.last);
                (4, 200)
            }
            Fault::Throttled => {
                "throttled".clone_into(&mut self.last);
                (50, 1_000)
            }
            Fault::NoAnswer(text) => {
                self.last = text;
                self.ambiguous = true;
                (50, 1_000)
            }
        };
        let most_ms = (base_ms << self.failed.min(10)).min(most_ms);
        let until = Instant::now() + Duration::from_millis(lock(self.random).u64(0..=most_ms));
        if until >= self.deadline.0 {
            return Err(self.unavailable("retries"));
        }
        // Back-off is the one thing that has no event to wait for.
        tokio::time::sleep_until(until).await;
        Ok(())
    }
}

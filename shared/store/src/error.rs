//! What can go wrong with a call, how long it is retried, and the error that the caller gets.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, OrchestratorError};
use futures_util::FutureExt as _;
use holdfast_domain::{BasketError, Invalid, Refusal};
use tokio::time::Instant;

use crate::{lock, measure};

/// Why a command did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused by the rules. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The input breaks a rule. Nothing was changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No clear answer within the deadline. Nothing is acknowledged; a repetition with the same key gets the outcome.
    #[error("{during}: no answer within the deadline ({last})")]
    Unavailable {
        /// The call.
        during: &'static str,
        /// The last error: internal, for the log, never for the caller.
        last: String,
    },
    /// Not yet, although the table answers: nothing was changed, and the same request will succeed or be refused within
    /// some seconds.
    #[error("{why}: try again in some seconds")]
    TryLater {
        /// What has to be over first.
        why: &'static str,
    },
    /// Repeating does not help: a missing permission, an item that cannot be read.
    #[error("{during}: {source}")]
    Internal {
        /// The call or the step.
        during: &'static str,
        /// What went wrong: internal, for the log, never for the caller.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<BasketError> for Error {
    fn from(error: BasketError) -> Self {
        match error {
            BasketError::Invalid(invalid) => invalid.into(),
            BasketError::Refused(refusal) => refusal.into(),
        }
    }
}

impl Error {
    pub(crate) fn internal(during: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { during, source: source.into() }
    }
}

/// Until when a request may be retried. After that nobody waits for the answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `length` from now.
    pub fn after(length: Duration) -> Self {
        Self(Instant::now() + length)
    }

    /// This, or `length` from now, whichever comes first.
    #[must_use]
    pub fn sooner(self, length: Duration) -> Self {
        Self(self.0.min(Instant::now() + length))
    }

    /// The time left.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }
}

/// How a call failed, by what to do about it.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Another transaction was on the item: not applied; retry soon.
    Conflict,
    /// Throttled: not applied; retry with a longer backoff.
    Throttled,
    /// No answer, or "internal error": it may have been applied; retry with a longer backoff.
    NoAnswer(String),
    /// Retrying does not help.
    Fatal(Error),
}

/// How a call failed, by its error code. A code that is not named here is fatal: an unknown error must not be retried.
pub(crate) fn call_error<E>(during: &'static str, error: &SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(service) = error else {
        return match error {
            SdkError::ConstructionFailure(_) => CallError::Fatal(Error::internal(during, chain(error))),
            _ => CallError::NoAnswer(chain(error)),
        };
    };
    match service.err().code() {
        Some("TransactionConflictException") => CallError::Conflict,
        // The first try of the same transaction, whose answer was lost, is still running: it may still be applied.
        Some("TransactionInProgressException") => CallError::NoAnswer(chain(error)),
        Some(
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "LimitExceededException",
        ) => CallError::Throttled,
        _ if service.raw().status().is_server_error() => CallError::NoAnswer(chain(error)),
        _ => CallError::Fatal(Error::internal(during, chain(error))),
    }
}

/// An error and its causes in one line, without the raw answer, which may contain items.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What is known of the SDK's own tries of one call.
#[derive(Debug, Default)]
struct Writes {
    sent: Cell<bool>,
    lost: Cell<bool>,
}

tokio::task_local! {
    static WRITES: Writes;
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Seen<T> {
    pub(crate) answer: T,
    /// Whether a write of it may have been applied without an answer.
    lost: bool,
}

/// Awaits a call and watches its tries. (No `async fn`, here and below: that would hold the call twice, and a call is large.)
pub(crate) fn watch<T>(call: impl Future<Output = T>) -> impl Future<Output = Seen<T>> {
    let seen = |answer| Seen { answer, lost: WRITES.with(|writes| writes.lost.get()) };
    WRITES.scope(Writes::default(), call.map(seen))
}

/// Watches the SDK's own retries, which it does not report. A write without an answer may still be applied, even after its
/// repetition was refused.
#[derive(Debug)]
pub(crate) struct LostWrites;

impl LostWrites {
    fn note(see: impl FnOnce(&Writes)) {
        // Outside of `Attempts::call` it is not needed.
        _ = WRITES.try_with(see);
    }
}

#[dyn_dispatch_hint]
impl Intercept for LostWrites {
    fn name(&self) -> &'static str {
        "LostWrites"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let target = context.request().headers().get("x-amz-target").unwrap_or_default();
        if target.ends_with(".UpdateItem") || target.ends_with(".TransactWriteItems") {
            Self::note(|writes| {
                writes.lost.set(writes.lost.get() || writes.sent.get());
                writes.sent.set(true);
            });
        }
        Ok(())
    }

    // Not before: a response may break off after its status.
    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let whole = context.output_or_error().err().is_none_or(OrchestratorError::is_operation_error);
        if whole && !context.response().status().is_server_error() {
            Self::note(|writes| writes.sent.set(false));
        }
        Ok(())
    }
}

/// The retries of one request: until its deadline, with exponential backoff and jitter, so that requests that collided do
/// not collide again.
pub(crate) struct Attempts<'a> {
    deadline: Deadline,
    random: &'a Mutex<fastrand::Rng>,
    failed: u32,
    last: String,
    /// Whether an earlier try may have been applied although its answer was lost.
    pub(crate) ambiguous: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(deadline: Deadline, random: &'a Mutex<fastrand::Rng>) -> Self {
        Self { deadline, random, failed: 0, last: "never tried".to_owned(), ambiguous: false }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Counts a try that was based on stale data. It can be repeated without a pause.
    pub(crate) fn count(&mut self) {
        self.failed += 1;
        measure::note(measure::RETRIES, 1);
        "what was known of the stock or the product was out of date".clone_into(&mut self.last);
    }

    /// The error when time has run out.
    pub(crate) fn unavailable(&self, during: &'static str) -> Error {
        Error::Unavailable { during, last: self.last.clone() }
    }

    /// The refusal, unless an earlier try may have been applied, or may still be: then the outcome is unknown.
    pub(crate) fn refuse(&self, refusal: Refusal) -> Error {
        if self.ambiguous { self.unavailable("an earlier try") } else { refusal.into() }
    }

    /// An error; of a refusal, what [`Self::refuse`] says.
    pub(crate) fn error(&self, error: Error) -> Error {
        match error {
            Error::Refused(refusal) => self.refuse(refusal),
            error => error,
        }
    }

    /// Awaits `call` until the deadline. Whether a call that is given up was applied is unknown.
    pub(crate) async fn call<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Error> {
        let Seen { answer, lost } = self.until_deadline(watch(call)).await?;
        self.ambiguous |= lost;
        Ok(answer)
    }

    /// The same for a call that others wait for as well.
    pub(crate) async fn see<T>(&mut self, call: impl Future<Output = Arc<Seen<T>>>) -> Result<Arc<Seen<T>>, Error> {
        let seen = self.until_deadline(call).await?;
        self.ambiguous |= seen.lost;
        Ok(seen)
    }

    /// Awaits `work` until the deadline.
    pub(crate) fn until_deadline<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Error>> {
        tokio::time::timeout_at(self.deadline.0, work).map(|done| done.map_err(|_| self.unavailable("call")))
    }

    /// Backs off as `error` requires, or gives up where that would pass the deadline.
    pub(crate) async fn pause(&mut self, error: CallError) -> Result<(), Error> {
        self.failed += 1;
        let (base_ms, most_ms) = match error {
            CallError::Fatal(error) => return Err(error),
            CallError::Conflict => {
                measure::note(measure::CONFLICTS, 1);
                "another transaction was on the item".clone_into(&mut self.last);
                (4, 200)
            }
            CallError::Throttled => {
                measure::note(measure::THROTTLES, 1);
                "throttled".clone_into(&mut self.last);
                (50, 1_000)
            }
            CallError::NoAnswer(text) => {
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
        measure::note(measure::RETRIES, 1);
        // A backoff has no event to wait for.
        tokio::time::sleep_until(until).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::error::ErrorMetadata;
    use aws_sdk_dynamodb::operation::update_item::UpdateItemError;

    use super::*;

    fn answered(status: u16, code: &str) -> SdkError<UpdateItemError, HttpResponse> {
        let error = UpdateItemError::generic(ErrorMetadata::builder().code(code).message("a fault").build());
        SdkError::service_error(error, HttpResponse::new(status.try_into().unwrap(), "".into()))
    }

    #[test]
    fn every_error_code_is_classified_and_an_unknown_one_is_fatal() {
        for (status, code, wanted) in [
            (400, "TransactionConflictException", "Conflict"),
            (400, "TransactionInProgressException", "NoAnswer"),
            (400, "ProvisionedThroughputExceededException", "Throttled"),
            (400, "ThrottlingException", "Throttled"),
            (400, "RequestLimitExceeded", "Throttled"),
            (400, "LimitExceededException", "Throttled"),
            (500, "InternalServerError", "NoAnswer"),
            (503, "ServiceUnavailable", "NoAnswer"),
            (400, "AccessDeniedException", "Fatal"),
            (400, "ValidationException", "Fatal"),
        ] {
            let found = format!("{:?}", call_error("test", &answered(status, code)));
            assert!(found.starts_with(wanted), "{code}: {found}");
        }
    }

    #[test]
    fn a_request_that_cannot_be_made_is_fatal_and_one_without_an_answer_is_not() {
        let unmade = SdkError::construction_failure("no region");
        assert!(matches!(call_error::<UpdateItemError>("test", &unmade), CallError::Fatal(Error::Internal { .. })));
        let lost = SdkError::timeout_error("gone");
        let CallError::NoAnswer(text) = call_error::<UpdateItemError>("test", &lost) else { panic!("not lost") };
        assert!(text.ends_with(": gone"), "without its cause: {text}");
    }

    /// The longest pause of a hundred requests after their `nth` try.
    async fn longest_pause(nth: u32, error: fn() -> CallError) -> Duration {
        let mut longest = Duration::ZERO;
        for seed in 0..100 {
            let random = Mutex::new(fastrand::Rng::with_seed(seed));
            let mut attempts = Attempts::new(Deadline::after(Duration::from_secs(60)), &random);
            (1..nth).for_each(|_| attempts.count());
            let started = Instant::now();
            attempts.pause(error()).await.unwrap();
            longest = longest.max(started.elapsed());
        }
        longest
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_every_try_up_to_their_bound() {
        let millis = |most: u64| Duration::from_millis(most * 8 / 10)..=Duration::from_millis(most);
        for (nth, conflict, throttled) in [(1, 8, 100), (2, 16, 200), (4, 64, 800), (5, 128, 1_000), (30, 200, 1_000)] {
            for (error, most) in
                [((|| CallError::Conflict) as fn() -> CallError, conflict), (|| CallError::Throttled, throttled)]
            {
                let longest = longest_pause(nth, error).await;
                assert!(millis(most).contains(&longest), "{:?} {nth}: {longest:?}", error());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tries_end_with_the_deadline_and_say_what_went_wrong_last() {
        let random = Mutex::new(fastrand::Rng::with_seed(1));
        let started = Instant::now();
        let mut attempts = Attempts::new(Deadline::after(Duration::from_secs(5)), &random);
        attempts.count();
        assert!(attempts.unavailable("test").to_string().contains("out of date"));
        assert!(!attempts.ambiguous);
        let error = loop {
            if let Err(error) = attempts.pause(CallError::NoAnswer("gone".to_owned())).await {
                break error;
            }
        };
        assert_eq!(error.to_string(), "retries: no answer within the deadline (gone)");
        assert!(attempts.ambiguous);
        assert!((4..=5).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
        assert!(attempts.call(std::future::pending::<()>()).await.is_err());
        assert_eq!(started.elapsed(), Duration::from_secs(5));
        assert!(attempts.deadline().passed());
    }
}

//! What surrounds the rules: the environment, the clock, the AWS clients, schedules, queues, and the way from the
//! dead-letter queue into the table.
#![warn(clippy::missing_errors_doc)]

pub mod clock;
pub mod config;
pub mod dead_letters;
pub mod queues;
pub mod schedules;

/// A service that did not do what it was asked, after the SDK's own retries.
#[derive(Debug, thiserror::Error)]
#[error("{during}: {detail}")]
pub struct Unanswered {
    /// The call.
    pub during: &'static str,
    /// What went wrong: for the log, never for the caller.
    pub detail: String,
}

impl Unanswered {
    fn new(during: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        Self { during, detail: causes.map(ToString::to_string).collect::<Vec<_>>().join(": ") }
    }
}

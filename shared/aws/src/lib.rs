//! Everything around the rules: environment variables, the clock, the AWS clients, the log, metrics, schedules, queues, and
//! moving dead letters into the table.
#![warn(clippy::missing_errors_doc)]

pub mod clock;
pub mod config;
pub mod connections;
pub mod dead_letters;
pub mod log;
pub mod metrics;
pub mod queues;
pub mod schedules;

/// A service that refused or did not answer, after the SDK's own retries.
#[derive(Debug, thiserror::Error)]
#[error("{during}: {detail}")]
pub struct Unanswered {
    /// The call.
    pub during: &'static str,
    /// What went wrong: internal, for the log, never for the caller.
    pub detail: String,
}

impl Unanswered {
    fn new(during: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        Self { during, detail: causes.map(ToString::to_string).collect::<Vec<_>>().join(": ") }
    }
}

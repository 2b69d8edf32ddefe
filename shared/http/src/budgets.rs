//! The time budgets of the functions that answer HTTP requests, and how they add up.
//!
//! ```text
//! 10 s    Timeout in template.yaml: Lambda ends the process
//!  9.5 s  ANSWER_BUDGET: the request is given up, and answered with 503
//!  9 s    RATE_LIMIT_BUDGET (1 s), then REQUEST_BUDGET (8 s), of which TABLE_BUDGET (4 s) for the table,
//!         or BATCH_BUDGET (8 s), then DELAY_BUDGET (1 s),
//!         or, for an admin, REQUEST_BUDGET (8 s), then OUTCOME_BUDGET (1 s)
//! ```

use std::time::Duration;

/// Time for the rate limit, before the handler.
pub const RATE_LIMIT_BUDGET: Duration = Duration::from_secs(1);
/// Time of a handler.
pub const REQUEST_BUDGET: Duration = Duration::from_secs(8);
/// Time after that to write down what came of an admin's action, or of an audit: admins have no rate limit.
pub const OUTCOME_BUDGET: Duration = Duration::from_secs(1);
/// Part of [`REQUEST_BUDGET`] for the table where there is a fallback to the queue: the rest is for the queue.
pub const TABLE_BUDGET: Duration = Duration::from_secs(4);
/// Part of it for ingesting the dead-letter queue. What is left there is ingested by the next request or sweep.
pub const INGEST_BUDGET: Duration = Duration::from_secs(4);
/// Time until a request without a response is given up: before Lambda ends the process and API Gateway answers.
pub const ANSWER_BUDGET: Duration = Duration::from_millis(9_500);
/// Time until each message of a batch is done or has failed. Running into the function's timeout would cost every
/// message of the batch an attempt.
pub const BATCH_BUDGET: Duration = Duration::from_secs(8);
/// Time after that to set the delay of each message that failed.
pub const DELAY_BUDGET: Duration = Duration::from_secs(1);

const _: () = {
    let answer = ANSWER_BUDGET.as_millis();
    assert!(RATE_LIMIT_BUDGET.as_millis() + REQUEST_BUDGET.as_millis() < answer);
    assert!(REQUEST_BUDGET.as_millis() + OUTCOME_BUDGET.as_millis() < answer);
    assert!(BATCH_BUDGET.as_millis() + DELAY_BUDGET.as_millis() < answer);
    assert!(TABLE_BUDGET.as_millis() < REQUEST_BUDGET.as_millis());
    assert!(INGEST_BUDGET.as_millis() < REQUEST_BUDGET.as_millis());
};

//! Gives back the units of holds whose time is over, and takes failed confirmations into the table.
//!
//! Whoever calls, and whatever the event says: what is overdue by the clock is released, and nothing else. So an event
//! that comes twice, late, or not at all does no harm; the recurring schedule makes up for one that is lost.
//!
//! What lies in the dead-letter queue comes second: whatever goes wrong there, holds are released.

use std::time::Duration;

use futures_util::FutureExt;
use holdfast_aws::clock::Clock;
use holdfast_aws::dead_letters::{Ingested, ingest_dead_letters};
use holdfast_aws::queues::FailedQueue;
use holdfast_aws::schedules::Reminder;
use holdfast_store::{Deadline, Error, Store};
use serde::Serialize;
use serde_json::Value;

/// How long one call may go on. The function's timeout in `template.yaml` is longer; what is left over is the next
/// call's.
const BUDGET: Duration = Duration::from_secs(25);
/// How much of that the release may take: after a sale there may be more to release for many calls, and payments must
/// not wait for the last of them.
const RELEASE_BUDGET: Duration = Duration::from_secs(20);

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// Where failed confirmations arrive.
    pub failed: FailedQueue,
    /// The time.
    pub clock: Clock,
}

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Holds that this call ended.
    pub holds: u64,
    /// Units given back.
    pub units: u64,
    /// Whether nothing overdue is left.
    pub complete: bool,
}

/// Releases what is overdue; then takes in what has arrived in the dead-letter queue.
///
/// # Errors
/// What kept it from reading or from releasing holds: Scheduler then calls again.
pub async fn handle(app: &App, event: &Value) -> Result<Released, Error> {
    let deadline = Deadline::after(BUDGET);
    let reminder = serde_json::from_value::<Reminder>(event.clone());
    match &reminder {
        Ok(reminder) => tracing::info!(?reminder, "called"),
        Err(_) => tracing::warn!("called with an event that is no reminder: looking all the same"),
    }
    // Both boxed, their types forgotten: the future of a whole function is deeper than the compiler looks.
    let released = release(app).boxed().await;
    // A slot may end every second: what arrives in the queue can wait for the sweep, which comes every minute.
    if !matches!(reminder, Ok(Reminder::Slot { .. })) {
        take_in(app, deadline).boxed().await;
    }
    released
}

async fn release(app: &App) -> Result<Released, Error> {
    let swept = app.store.release_overdue(app.clock.now(), Deadline::after(RELEASE_BUDGET)).await?;
    let (holds, units, ended_before, complete) = (swept.holds, swept.units, swept.ended_before, swept.complete);
    tracing::info!(holds, units, ended_before, complete, "released");
    Ok(Released { holds, units, complete })
}

/// The next sweep does the work of an intake that failed, and an alarm watches the queue: the holds are released, and
/// calling again for the queue's sake would gain nothing.
async fn take_in(app: &App, deadline: Deadline) {
    match ingest_dead_letters(&app.failed, &app.store, &app.clock, deadline).await {
        Ok(Ingested { messages: 0, complete: true }) => {}
        Ok(Ingested { messages, complete }) => tracing::warn!(messages, complete, "failed confirmations taken in"),
        Err(error) => tracing::error!(%error, "failed confirmations are left in the queue"),
    }
    // What has become an order meanwhile is not open any more.
    match app.store.settle_open(app.clock.now(), deadline).await {
        Ok(0) => {}
        Ok(open) => tracing::warn!(open, "failed confirmations wait for a person"),
        Err(error) => tracing::error!(%error, "open failed confirmations were not compared with their reservations"),
    }
}

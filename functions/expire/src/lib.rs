//! Releases expired holds, ingests failed confirmations from the dead-letter queue into the table, and moves products to keys of
//! their own.
//!
//! Any event releases what is overdue by the clock, and nothing else. So an event that is duplicated, late or lost does no
//! harm; the recurring schedule makes up for a lost one.
//!
//! The dead-letter queue comes second: holds are released even if it fails. Products come last: they are sold from either place.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use holdfast_aws::clock::Clock;
use holdfast_aws::dead_letters::{Ingested, ingest_dead_letters};
use holdfast_aws::queues::FailedQueue;
use holdfast_aws::schedules::Reminder;
use holdfast_aws::{log, metrics};
use holdfast_store::{Deadline, Error, Store, measure};
use serde::Serialize;
use serde_json::Value;

/// Time of one call, below the function's timeout in `template.yaml`. The next call does the rest.
const BUDGET: Duration = Duration::from_secs(25);
/// Part of it for releases: after a sale they may take many calls, and failed confirmations must not wait for the last.
const RELEASE_BUDGET: Duration = Duration::from_secs(20);

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The dead-letter queue of confirmations.
    pub failed: FailedQueue,
    /// The time.
    pub clock: Clock,
    /// Whether the sweep moves products of layout 1.
    pub moves_products: bool,
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

/// Releases overdue holds, then ingests the dead-letter queue, then moves products.
///
/// # Errors
/// Holds could not be read or released: Scheduler then calls again.
pub async fn handle(app: &App, event: &Value) -> Result<Released, Error> {
    metrics::measured(called(app, event)).await
}

async fn called(app: &App, event: &Value) -> Result<Released, Error> {
    let deadline = Deadline::after(BUDGET);
    let reminder = serde_json::from_value::<Reminder>(event.clone());
    match &reminder {
        Ok(Reminder::Slot { slot }) => tracing::info!(kind = "slot", slot, "called"),
        Ok(Reminder::Sweep) => tracing::info!(kind = "sweep", "called"),
        Err(_) => tracing::warn!("unknown event; overdue holds are released anyway"),
    }
    // Boxed: the type of the whole future exceeds the compiler's recursion limit.
    let released = release(app).boxed().await;
    if let (Ok(Reminder::Sweep), Ok(_)) = (&reminder, &released) {
        measure::note(measure::SWEEPS, 1);
    }
    // A slot may end every second; the sweep, once a minute, is enough for the queue.
    if !matches!(reminder, Ok(Reminder::Slot { .. })) {
        ingest(app, deadline).boxed().await;
        if app.moves_products {
            move_products(app, deadline).boxed().await;
        }
    }
    released
}

async fn release(app: &App) -> Result<Released, Error> {
    let started = Instant::now();
    let swept = app.store.release_overdue(app.clock.now(), Deadline::after(RELEASE_BUDGET)).await?;
    let (holds, units, ended_before, complete) = (swept.holds, swept.units, swept.ended_before, swept.complete);
    let duration_ms = log::millis(started.elapsed());
    tracing::info!(holds, units, ended_before, complete, duration_ms, "released");
    Ok(Released { holds, units, complete })
}

/// Errors are only logged: the next sweep retries, and an alarm watches the queue.
async fn ingest(app: &App, deadline: Deadline) {
    match ingest_dead_letters(&app.failed, &app.store, &app.clock, deadline).await {
        Ok(Ingested { messages: 0, complete: true }) => {}
        Ok(Ingested { messages, complete }) => tracing::warn!(messages, complete, "dead-letter queue ingested"),
        Err(error) => tracing::error!(%error, "dead-letter queue not ingested"),
    }
    // Settles those whose reservation has become an order meanwhile.
    match app.store.settle_open(app.clock.now(), deadline).await {
        Ok(open) => {
            measure::note(measure::OPEN_FAILED_CONFIRMATIONS, open);
            if open > 0 {
                tracing::warn!(open, "failed confirmations are open");
            }
        }
        Err(error) => tracing::error!(%error, "open failed confirmations were not settled"),
    }
}

/// Errors are only logged: the next sweep retries, and a product is sold from either place.
async fn move_products(app: &App, deadline: Deadline) {
    match app.store.move_products(deadline).await {
        Ok(0) => {}
        Ok(products) => tracing::info!(products, "products moved"),
        Err(error) => tracing::error!(%error, "products not moved"),
    }
}

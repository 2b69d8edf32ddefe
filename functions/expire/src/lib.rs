//! Gives back the units of holds whose time is over.
//!
//! Whoever calls, and whatever the event says: what is overdue by the clock is released, and nothing else. So an event
//! that comes twice, late, or not at all does no harm; the recurring schedule makes up for one that is lost.

use std::time::Duration;

use holdfast_aws::clock::Clock;
use holdfast_aws::schedules::Reminder;
use holdfast_store::{Deadline, Error, Store};
use serde::Serialize;
use serde_json::Value;

/// How long one call may go on. The function's timeout in `template.yaml` is longer; what is left over is the next
/// call's.
const BUDGET: Duration = Duration::from_secs(25);

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
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

/// Releases what is overdue.
///
/// # Errors
/// What kept it from reading or from releasing: Scheduler then calls again.
pub async fn handle(app: &App, event: &Value) -> Result<Released, Error> {
    match serde_json::from_value::<Reminder>(event.clone()) {
        Ok(reminder) => tracing::info!(?reminder, "called"),
        Err(_) => tracing::warn!("called with an event that is no reminder: looking all the same"),
    }
    let swept = app.store.release_overdue(app.clock.now(), Deadline::after(BUDGET)).await?;
    let (holds, units, ended_before, complete) = (swept.holds, swept.units, swept.ended_before, swept.complete);
    tracing::info!(holds, units, ended_before, complete, "released");
    Ok(Released { holds, units, complete })
}

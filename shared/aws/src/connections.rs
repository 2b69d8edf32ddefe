//! The connections that a function opens at its start, so that its first request does not wait for them. Not `expire`: nobody
//! waits for it.
//!
//! A connection needs a lookup of the name, TCP and TLS, and with the first call the SDK resolves its endpoint and derives the
//! key that it signs with. Lambda gives the start of an environment a whole core, and a request only its share of one: at 256
//! MB a seventh.

use std::fmt::Display;
use std::time::Duration;

use holdfast_store::{Deadline, Store};

use crate::schedules::Schedules;

/// How long the start waits for them. Lambda allows ten seconds for all of it.
const LONGEST: Duration = Duration::from_secs(1);

/// Opens the connection to the table and, for a function that has it, to Scheduler. If one cannot be opened that is logged, and
/// a request opens it: the function starts all the same.
pub async fn open(store: &Store, schedules: Option<&Schedules>) {
    let table = async { report("DynamoDB", store.connect(Deadline::after(LONGEST)).await) };
    let scheduler = async {
        let Some(schedules) = schedules else { return };
        match tokio::time::timeout(LONGEST, schedules.connect()).await {
            Ok(connected) => report("Scheduler", connected),
            Err(late) => report("Scheduler", Err(late)),
        }
    };
    tokio::join!(table, scheduler);
}

fn report(service: &str, connected: Result<(), impl Display>) {
    if let Err(error) = connected {
        tracing::warn!(%error, service, "connection not opened at the start");
    }
}

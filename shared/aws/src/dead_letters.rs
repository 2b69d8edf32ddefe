//! Moving messages from the dead-letter queue into the table, where they can be listed and handled.
//!
//! What must always hold: a message is deleted from the queue only when it is in the table. So the move can be
//! interrupted anywhere and run concurrently: what is left is moved later, and what is moved twice is one failed
//! confirmation.

use futures_util::future::join_all;
use holdfast_domain::{Clock, Failure, NOT_CONFIRMED};
use holdfast_store::{Deadline, Error, Store};

use crate::Unanswered;
use crate::queues::{DeadLetter, FailedQueue, Received};

/// The reason of a message that cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// How many times one call receives messages, ten each time. The rest is left for the next call.
const MAX_RECEIVES: usize = 20;
/// The longest body that is stored, in characters of up to four bytes: a DynamoDB item has at most 400 KB. Holdfast's
/// own messages are far shorter.
const MAX_BODY_CHARACTERS: usize = 64 * 1_024;

/// The result of moving messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Messages that are in the table, and no longer in the queue.
    pub messages: u32,
    /// Whether the queue says that it is empty.
    pub complete: bool,
}

/// Why moving messages stopped. Those that were moved before stay moved.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The table did not accept a message.
    #[error(transparent)]
    Table(#[from] Error),
    /// The queue did not answer.
    #[error(transparent)]
    Queue(#[from] Unanswered),
}

/// Moves the messages of the dead-letter queue into the table, until the queue is empty, the deadline has passed, or
/// two hundred messages are moved.
///
/// # Errors
/// The first error. The other messages of the same receive are moved anyway.
pub async fn ingest_dead_letters(
    queue: &FailedQueue,
    store: &Store,
    clock: &Clock,
    deadline: Deadline,
) -> Result<Ingested, IngestError> {
    let mut ingested = Ingested::default();
    for _ in 0..MAX_RECEIVES {
        if deadline.passed() {
            return Ok(ingested);
        }
        let messages = queue.receive(deadline).await?;
        if messages.is_empty() {
            return Ok(Ingested { complete: true, ..ingested });
        }
        // Concurrently, so that a slow one does not use up the time of the others.
        for outcome in join_all(messages.iter().map(|message| ingest(queue, store, clock, message, deadline))).await {
            outcome?;
            ingested.messages += 1;
        }
    }
    Ok(ingested)
}

async fn ingest(
    queue: &FailedQueue,
    store: &Store,
    clock: &Clock,
    message: &Received,
    deadline: Deadline,
) -> Result<(), IngestError> {
    let failure = failure(&message.body);
    store.record_failure(&failure, clock.now(), deadline).await?;
    let reservation_id = failure.confirmation.as_ref().map(|confirmation| confirmation.reservation_id.as_str());
    let (failed_confirmation_id, reason) = (failure.id(), failure.reason.as_str());
    tracing::warn!(failed_confirmation_id, reservation_id, reason, "failed confirmation ingested");
    Ok(queue.delete(message, deadline).await?)
}

/// The failure that a message of the dead-letter queue describes.
fn failure(body: &str) -> Failure {
    match serde_json::from_str::<DeadLetter>(body) {
        Ok(DeadLetter { confirmation, reason }) => Failure {
            // Stored without its reason, so that it is an ordinary confirmation when it is sent again.
            body: serde_json::to_string(&confirmation).unwrap_or_else(|_| body.to_owned()),
            confirmation: Some(confirmation),
            reason: reason.unwrap_or_else(|| NOT_CONFIRMED.to_owned()),
        },
        Err(_) => Failure {
            confirmation: None,
            reason: UNREADABLE.to_owned(),
            body: body.chars().take(MAX_BODY_CHARACTERS).collect(),
        },
    }
}

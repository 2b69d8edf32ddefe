//! The intake: what has arrived in the dead-letter queue goes into the table, where it can be looked at and worked on.
//!
//! What must always hold: a message leaves the queue only when the table has it. So an intake may end anywhere, and two
//! may run at once: what one left is another's, and what both took in is one failed confirmation.

use futures_util::future::join_all;
use holdfast_domain::{Clock, Failure, NOT_CONFIRMED};
use holdfast_store::{Deadline, Error, Store};

use crate::Unanswered;
use crate::queues::{DeadLetter, FailedQueue, Received};

/// The reason of a message that cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// How many receives one intake spends: ten messages each. What is left is the next one's.
const MAX_RECEIVES: usize = 20;
/// The longest body that is kept, in characters of up to four bytes: an item of DynamoDB may have 400 KB. Those of
/// Holdfast's own messages are far shorter.
const MAX_BODY_CHARACTERS: usize = 64 * 1_024;

/// What an intake did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Messages that are in the table, and no longer in the queue.
    pub messages: u32,
    /// Whether nothing is left in the queue, as far as it says.
    pub complete: bool,
}

/// What stopped an intake. What it had taken in before stays taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The table did not take a message.
    #[error(transparent)]
    Table(#[from] Error),
    /// The queue gave no answer.
    #[error(transparent)]
    Queue(#[from] Unanswered),
}

/// Takes what has arrived in the dead-letter queue into the table, until the queue is empty, the deadline has passed, or
/// two hundred messages are taken in.
///
/// # Errors
/// The first thing that went wrong. The other messages of the same receive are taken in all the same.
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
        // Together, so that one that is slow does not use up the time of the others.
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
    tracing::warn!(id = failure.id(), reason = failure.reason, "failed confirmation taken in");
    Ok(queue.delete(message, deadline).await?)
}

/// What a message of the dead-letter queue says.
fn failure(body: &str) -> Failure {
    match serde_json::from_str::<DeadLetter>(body) {
        Ok(DeadLetter { confirmation, reason }) => Failure {
            // Stored without its reason, so that it is a confirmation like any other when it is sent again.
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

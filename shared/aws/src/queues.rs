//! The queue of confirmations to be retried, and its dead-letter queue.
//!
//! Every call ends at its deadline. Whether a call that was given up had an effect is unknown, so the caller treats it
//! as failed.

use std::time::Duration;

use aws_sdk_sqs::Client;
use holdfast_domain::Confirmation;
use holdfast_store::Deadline;
use serde::{Deserialize, Serialize};

use crate::Unanswered;

/// How long a receive waits for a message. Without waiting, SQS queries only some of its servers, and an empty answer
/// does not mean that the queue is empty.
const LONG_POLL_SECONDS: i32 = 1;
/// SQS's limit for one receive.
const MAX_MESSAGES: i32 = 10;

/// The delay of a failed message in seconds, by how often it was received; the last one applies from then on.
const RETRY_SECONDS: [u64; 6] = [30, 60, 120, 240, 480, 900];

/// The delay of a confirmation that failed when it was received for the `receives`th time.
///
/// The queue's `maxReceiveCount` in `template.yaml` limits how often it is received.
pub fn retry_delay(receives: u32) -> Duration {
    let nth = usize::try_from(receives.saturating_sub(1)).unwrap_or(usize::MAX).min(RETRY_SECONDS.len() - 1);
    Duration::from_secs(RETRY_SECONDS[nth])
}

/// A message that Holdfast itself sends to the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The confirmation that failed.
    #[serde(flatten)]
    pub confirmation: Confirmation,
    /// Why: the code of a refusal. Absent if it used up its tries, so that SQS moved it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message of the dead-letter queue.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its body, unchecked.
    pub body: String,
    /// The receipt handle for [`FailedQueue::delete`].
    pub receipt: String,
}

/// Both queues.
#[derive(Debug, Clone)]
pub struct Queues {
    confirmations: Queue,
    failed: FailedQueue,
}

/// The dead-letter queue alone, for a function that does not use the other.
#[derive(Debug, Clone)]
pub struct FailedQueue(Queue);

#[derive(Debug, Clone)]
struct Queue {
    client: Client,
    url: String,
}

impl Queues {
    /// The queues at these URLs.
    pub fn new(client: Client, confirmations_url: String, failed_url: String) -> Self {
        let failed = FailedQueue::new(client.clone(), failed_url);
        Self { confirmations: Queue { client, url: confirmations_url }, failed }
    }

    /// The dead-letter queue.
    pub fn failed(&self) -> &FailedQueue {
        &self.failed
    }

    /// Queues a confirmation for a retry. When this returns, it is durable.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn send_confirmation(&self, confirmation: &Confirmation, deadline: Deadline) -> Result<(), Unanswered> {
        self.confirmations.send(&text(confirmation)?, deadline).await
    }

    /// Sends a confirmation to the dead-letter queue, with the reason. When this returns, it is durable.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn send_failed(
        &self,
        confirmation: &Confirmation,
        reason: &str,
        deadline: Deadline,
    ) -> Result<(), Unanswered> {
        let letter = DeadLetter { confirmation: confirmation.clone(), reason: Some(reason.to_owned()) };
        self.failed.0.send(&text(&letter)?, deadline).await
    }

    /// Sends a message that cannot be read to the dead-letter queue, unchanged. When this returns, it is durable.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn send_unreadable(&self, body: &str, deadline: Deadline) -> Result<(), Unanswered> {
        self.failed.0.send(body, deadline).await
    }

    /// Queues a message of the dead-letter queue again, whatever it contains.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn resend(&self, body: &str, deadline: Deadline) -> Result<(), Unanswered> {
        self.confirmations.send(body, deadline).await
    }

    /// Hides a confirmation that failed for `delay` from now, by the receipt handle of its delivery.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn delay(&self, receipt: &str, delay: Duration, deadline: Deadline) -> Result<(), Unanswered> {
        let Queue { client, url } = &self.confirmations;
        let seconds = i32::try_from(delay.as_secs()).unwrap_or(i32::MAX);
        let request = client.change_message_visibility().queue_url(url).receipt_handle(receipt);
        within("ChangeMessageVisibility", deadline, request.visibility_timeout(seconds).send()).await.map(drop)
    }
}

impl FailedQueue {
    /// The dead-letter queue at this URL.
    pub fn new(client: Client, url: String) -> Self {
        Self(Queue { client, url })
    }

    /// Up to ten messages. They are hidden from other receivers for a while, and stay until they are deleted. If there
    /// are none, the queue is empty: all of its servers were queried.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn receive(&self, deadline: Deadline) -> Result<Vec<Received>, Unanswered> {
        let Queue { client, url } = &self.0;
        let request = client.receive_message().queue_url(url).max_number_of_messages(MAX_MESSAGES);
        let answer = within("ReceiveMessage", deadline, request.wait_time_seconds(LONG_POLL_SECONDS).send()).await?;
        let messages = answer.messages.unwrap_or_default().into_iter();
        let received = messages.filter_map(|message| {
            Some(Received { body: message.body.unwrap_or_default(), receipt: message.receipt_handle? })
        });
        Ok(received.collect())
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// [`Unanswered`] where SQS refused or did not answer before the deadline.
    pub async fn delete(&self, received: &Received, deadline: Deadline) -> Result<(), Unanswered> {
        let Queue { client, url } = &self.0;
        let request = client.delete_message().queue_url(url).receipt_handle(&received.receipt);
        within("DeleteMessage", deadline, request.send()).await.map(drop)
    }
}

impl Queue {
    async fn send(&self, body: &str, deadline: Deadline) -> Result<(), Unanswered> {
        let request = self.client.send_message().queue_url(&self.url).message_body(body);
        within("SendMessage", deadline, request.send()).await.map(drop)
    }
}

fn text(message: &impl Serialize) -> Result<String, Unanswered> {
    serde_json::to_string(message).map_err(|error| Unanswered::new("SendMessage", &error))
}

/// The answer to a call, if it comes before the deadline.
async fn within<T, E: std::error::Error + 'static>(
    during: &'static str,
    deadline: Deadline,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, Unanswered> {
    match tokio::time::timeout(deadline.left(), call).await {
        Ok(answer) => answer.map_err(|error| Unanswered::new(during, &error)),
        Err(_) => Err(Unanswered { during, detail: "no answer within the deadline".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_of_a_message_grows_up_to_a_quarter_of_an_hour() {
        let seconds = |receives| retry_delay(receives).as_secs();
        // SQS counts from 1; a missing count is 0 here.
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, u32::MAX].map(seconds), [30, 30, 60, 120, 240, 480, 900, 900, 900]);
    }
}

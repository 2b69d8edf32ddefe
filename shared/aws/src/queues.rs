//! The queue of confirmations that wait for another try, and the dead-letter queue behind it.

use aws_sdk_sqs::Client;
use holdfast_domain::{CustomerId, PaymentReference, ReservationId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Unanswered;

/// A confirmation on its way through the queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// Its customer.
    pub customer: CustomerId,
    /// The payment, if one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_reference: Option<PaymentReference>,
    /// When the customer asked: decides whether it was in time.
    pub requested_at_ms: Timestamp,
    /// Why it failed: the code of a refusal. Only in the dead-letter queue, and only where it did not get there by
    /// using up its tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message of the dead-letter queue.
#[derive(Debug, Clone)]
pub struct Received {
    /// What it says, unchecked.
    pub body: String,
    /// What [`Queues::delete_failed`] takes.
    pub receipt: String,
}

/// Both queues.
#[derive(Debug, Clone)]
pub struct Queues {
    client: Client,
    confirmations_url: String,
    failed_url: String,
}

impl Queues {
    /// The queues at these URLs.
    pub fn new(client: Client, confirmations_url: String, failed_url: String) -> Self {
        Self { client, confirmations_url, failed_url }
    }

    /// Leaves a confirmation for another try. When this returns, it is durable.
    pub async fn send_confirmation(&self, confirmation: &Confirmation) -> Result<(), Unanswered> {
        self.send(&self.confirmations_url, confirmation).await
    }

    /// Leaves a confirmation for a person, with the reason. When this returns, it is durable.
    pub async fn send_failed(&self, confirmation: &Confirmation, reason: &str) -> Result<(), Unanswered> {
        let failed = Confirmation { reason: Some(reason.to_owned()), ..confirmation.clone() };
        self.send(&self.failed_url, &failed).await
    }

    /// Sends a message of the dead-letter queue on its way again, whatever it says.
    pub async fn resend(&self, body: &str) -> Result<(), Unanswered> {
        self.send_body(&self.confirmations_url, body).await
    }

    async fn send(&self, url: &str, confirmation: &Confirmation) -> Result<(), Unanswered> {
        let body = serde_json::to_string(confirmation).map_err(|error| Unanswered::new("SendMessage", &error))?;
        self.send_body(url, &body).await
    }

    async fn send_body(&self, url: &str, body: &str) -> Result<(), Unanswered> {
        let sent = self.client.send_message().queue_url(url).message_body(body).send().await;
        sent.map(drop).map_err(|error| Unanswered::new("SendMessage", &error))
    }

    /// Up to ten messages of the dead-letter queue. They are hidden from others for a while, and stay until deleted.
    pub async fn receive_failed(&self) -> Result<Vec<Received>, Unanswered> {
        let request = self.client.receive_message().queue_url(&self.failed_url).max_number_of_messages(10);
        let answer = request.send().await.map_err(|error| Unanswered::new("ReceiveMessage", &error))?;
        let messages = answer.messages.unwrap_or_default().into_iter();
        let received = messages.filter_map(|message| {
            Some(Received { body: message.body.unwrap_or_default(), receipt: message.receipt_handle? })
        });
        Ok(received.collect())
    }

    /// Takes a message out of the dead-letter queue.
    pub async fn delete_failed(&self, received: &Received) -> Result<(), Unanswered> {
        let request = self.client.delete_message().queue_url(&self.failed_url).receipt_handle(&received.receipt);
        request.send().await.map(drop).map_err(|error| Unanswered::new("DeleteMessage", &error))
    }
}

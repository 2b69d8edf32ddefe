//! The command to confirm a reservation.

use serde::{Deserialize, Serialize};

use crate::{CustomerId, PaymentReference, ReservationId, Timestamp, digest_id};

/// Make an order of a reservation. It waits in a queue in this form where the table does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The reservation.
    pub reservation_id: ReservationId,
    /// Its customer.
    pub customer: CustomerId,
    /// The payment, if one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_reference: Option<PaymentReference>,
    /// When the request was accepted: decides whether it was in time, also where a queue carries it out later.
    #[serde(rename = "requested_at_ms")]
    pub requested_at: Timestamp,
    /// The request that asked for it, for the logs. Nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestIds>,
}

/// A request over HTTP, as the logs name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestIds {
    /// API Gateway's id of the request.
    pub request_id: String,
    /// The id of its trace in AWS X-Ray, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

impl Confirmation {
    /// The id of the failed confirmation that this becomes if it fails. Copies of one confirmation have one id: the
    /// payment identifies it or, without a payment, the time of the request. A request that is repeated after an admin has
    /// settled the first is a new one.
    pub fn failed_id(&self) -> String {
        let (reservation, customer) = (self.reservation_id.as_str(), self.customer.as_str());
        match &self.payment_reference {
            Some(payment) => digest_id("fc_", &[reservation, customer, payment.as_str()]),
            None => digest_id("fc_", &[reservation, customer, "", &self.requested_at.as_millis().to_string()]),
        }
    }
}

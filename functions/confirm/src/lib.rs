//! Makes orders of holds: on the customer's word over HTTP, and from the queue of those that failed before.
//!
//! What must always hold: a payment that was taken is an order, a queued confirmation or a failed confirmation before
//! anybody is told that it arrived.

use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json as Answer, Router};
use futures_util::future::join_all;
use holdfast_aws::Unanswered;
use holdfast_aws::clock::Clock;
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_aws::queues::{Queues, retry_delay};
use holdfast_domain::{Confirmation, CustomerId, PaymentReference, Refusal, Reservation, ReservationId};
use holdfast_http::{Caller, Json, Problem, ReservationView, about_reservation, schema};
use holdfast_store::{Deadline, Error, Store};
use lambda_http::LambdaEvent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

/// How long the table may take, for all that one request, or all messages of one batch together, have to do there. The
/// rest of the request's budget is for the queue, which takes what the table does not.
const TABLE_BUDGET: Duration = Duration::from_secs(4);
/// How long a batch may take until each of its messages is done or has failed. The function's timeout in
/// `template.yaml` is 10 s: one that ran into it would cost every message of the batch a try.
const BATCH_BUDGET: Duration = Duration::from_secs(8);
/// How long it may take after that to say when each message that failed comes back.
const DELAY_BUDGET: Duration = Duration::from_secs(1);

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// Where confirmations wait, and where those end that cannot be.
    pub queues: Queues,
    /// The time.
    pub clock: Clock,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(paths(confirm))]
pub struct Description;

/// The function's routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new().route("/reservations/{reservation_id}/confirm", post(confirm)).with_state(app)
}

/// Answers an event of either kind: API Gateway's, or a batch of the queue's.
///
/// # Errors
/// An event of neither kind, and a batch that cannot name what failed in it: Lambda then keeps the whole batch.
pub async fn handle(app: &App, router: Router, event: LambdaEvent<Value>) -> Result<Value, lambda_http::Error> {
    let LambdaEvent { payload, context } = event;
    if payload.get("Records").is_some() {
        return Ok(serde_json::to_value(confirm_batch(app, serde_json::from_value(payload)?).await?)?);
    }
    let request = LambdaEvent::new(serde_json::from_value(payload)?, context);
    Ok(serde_json::to_value(holdfast_http::handle(router, request).await?)?)
}

/// How it was paid.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConfirmReservation)]
struct Confirm {
    /// Give it whenever a payment was taken: only then is it honoured late, or recorded for a refund.
    #[schema(value_type = Option<schema::PaymentReference>)]
    payment_reference: Option<PaymentReference>,
    /// From a service, which must name it, and from nobody else.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// The answer to a confirmation that waits in the queue.
#[derive(Serialize, ToSchema)]
#[schema(as = QueuedConfirmation)]
struct Queued<'a> {
    #[schema(value_type = schema::ReservationId)]
    reservation_id: &'a ReservationId,
    /// Always `queued`.
    #[schema(pattern = "^queued$")]
    status: &'static str,
}

/// Confirm: the reservation becomes an order
///
/// Makes an order of the hold. Repeating it with the same payment is harmless.
///
/// A payment that comes after the hold's time is honoured where enough units are free (`confirmed_late`). A payment that
/// can buy nothing is recorded for a refund before it is refused, also where there is no such reservation (any more).
#[utoipa::path(
    post, path = "/reservations/{reservation_id}/confirm", operation_id = "confirmReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = Confirm, example = json!({"payment_reference": "pay_123"})),
    responses(
        (status = 200, description = "It is an order.", body = ReservationView,
            links(("order" = (operation_id = "getOrder",
                parameters(("order_id" = "$response.body#/reservation_id")))))),
        (status = 202, description = "The table did not answer in time. The confirmation is kept, and tried again by \
                                      itself: read the reservation later.", body = Queued)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(
        ["already_confirmed", "refund_required", "reservation_cancelled", "hold_expired"])))
)]
async fn confirm(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<Confirm>,
) -> Result<Response, Problem> {
    let (table, whole) = (Deadline::after(TABLE_BUDGET), Deadline::after(REQUEST_BUDGET));
    let id = ReservationId::try_from(id).map_err(|invalid| match body.payment_reference {
        // A 404 would promise that the payment is recorded, and it cannot be recorded without a reservation.
        Some(_) => invalid.into(),
        None => Problem::not_found("reservation_not_found"),
    })?;
    about_reservation(&id);
    let now = app.clock.now();
    let confirmation = Confirmation {
        reservation_id: id,
        customer: caller.customer(body.customer_id)?,
        payment_reference: body.payment_reference,
        requested_at: now,
    };
    match app.confirm_now(&confirmation, table).await {
        Ok(reservation) => Ok(Answer(ReservationView::new(reservation, now)).into_response()),
        Err(Error::Refused(refusal)) => {
            app.record_refund(&confirmation, &refusal, whole).await?;
            Err(refusal.into())
        }
        // From the queue it would be refused, as accepted too early: the caller tries again.
        Err(error @ (Error::Invalid(_) | Error::TryLater { .. })) => Err(error.into()),
        Err(error @ (Error::Unavailable { .. } | Error::Internal { .. })) => {
            // The table does not answer, or answers nonsense: the queue takes the confirmation, or nobody has.
            tracing::warn!(%error, "confirmation goes to the queue");
            app.queues.send_confirmation(&confirmation, whole).await?;
            let queued = Queued { reservation_id: &confirmation.reservation_id, status: "queued" };
            Ok((StatusCode::ACCEPTED, Answer(queued)).into_response())
        }
    }
}

/// Why a message stays in the queue.
#[derive(Debug, thiserror::Error)]
enum NotDone {
    #[error(transparent)]
    Table(#[from] Error),
    #[error(transparent)]
    Queue(#[from] Unanswered),
}

/// Confirms what the queue delivers. Each message is for itself: what fails is named, and comes again after a while
/// that grows with its tries.
async fn confirm_batch(app: &App, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_http::Error> {
    let (table, whole) = (Deadline::after(TABLE_BUDGET), Deadline::after(BATCH_BUDGET));
    // Together, so that one that is slow does not use up the time of the others.
    let outcomes = join_all(batch.records.iter().map(|message| confirm_message(app, message, table, whole))).await;
    let mut failed = Vec::new();
    for (message, outcome) in batch.records.iter().zip(outcomes) {
        let Err(error) = outcome else { continue };
        tracing::error!(message_id = message.message_id, %error, "confirmation stays in the queue");
        failed.push(message);
    }
    let deadline = Deadline::after(DELAY_BUDGET);
    join_all(failed.iter().map(|message| delay(app, message, deadline))).await;
    let mut response = SqsBatchResponse::default();
    for message in failed {
        response.add_failure(message.message_id.clone().ok_or("a message without an id failed")?);
    }
    Ok(response)
}

async fn confirm_message(app: &App, message: &SqsMessage, table: Deadline, whole: Deadline) -> Result<(), NotDone> {
    let body = message.body.as_deref().unwrap_or_default();
    let confirmation: Confirmation = match serde_json::from_str(body) {
        Ok(confirmation) => confirmation,
        Err(error) => {
            // Where, not what: serde's own text quotes the value, and that may be a payment.
            let (line, column) = (error.line(), error.column());
            tracing::error!(message_id = message.message_id, line, column, "a message that cannot be read");
            // No try will read it: it is a person's at once.
            return Ok(app.queues.send_unreadable(body, whole).await?);
        }
    };
    let reservation_id = confirmation.reservation_id.as_str();
    match app.store.confirm(&confirmation, app.clock.now(), table).await {
        Ok(_) => {
            tracing::info!(reservation_id, "confirmed from the queue");
            Ok(app.settle(&confirmation, table).await?)
        }
        Err(Error::Refused(refusal)) => {
            let code = refusal.code();
            tracing::warn!(reservation_id, code, "queued confirmation refused");
            // Paid or not, somebody was told that it is on its way: a person has to see that it is not.
            Ok(app.queues.send_failed(&confirmation, code, whole).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Says when a message that failed comes back. Where nobody hears it, the queue's own timeout counts.
async fn delay(app: &App, message: &SqsMessage, deadline: Deadline) {
    let (id, receives) = (message.message_id.as_deref(), message.attributes.get("ApproximateReceiveCount"));
    let receives = receives.and_then(|count| count.parse().ok()).unwrap_or(1);
    let receipt = message.receipt_handle.as_deref().unwrap_or_default();
    if let Err(error) = app.queues.delay(receipt, retry_delay(receives), deadline).await {
        tracing::warn!(message_id = id, receives, %error, "the message comes back after the queue's own timeout");
    }
}

impl App {
    /// Confirms for somebody who waits for the answer.
    async fn confirm_now(&self, confirmation: &Confirmation, table: Deadline) -> Result<Reservation, Error> {
        // It is carried out when it is accepted: no queue lies between.
        let order = self.store.confirm(confirmation, confirmation.requested_at, table).await?;
        if order.confirmed_late {
            // An earlier try may be written down as a refund that is owed: it is not any more.
            self.settle(confirmation, table).await?;
        }
        Ok(order)
    }

    /// Settles the failed confirmation of this payment, if there is one.
    async fn settle(&self, confirmation: &Confirmation, table: Deadline) -> Result<(), Error> {
        self.store.settle_as_confirmed(confirmation, self.clock.now(), table).await
    }

    /// Writes down a payment that must be given back, before anybody is told so.
    async fn record_refund(
        &self,
        confirmation: &Confirmation,
        refusal: &Refusal,
        whole: Deadline,
    ) -> Result<(), Unanswered> {
        if refusal.owes_refund() && confirmation.payment_reference.is_some() {
            self.queues.send_failed(confirmation, refusal.code(), whole).await?;
        }
        Ok(())
    }
}

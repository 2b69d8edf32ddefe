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
use holdfast_aws::clock::Clock;
use holdfast_aws::queues::{Confirmation, Queues};
use holdfast_domain::{CustomerId, PaymentReference, Refusal, ReservationId};
use holdfast_http::{Caller, Json, Problem, ReservationView, about_reservation, path_id, schema};
use holdfast_store::{Deadline, Error, Store};
use lambda_http::LambdaEvent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

/// How long the table may take. The rest of the request's budget is for the queue, which takes what the table does
/// not.
const TABLE_BUDGET: Duration = Duration::from_secs(4);

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
/// can buy nothing is recorded for a refund before it is refused.
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
    let id: ReservationId = path_id(id, "reservation_not_found")?;
    about_reservation(&id);
    let now = app.clock.now();
    let confirmation = Confirmation {
        reservation_id: id,
        customer: caller.customer(body.customer_id)?,
        payment_reference: body.payment_reference,
        requested_at_ms: now,
        reason: None,
    };
    match app.carry_out(&confirmation).await {
        Ok(reservation) => Ok(Answer(ReservationView::new(reservation, now)).into_response()),
        Err(Error::Refused(refusal)) => {
            app.record_refund(&confirmation, &refusal).await?;
            Err(refusal.into())
        }
        Err(Error::Invalid(invalid)) => Err(invalid.into()),
        Err(error @ (Error::Unavailable { .. } | Error::Internal { .. })) => {
            // The table does not answer, or answers nonsense: the queue takes the confirmation, or nobody has.
            tracing::warn!(%error, "confirmation goes to the queue");
            app.queues.send_confirmation(&confirmation).await?;
            let queued = Queued { reservation_id: &confirmation.reservation_id, status: "queued" };
            Ok((StatusCode::ACCEPTED, Answer(queued)).into_response())
        }
    }
}

/// Confirms what the queue delivers. Each message stands for itself: what fails is named, and comes again.
async fn confirm_batch(app: &App, batch: SqsEvent) -> Result<SqsBatchResponse, lambda_http::Error> {
    let outcomes = join_all(batch.records.iter().map(|message| confirm_message(app, message))).await;
    let mut response = SqsBatchResponse::default();
    for (message, outcome) in batch.records.iter().zip(outcomes) {
        let Err(error) = outcome else { continue };
        let message_id = message.message_id.clone();
        tracing::error!(message_id, error, "confirmation stays in the queue");
        response.add_failure(message_id.ok_or("a message without an id failed")?);
    }
    Ok(response)
}

async fn confirm_message(app: &App, message: &SqsMessage) -> Result<(), String> {
    let body = message.body.as_deref().unwrap_or_default();
    // A message that cannot be read fails like any other, and reaches the dead-letter queue by using up its tries.
    let confirmation: Confirmation = serde_json::from_str(body)
        // Where, not what: serde's own text quotes the value, and that may be a payment.
        .map_err(|error| format!("unreadable at line {} column {}", error.line(), error.column()))?;
    let reservation_id = confirmation.reservation_id.as_str();
    match app.carry_out(&confirmation).await {
        Ok(_) => {
            tracing::info!(reservation_id, "confirmed from the queue");
            app.settle(&confirmation).await.map_err(|error| error.to_string())
        }
        Err(Error::Refused(Refusal::ReservationNotFound)) => Err("there is no such reservation".to_owned()),
        Err(Error::Refused(refusal)) => {
            let code = refusal.code();
            tracing::warn!(reservation_id, code, "queued confirmation refused");
            // Paid or not, somebody was told that it is on its way: a person has to see that it is not.
            app.queues.send_failed(&confirmation, code).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl App {
    async fn carry_out(&self, confirmation: &Confirmation) -> Result<holdfast_domain::Reservation, Error> {
        let Confirmation { reservation_id, customer, payment_reference, requested_at_ms, reason: _ } = confirmation;
        let (now, deadline) = (self.clock.now(), Deadline::after(TABLE_BUDGET));
        let payment = payment_reference.as_ref();
        let order = self.store.confirm(reservation_id, customer, payment, *requested_at_ms, now, deadline).await?;
        if order.confirmed_late {
            // An earlier try may stand there as a refund that is owed: it is not any more.
            self.settle(confirmation).await?;
        }
        Ok(order)
    }

    /// Settles the failed confirmation of this payment, if there is one.
    async fn settle(&self, confirmation: &Confirmation) -> Result<(), Error> {
        let Confirmation { reservation_id, customer, payment_reference, .. } = confirmation;
        let (payment, deadline) = (payment_reference.as_ref(), Deadline::after(TABLE_BUDGET));
        self.store.settle_as_confirmed(reservation_id, customer, payment, self.clock.now(), deadline).await
    }

    /// Writes down a payment that must be given back, before anybody is told so.
    async fn record_refund(&self, confirmation: &Confirmation, refusal: &Refusal) -> Result<(), Problem> {
        if refusal.owes_refund() && confirmation.payment_reference.is_some() {
            self.queues.send_failed(confirmation, refusal.code()).await?;
        }
        Ok(())
    }
}

//! Confirms reservations: over HTTP, and from the queue of confirmations that could not be written at once.
//!
//! Invariant: a payment is an order, a queued confirmation or a failed confirmation before it is acknowledged.

use std::sync::Arc;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json as Answer, Router};
use futures_util::future::join_all;
use holdfast_aws::clock::Clock;
use holdfast_aws::queues::{Queues, retry_delay};
use holdfast_aws::{Unanswered, log, metrics};
use holdfast_domain::{Confirmation, CustomerId, PaymentReference, Refusal, Reservation, ReservationId};
use holdfast_http::budgets::{BATCH_BUDGET, DELAY_BUDGET, REQUEST_BUDGET, TABLE_BUDGET};
use holdfast_http::{Caller, Json, Named, Outcome, Problem, ReservationView, codes, schema};
use holdfast_store::{Deadline, Error, Store, measure};
use lambda_http::{Context, LambdaEvent};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::Instrument as _;
use utoipa::{OpenApi, ToSchema};

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The confirmations queue and its dead-letter queue.
    pub queues: Queues,
    /// The time.
    pub clock: Clock,
    /// Whether customers may confirm their own reservations, beside services.
    pub customers_confirm: bool,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(paths(confirm_reservation))]
pub struct Description;

/// The function's routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new().route("/reservations/{reservation_id}/confirm", post(confirm_reservation)).with_state(app)
}

/// Handles both kinds of events: HTTP requests from API Gateway, and batches from the queue.
///
/// # Errors
/// An event of another kind, or a batch that cannot name its failed messages: Lambda then retries the whole batch.
pub async fn handle(app: &App, router: Router, event: LambdaEvent<Value>) -> Result<Value, lambda_http::Error> {
    let LambdaEvent { payload, context } = event;
    if payload.get("Records").is_some() {
        let batch = metrics::measured(process_batch(app, serde_json::from_value(payload)?, &context)).await?;
        return Ok(serde_json::to_value(batch)?);
    }
    let request = LambdaEvent::new(serde_json::from_value(payload)?, context);
    Ok(serde_json::to_value(holdfast_http::handle(router, request).await?)?)
}

/// A request to confirm a reservation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ConfirmReservation)]
struct Confirm {
    /// Send it whenever a payment was taken: only then can a late payment be accepted, or recorded for a refund.
    #[schema(value_type = Option<schema::PaymentReference>)]
    payment_reference: Option<PaymentReference>,
    /// The customer to act for. Required for service tokens; forbidden for others.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// A queued confirmation.
#[derive(Serialize, ToSchema)]
#[schema(as = QueuedConfirmation)]
struct Queued<'a> {
    #[schema(value_type = schema::ReservationId)]
    reservation_id: &'a ReservationId,
    /// Always `queued`.
    #[schema(pattern = "^queued$")]
    status: &'static str,
}

/// Confirm a reservation
///
/// Turns the reservation into an order. Idempotent for the same payment.
///
/// Only for a service, the shop's back end, which knows that the payment was taken; unless the parameter `ConfirmedBy`
/// allows customers to confirm their own reservations.
///
/// A payment that arrives after the hold has expired is accepted if enough units are available (`confirmed_late`). A
/// payment that cannot be accepted is recorded for a refund before it is refused, even if there is no such reservation.
#[utoipa::path(
    post, path = "/reservations/{reservation_id}/confirm", operation_id = "confirmReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = Confirm, example = json!({"payment_reference": "pay_123", "customer_id": "alice"})),
    responses(
        (status = 200, description = "The reservation is an order.", body = ReservationView,
            links(("order" = (operation_id = "getOrder",
                parameters(("order_id" = "$response.body#/reservation_id")))))),
        (status = 202, description = "The table did not respond in time. The confirmation was queued and is retried \
                                      automatically: read the reservation later. \
                                      `expired` is not final while it is queued, and a cancellation that is refused \
                                      with `hold_expired` does not end a payment's: repeat the confirmation.", body = Queued)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(
        ["confirmation_not_allowed", "already_confirmed", "refund_required", "reservation_cancelled", "hold_expired"])))
)]
async fn confirm_reservation(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(request): Named,
    Path(id): Path<String>,
    Json(body): Json<Confirm>,
) -> Result<Response, Problem> {
    if !caller.service && !app.customers_confirm {
        return Err(Problem::confirmation_not_allowed());
    }
    let (table, whole) = (Deadline::after(TABLE_BUDGET), Deadline::after(REQUEST_BUDGET));
    let id = ReservationId::try_from(id).map_err(|invalid| match body.payment_reference {
        // A 404 would promise that the payment is recorded, which is impossible without a reservation's id.
        Some(_) => invalid.into(),
        None => Problem::not_found(&codes::RESERVATION_NOT_FOUND),
    })?;
    log::reservation(&id);
    let now = app.clock.now();
    let confirmation = Confirmation {
        reservation_id: id,
        customer: caller.customer(body.customer_id)?,
        payment_reference: body.payment_reference,
        requested_at: now,
        request: Some(request),
    };
    match app.confirm_now(&confirmation, table).await {
        Ok(order) => {
            let outcome = Outcome(if order.confirmed_late { "confirmed_late" } else { "confirmed" });
            Ok((Extension(outcome), Answer(ReservationView::new(order, now))).into_response())
        }
        Err(Error::Refused(refusal)) => {
            app.record_refund(&confirmation, &refusal, whole).await?;
            Err(refusal.into())
        }
        // From the queue it would be refused, as accepted too early: the caller tries again.
        Err(error @ (Error::Invalid(_) | Error::TryLater { .. })) => Err(error.into()),
        Err(error @ (Error::Unavailable { .. } | Error::Internal { .. })) => {
            tracing::warn!(%error, "confirmation is queued");
            app.queues.send_confirmation(&confirmation, whole).await?;
            let queued = Queued { reservation_id: &confirmation.reservation_id, status: "queued" };
            Ok((StatusCode::ACCEPTED, Extension(Outcome("queued")), Answer(queued)).into_response())
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

/// Confirms a batch of messages. A message that fails does not fail the others: it is reported, and comes back after a
/// delay that grows with its attempts.
async fn process_batch(app: &App, batch: SqsEvent, context: &Context) -> Result<SqsBatchResponse, lambda_http::Error> {
    let (table, whole) = (Deadline::after(TABLE_BUDGET), Deadline::after(BATCH_BUDGET));
    // Concurrently, so that a slow one does not use up the time of the others.
    let process = |message| async move {
        let outcome = process_message(app, message, table, whole).await;
        let stays = outcome.inspect_err(|error| tracing::error!(%error, "confirmation stays in the queue")).is_err();
        stays.then_some(message)
    };
    let (request_id, trace) = (context.request_id.as_str(), context.xray_trace_id.as_deref());
    let span_of = |message: &SqsMessage| log::message(request_id, trace, message.message_id.as_deref());
    let processed = batch.records.iter().map(|message| process(message).instrument(span_of(message)));
    let failed: Vec<&SqsMessage> = join_all(processed).await.into_iter().flatten().collect();
    let deadline = Deadline::after(DELAY_BUDGET);
    let delayed = failed.iter().map(|message| delay(app, message, deadline).instrument(span_of(message)));
    join_all(delayed).await;
    let mut response = SqsBatchResponse::default();
    for message in failed {
        response.add_failure(message.message_id.clone().ok_or("a message without an id failed")?);
    }
    Ok(response)
}

async fn process_message(app: &App, message: &SqsMessage, table: Deadline, whole: Deadline) -> Result<(), NotDone> {
    let body = message.body.as_deref().unwrap_or_default();
    let confirmation: Confirmation = match serde_json::from_str(body) {
        Ok(confirmation) => confirmation,
        Err(error) => {
            // The position only: serde's message quotes the value, which may be a payment reference.
            let (line, column) = (error.line(), error.column());
            tracing::error!(line, column, "message is unreadable");
            // Retries would not help: a person has to look at it.
            return Ok(app.queues.send_unreadable(body, whole).await?);
        }
    };
    log::reservation(&confirmation.reservation_id);
    match app.store.confirm(&confirmation, app.clock.now(), table).await {
        Ok(order) => {
            measure::note(if order.confirmed_late { measure::CONFIRMED_LATE } else { measure::CONFIRMED }, 1);
            tracing::info!("confirmed from the queue");
            Ok(app.settle(&confirmation, table).await?)
        }
        Err(Error::Refused(refusal)) => {
            let code = refusal.code();
            measure::note_by(measure::REFUSED, code, 1);
            tracing::warn!(code, "queued confirmation refused");
            // The caller was told 202: a person has to see that it was refused.
            Ok(app.queues.send_failed(&confirmation, code, whole).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Sets when a failed message comes back. If that fails, the queue's visibility timeout applies.
async fn delay(app: &App, message: &SqsMessage, deadline: Deadline) {
    let receives = message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1);
    let receipt = message.receipt_handle.as_deref().unwrap_or_default();
    if let Err(error) = app.queues.delay(receipt, retry_delay(receives), deadline).await {
        tracing::warn!(receives, %error, "delay not set; the queue's visibility timeout applies");
    }
}

impl App {
    /// Confirms for a caller who waits for the response.
    async fn confirm_now(&self, confirmation: &Confirmation, table: Deadline) -> Result<Reservation, Error> {
        let order = self.store.confirm(confirmation, confirmation.requested_at, table).await?;
        if order.confirmed_late {
            // An earlier attempt may have been recorded as a refund that is due.
            self.settle(confirmation, table).await?;
        }
        Ok(order)
    }

    /// Settles the failed confirmation of this payment, if there is one.
    async fn settle(&self, confirmation: &Confirmation, table: Deadline) -> Result<(), Error> {
        self.store.settle_as_confirmed(confirmation, self.clock.now(), table).await
    }

    /// Records a payment that must be refunded, before the refusal is sent.
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

//! Failed confirmations: what arrived in the dead-letter queue, and what becomes of it.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_aws::queues::{Confirmation, Received};
use holdfast_domain::{Invalid, Refusal};
use holdfast_http::{Admin, ApiTime, Json, List, ListQuery, Problem, Query, schema};
use holdfast_store::{Deadline, Error, FailedConfirmation, FailedState, Failure};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::App;

/// How many receives one request spends on what has arrived: ten messages each. What is left is the next request's.
const MOST_RECEIVES: usize = 20;
/// The reason of one that used up its tries without an answer.
const NOT_CONFIRMED: &str = "not_confirmed";
/// The longest body that is kept. Ours are far shorter; an item of DynamoDB may have 400 KB.
const MOST_BODY: usize = 256 * 1024;

/// A failed confirmation as an admin sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedConfirmation)]
struct FailedView {
    #[schema(value_type = schema::FailedConfirmationId)]
    id: String,
    /// Null, as the next two, where the message could not be read.
    #[schema(value_type = Option<schema::ReservationId>, required)]
    reservation_id: Option<String>,
    #[schema(value_type = Option<schema::CustomerId>, required)]
    customer: Option<String>,
    #[schema(value_type = Option<schema::PaymentReference>, required)]
    payment_reference: Option<String>,
    /// The code of the refusal, `not_confirmed` (no try got an answer) or `unreadable`.
    reason: String,
    /// The message as it was in the queue.
    message: String,
    #[schema(value_type = schema::FailedConfirmationState)]
    state: FailedState,
    #[schema(value_type = schema::Time)]
    first_failed_at: ApiTime,
    #[schema(value_type = schema::Time)]
    last_failed_at: ApiTime,
    /// The `sub` of the admin who resolved it.
    #[schema(required)]
    settled_by: Option<String>,
    #[schema(value_type = Option<schema::Time>, required)]
    settled_at: Option<ApiTime>,
    /// What the admin wrote about it.
    #[schema(required)]
    note: Option<String>,
}

impl From<FailedConfirmation> for FailedView {
    fn from(failed: FailedConfirmation) -> Self {
        Self {
            id: failed.id,
            reservation_id: failed.reservation_id.map(String::from),
            customer: failed.customer.map(String::from),
            payment_reference: failed.payment_reference.map(String::from),
            reason: failed.reason,
            message: failed.body,
            state: failed.state,
            first_failed_at: ApiTime(failed.first_failed_at),
            last_failed_at: ApiTime(failed.last_failed_at),
            settled_by: failed.settled_by,
            settled_at: failed.settled_at.map(ApiTime),
            note: failed.note,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListFailed {
    /// Only those that stand so. All unless given.
    #[param(value_type = Option<schema::FailedConfirmationState>)]
    state: Option<FailedState>,
    /// The most items of the page. 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

/// List failed confirmations
///
/// Payments that are no order, and may have to be given back. What has arrived in the dead-letter queue is taken in
/// before the first page.
#[utoipa::path(
    get, path = "/admin/failed-confirmations", operation_id = "listFailedConfirmations",
    tag = "Admin: failed confirmations",
    params(ListFailed),
    responses((status = 200, description = "A page of failed confirmations.", body = List<FailedView>)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Admin,
    Query(query): Query<ListFailed>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = ListQuery::new(query.limit, query.cursor);
    let (limit, cursor) = (page.limit()?, page.cursor()?);
    // On the first page only: those that follow go on with what was there, and a cursor that is none changes nothing.
    if cursor.is_none() {
        app.take_in(deadline).await?;
    }
    let page = app.store.failed_confirmations(query.state, limit, cursor, app.clock.now(), deadline).await?;
    Ok(Answer(List::of(page, FailedView::from)).into_response())
}

/// Retry a failed confirmation
///
/// Puts it into the queue again. Its success settles it.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/{id}/retry", operation_id = "retryFailedConfirmation",
    tag = "Admin: failed confirmations",
    params(("id" = schema::FailedConfirmationId, Path)),
    responses((status = 202, description = "It is in the queue.", body = FailedView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_settled"])))
)]
pub(crate) async fn retry(State(app): State<Arc<App>>, _: Admin, Path(id): Path<String>) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let failed = app.store.failed(&failed_id(id)?, deadline).await?;
    let retrying = app.retry(&failed, deadline).await?;
    Ok((StatusCode::ACCEPTED, Answer(FailedView::from(retrying))).into_response())
}

/// What a person did about it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ResolveFailedConfirmation)]
pub(crate) struct Resolve {
    /// Such as how the money was given back.
    #[schema(min_length = 1, max_length = 1_000, pattern = r"\S")]
    note: String,
}

/// Resolve a failed confirmation
///
/// A person has seen to it, and says how. Its payment never makes an order of the reservation any more: a customer who
/// names it again is answered with `refund_required`.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/{id}/resolve", operation_id = "resolveFailedConfirmation",
    tag = "Admin: failed confirmations",
    params(("id" = schema::FailedConfirmationId, Path)),
    request_body(content = Resolve, example = json!({"note": "pay_999 refunded"})),
    responses((status = 200, description = "It is settled.", body = FailedView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_settled"])))
)]
pub(crate) async fn resolve(
    State(app): State<Arc<App>>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    Json(body): Json<Resolve>,
) -> Result<Response, Problem> {
    let characters = body.note.chars().count();
    if body.note.trim().is_empty() || characters > 1_000 {
        // A payment may lie here: that nothing was done about it must not be the easy way out.
        return Err(Invalid::new("note", "must say what was done, in 1 to 1000 characters").into());
    }
    let (now, deadline) = (app.clock.now(), Deadline::after(REQUEST_BUDGET));
    let resolved = app.store.resolve_failed(&failed_id(id)?, admin.as_str(), Some(&body.note), now, deadline).await?;
    Ok(Answer(FailedView::from(resolved)).into_response())
}

/// What a redrive did.
#[derive(Serialize, ToSchema)]
struct Redriven {
    /// How many are in the queue again.
    retried: u32,
    /// Whether there may be others: ask again.
    more: bool,
}

/// Retry all that got no answer
///
/// Retries every open one that failed for want of an answer, a hundred a request. One that was refused is left to a
/// person: the payment may have been given back already.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/redrive", operation_id = "redriveFailedConfirmations",
    tag = "Admin: failed confirmations",
    responses((status = 202, description = "So many are in the queue again.", body = Redriven)),
    security(("bearer" = []))
)]
pub(crate) async fn redrive(State(app): State<Arc<App>>, _: Admin) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    app.take_in(deadline).await?;
    let (mut retried, mut cursor) = (0, None);
    loop {
        let open =
            app.store.failed_confirmations(Some(FailedState::Open), 100, cursor, app.clock.now(), deadline).await?;
        for failed in open.items.iter().filter(|failed| failed.reason == NOT_CONFIRMED) {
            match app.retry(failed, deadline).await {
                Ok(_) => retried += 1,
                // Settled by somebody else a moment ago.
                Err(Fault::Table(Error::Refused(Refusal::AlreadySettled))) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        cursor = open.next;
        // A page of what is left to a person must not hide for ever what lies behind it.
        if cursor.is_none() || retried >= 100 || deadline.passed() {
            break;
        }
    }
    Ok((StatusCode::ACCEPTED, Answer(Redriven { retried, more: cursor.is_some() })).into_response())
}

/// What stopped a retry.
enum Fault {
    Table(Error),
    Queue(holdfast_aws::Unanswered),
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Table(error) => error.into(),
            Fault::Queue(unanswered) => unanswered.into(),
        }
    }
}

impl App {
    /// Takes what has arrived in the dead-letter queue into the table: a message leaves the queue only when the table
    /// has it.
    async fn take_in(&self, deadline: Deadline) -> Result<(), Problem> {
        for _ in 0..MOST_RECEIVES {
            let messages = self.queues.receive_failed().await?;
            if messages.is_empty() || deadline.passed() {
                return Ok(());
            }
            for message in messages {
                self.take_in_one(&message, deadline).await?;
            }
        }
        Ok(())
    }

    async fn take_in_one(&self, message: &Received, deadline: Deadline) -> Result<(), Problem> {
        let now = self.clock.now();
        let failure = failure(&message.body);
        self.store.record_failure(&failure, now, deadline).await?;
        tracing::warn!(id = failure.id(), reason = failure.reason, "failed confirmation taken in");
        Ok(self.queues.delete_failed(message).await?)
    }

    /// Sends it through the queue again. It is sent before it is marked: one that is sent twice is confirmed once, one
    /// that is marked and never sent would wait for ever.
    async fn retry(&self, failed: &FailedConfirmation, deadline: Deadline) -> Result<FailedConfirmation, Fault> {
        if failed.state.is_settled() {
            return Err(Fault::Table(Refusal::AlreadySettled.into()));
        }
        let failed = self.store.lift_refusal(&failed.id, deadline).await.map_err(Fault::Table)?;
        self.queues.resend(&failed.body).await.map_err(Fault::Queue)?;
        self.store.mark_retrying(&failed, deadline).await.map_err(Fault::Table)
    }
}

/// What a message of the dead-letter queue says.
fn failure(body: &str) -> Failure {
    match serde_json::from_str::<Confirmation>(body) {
        Ok(confirmation) => Failure {
            // Stored without its reason, so that it is a confirmation like any other when it is sent again.
            body: serde_json::to_string(&Confirmation { reason: None, ..confirmation.clone() })
                .unwrap_or_else(|_| body.to_owned()),
            reservation_id: Some(confirmation.reservation_id),
            customer: Some(confirmation.customer),
            requested_at: Some(confirmation.requested_at_ms),
            payment_reference: confirmation.payment_reference,
            reason: confirmation.reason.unwrap_or_else(|| NOT_CONFIRMED.to_owned()),
        },
        Err(_) => Failure {
            reservation_id: None,
            customer: None,
            requested_at: None,
            payment_reference: None,
            reason: "unreadable".to_owned(),
            body: body.chars().take(MOST_BODY / 4).collect(),
        },
    }
}

fn failed_id(text: String) -> Result<String, Problem> {
    let valid = text
        .strip_prefix("fc_")
        .is_some_and(|rest| rest.len() == 52 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
    if valid { Ok(text) } else { Err(Refusal::FailedConfirmationNotFound.into()) }
}

//! Failed confirmations: list them, retry them, resolve them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Answer};
use holdfast_aws::dead_letters::{IngestError, Ingested, ingest_dead_letters};
use holdfast_domain::text::is_visible;
use holdfast_domain::{Confirmation, FailedConfirmation, FailedState, Invalid, NOT_CONFIRMED, Refusal, ReservationId};
use holdfast_http::budgets::{INGEST_BUDGET, REQUEST_BUDGET};
use holdfast_http::{Admin, ApiTime, List, ListQuery, NoQuery, Outcome, Problem, Query, Reader, Recorded, schema};
use holdfast_store::{Cursor, Deadline, Error, FailedSearch};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::App;

/// What a redrive is about, in the log of what admins do.
const ALL_FAILED: &str = "failed-confirmations";
/// Failed confirmations that a redrive reads at once.
const REDRIVE_PAGE_SIZE: u32 = 25;
/// Pages that a redrive reads at most.
const MAX_REDRIVE_PAGES: u32 = 20;
/// A redrive ends after the page with this many retries.
const MAX_REDRIVE_RETRIES: u32 = 100;
/// A page is always finished, so it is only begun with this much time left.
const MIN_REDRIVE_PAGE_TIME: Duration = Duration::from_secs(2);

/// A confirmation that failed.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedConfirmation)]
struct FailedView {
    #[schema(value_type = schema::FailedConfirmationId)]
    failed_confirmation_id: String,
    /// Null if the message could not be read, like the next two fields.
    #[schema(value_type = Option<schema::ReservationId>, required)]
    reservation_id: Option<String>,
    #[schema(value_type = Option<schema::CustomerId>, required)]
    customer_id: Option<String>,
    #[schema(value_type = Option<schema::PaymentReference>, required)]
    payment_reference: Option<String>,
    /// Why it failed: the code of the refusal, `not_confirmed` (no attempt got a response), `unreadable`, or
    /// `order_cancelled` (its order was cancelled).
    ///
    /// With `refund_required`, `already_confirmed` and `reservation_not_found`, the payment was not accepted.
    reason: String,
    /// The message, if it could not be read. A retry sends it again. Null: the fields above are all that it says.
    #[schema(required)]
    unreadable_message: Option<String>,
    #[schema(value_type = schema::FailedConfirmationState)]
    state: FailedState,
    #[schema(value_type = schema::Time)]
    first_failed_at: ApiTime,
    #[schema(value_type = schema::Time)]
    last_failed_at: ApiTime,
    /// The `sub` of the admin who resolved it; `retry` if its reservation became an order; `duplicate` if its payment was
    /// resolved in another failed confirmation.
    #[schema(required)]
    settled_by: Option<String>,
    #[schema(value_type = Option<schema::Time>, required)]
    settled_at: Option<ApiTime>,
    /// The admin's note.
    #[schema(required)]
    note: Option<String>,
    /// The `X-Request-Id` of the request to confirm. Null if the message does not say; also for an order that was cancelled.
    #[schema(required)]
    request_id: Option<String>,
    /// The id of that request's trace, which X-Ray shows with the parameter `Tracing`. Null if the message does not say.
    #[schema(required)]
    trace_id: Option<String>,
}

impl From<FailedConfirmation> for FailedView {
    fn from(failed: FailedConfirmation) -> Self {
        let unreadable = failed.reservation_id.is_none();
        let request = serde_json::from_str(&failed.body).ok().and_then(|message: Confirmation| message.request);
        let (request_id, trace_id) = request.map(|ids| (ids.request_id, ids.trace_id)).unzip();
        Self {
            failed_confirmation_id: failed.id,
            reservation_id: failed.reservation_id.map(String::from),
            customer_id: failed.customer.map(String::from),
            payment_reference: failed.payment_reference.map(String::from),
            reason: failed.reason,
            unreadable_message: unreadable.then_some(failed.body),
            state: failed.state,
            first_failed_at: ApiTime(failed.first_failed_at),
            last_failed_at: ApiTime(failed.last_failed_at),
            settled_by: failed.settled_by,
            settled_at: failed.settled_at.map(ApiTime),
            note: failed.note,
            request_id,
            trace_id: trace_id.flatten(),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListFailed {
    /// Filter by state. Default: all states. With a state, the oldest come first.
    #[param(value_type = Option<schema::FailedConfirmationState>)]
    state: Option<FailedState>,
    /// Filter by reservation. Default: all.
    #[param(value_type = Option<schema::ReservationId>)]
    reservation_id: Option<ReservationId>,
    #[param(ignore)]
    limit: Option<u32>,
    #[param(ignore)]
    cursor: Option<String>,
}

/// List failed confirmations
///
/// Confirmations that did not become an order; their payments may have to be refunded. New ones arrive in a dead-letter queue; they are recorded
/// here within about two minutes, and usually at once when the first page of this list is requested.
///
/// A failed confirmation whose reservation has become the order that it asked for is settled as `confirmed` when it is
/// listed. A page can have fewer items than `limit`, or none, and still have a `next_cursor`. The filters are read from
/// indexes, so a new failed confirmation may take seconds to appear.
#[utoipa::path(
    get, path = "/admin/failed-confirmations", operation_id = "listFailedConfirmations",
    tag = "Admin: failed confirmations",
    params(ListFailed, ListQuery),
    responses((status = 200, description = "A page of failed confirmations.", body = List<FailedView>)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Reader,
    Query(query): Query<ListFailed>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = ListQuery::new(query.limit, query.cursor);
    let (limit, cursor) = (page.limit()?, page.cursor()?);
    // On the first page only, and after the cursor was parsed: an invalid one changes nothing.
    if cursor.is_none() {
        app.ingest(deadline).await?;
    }
    let search = FailedSearch { state: query.state, reservation: query.reservation_id };
    let page = app.store.failed_confirmations(search, limit, cursor, app.clock.now(), deadline).await?;
    Ok(Answer(List::of(page, FailedView::from)).into_response())
}

/// Retry a failed confirmation
///
/// Re-queues the confirmation, with the time of the original request. If the reservation becomes an order, the failed
/// confirmation is settled as `confirmed`; otherwise it becomes open again.
///
/// If the payment was refused as owed back, a retry lifts that refusal: do not retry a payment that was refunded.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/{failed_confirmation_id}/retry", operation_id = "retryFailedConfirmation",
    tag = "Admin: failed confirmations",
    params(("failed_confirmation_id" = schema::FailedConfirmationId, Path)),
    responses((status = 202, description = "The confirmation was re-queued.", body = FailedView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_settled", "reservation_cancelled"])))
)]
pub(crate) async fn retry(
    State(app): State<Arc<App>>,
    admin: Admin,
    _: NoQuery,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id = failed_id(id)?;
    app.act(&admin, ("retry_failed_confirmation", &id, json!({})), deadline, async {
        let retrying = app.retry(&id, true, deadline).await?;
        Ok((StatusCode::ACCEPTED, Extension(Outcome("retried")), Answer(FailedView::from(retrying))).into_response())
    })
    .await
}

/// A request to resolve a failed confirmation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ResolveFailedConfirmation)]
pub(crate) struct Resolve {
    #[schema(value_type = schema::Note)]
    note: String,
}

/// Resolve a failed confirmation
///
/// Records that a person has dealt with it, and how. After that, the payment cannot make an order of the reservation: a
/// customer who sends it again is answered with `refund_required`. Without a payment, confirmations that are still in the
/// queue do not make an order either.
///
/// Resolve it before you refund the payment: `already_settled` means that it has become an order meanwhile.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/{failed_confirmation_id}/resolve", operation_id = "resolveFailedConfirmation",
    tag = "Admin: failed confirmations",
    params(("failed_confirmation_id" = schema::FailedConfirmationId, Path)),
    request_body(content = Resolve, example = json!({"note": "refund pay_999"})),
    responses((status = 200, description = "The failed confirmation is settled.", body = FailedView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_settled"])))
)]
pub(crate) async fn resolve(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Recorded { body, detail }: Recorded<Resolve>,
) -> Result<Response, Problem> {
    let characters = body.note.chars().count();
    if !is_visible(&body.note) || characters > 1_000 {
        return Err(Invalid::new("note", "must say what was done, in 1 to 1000 characters").into());
    }
    let (id, deadline) = (failed_id(id)?, Deadline::after(REQUEST_BUDGET));
    app.act(&admin, ("resolve_failed_confirmation", &id, detail), deadline, async {
        let (actor, note, now) = (admin.id.as_str(), Some(body.note.as_str()), app.clock.now());
        let resolved = app.store.resolve_failed(&id, actor, note, now, deadline).await?;
        let (failed_confirmation_id, reservation_id) = ids(&resolved);
        tracing::info!(failed_confirmation_id, reservation_id, "failed confirmation resolved");
        Ok((Extension(Outcome("resolved")), Answer(FailedView::from(resolved))).into_response())
    })
    .await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Redrive {
    /// The `next_cursor` of the previous answer. Default: start with the oldest.
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

/// The result of a redrive.
#[derive(Serialize, ToSchema)]
struct Redriven {
    /// Number of confirmations re-queued.
    retried: u32,
    /// Send it with the next request to continue. Null: all open failed confirmations that the index showed were read.
    #[schema(value_type = Option<schema::Cursor>, required)]
    next_cursor: Option<String>,
    /// Whether nothing was left: no page, and no message in the dead-letter queue. If not, repeat the request, with
    /// `next_cursor` if there is one.
    complete: bool,
}

/// Retry all failed confirmations that got no answer
///
/// Retries open failed confirmations with the reason `not_confirmed`, about a hundred per request, the oldest first.
/// Repeat the request until `complete` is true. Those with another reason are skipped: a person has to look at them, since
/// the payment may have been refunded.
#[utoipa::path(
    post, path = "/admin/failed-confirmations/redrive", operation_id = "redriveFailedConfirmations",
    tag = "Admin: failed confirmations",
    params(Redrive),
    responses((status = 202, description = "The confirmations were re-queued.", body = Redriven)),
    security(("bearer" = []))
)]
pub(crate) async fn redrive(
    State(app): State<Arc<App>>,
    admin: Admin,
    Query(query): Query<Redrive>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let detail = query.cursor.as_ref().map_or(json!({}), |cursor| json!({"cursor": cursor}));
    let cursor = ListQuery::new(None, query.cursor).cursor()?;
    let action = ("redrive_failed_confirmations", ALL_FAILED, detail);
    app.act(&admin, action, deadline, app.redrive(cursor, deadline)).await
}

/// Why an ingest or a retry failed.
enum FailedError {
    Table(Error),
    Queue(holdfast_aws::Unanswered),
}

impl From<IngestError> for FailedError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Table(error) => Self::Table(error),
            IngestError::Queue(unanswered) => Self::Queue(unanswered),
        }
    }
}

impl From<FailedError> for Problem {
    fn from(error: FailedError) -> Self {
        match error {
            FailedError::Table(error) => error.into(),
            FailedError::Queue(unanswered) => unanswered.into(),
        }
    }
}

impl App {
    /// Ingests messages from the dead-letter queue into the table.
    async fn ingest(&self, deadline: Deadline) -> Result<Ingested, FailedError> {
        let deadline = deadline.sooner(INGEST_BUDGET);
        Ok(ingest_dead_letters(self.queues.failed(), &self.store, &self.clock, deadline).await?)
    }

    /// Re-queues it. It is sent before it is marked: a message that is sent twice is confirmed once, but one that is
    /// marked and never sent would wait forever. With `lift`, the refusal of its payment is lifted before it is sent.
    async fn retry(&self, id: &str, lift: bool, deadline: Deadline) -> Result<FailedConfirmation, FailedError> {
        let failed = self.store.begin_retry(id, lift, deadline).await.map_err(FailedError::Table)?;
        self.queues.resend(&failed.body, deadline).await.map_err(FailedError::Queue)?;
        let (failed_confirmation_id, reservation_id) = ids(&failed);
        tracing::info!(failed_confirmation_id, reservation_id, "failed confirmation retried");
        self.store.mark_retrying(&failed, deadline).await.map_err(FailedError::Table)
    }

    /// Retries open failed confirmations that got no answer, from `cursor` on.
    async fn redrive(&self, mut cursor: Option<Cursor>, deadline: Deadline) -> Result<Response, Problem> {
        let starts = cursor.is_none();
        let mut ingested = if starts { self.ingest(deadline).await? } else { Ingested::default() };
        let mut retried = 0;
        for _ in 0..MAX_REDRIVE_PAGES {
            let (open, now) = (Some(FailedState::Open), self.clock.now());
            let page = self.store.failed_confirmations(open, REDRIVE_PAGE_SIZE, cursor, now, deadline).await?;
            for failed in page.items.iter().filter(|failed| failed.reason == NOT_CONFIRMED) {
                match self.retry(&failed.id, false, deadline).await {
                    Ok(_) => retried += 1,
                    // Settled concurrently, or its order was cancelled.
                    Err(FailedError::Table(Error::Refused(
                        Refusal::AlreadySettled | Refusal::ReservationCancelled,
                    ))) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            cursor = page.next;
            if cursor.is_none() || retried >= MAX_REDRIVE_RETRIES || deadline.left() < MIN_REDRIVE_PAGE_TIME {
                break;
            }
        }
        if cursor.is_none() && !starts {
            ingested = self.ingest(deadline).await?;
        }
        // What was ingested a moment ago may not be in the index yet.
        let complete = cursor.is_none() && ingested == (Ingested { messages: 0, complete: true });
        let next_cursor = cursor.map(|cursor| cursor.encode());
        Ok((StatusCode::ACCEPTED, Answer(Redriven { retried, next_cursor, complete })).into_response())
    }
}

/// The ids that its log lines have.
fn ids(failed: &FailedConfirmation) -> (&str, Option<&str>) {
    (&failed.id, failed.reservation_id.as_ref().map(ReservationId::as_str))
}

fn failed_id(text: String) -> Result<String, Problem> {
    let valid = text
        .strip_prefix("fc_")
        .is_some_and(|rest| rest.len() == 52 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
    if valid { Ok(text) } else { Err(Refusal::FailedConfirmationNotFound.into()) }
}

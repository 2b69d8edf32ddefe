//! Any customer's reservations and orders.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Answer};
use holdfast_aws::log;
use holdfast_domain::{
    CustomerId, HoldRelease, Invalid, OrderCancellation, PaymentReference, ProductId, ReservationId, Status,
};
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{
    Admin, ApiTime, List, ListQuery, NoQuery, Outcome, Problem, Query, Reader, Recorded, ReservationView, codes,
    path_id, schema,
};
use holdfast_store::{Deadline, Search};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::actions::UNCHANGED;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListReservations {
    /// Filter by payment: orders that it confirmed, also cancelled ones.
    #[param(value_type = Option<schema::PaymentReference>)]
    payment_reference: Option<PaymentReference>,
    /// Filter by customer. Default: all.
    #[param(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
    /// Filter by status. Default: all.
    #[param(value_type = Option<schema::ReservationStatus>)]
    status: Option<Status>,
    /// Filter by product. Default: all.
    #[param(value_type = Option<schema::ProductId>)]
    product_id: Option<ProductId>,
    /// Created at this time or later.
    #[param(value_type = Option<schema::GivenTime>)]
    from: Option<ApiTime>,
    /// Created before this time.
    #[param(value_type = Option<schema::GivenTime>)]
    to: Option<ApiTime>,
    #[param(ignore)]
    limit: Option<u32>,
    #[param(ignore)]
    cursor: Option<String>,
}

/// List all customers' reservations
///
/// Returns the reservations that match all filters, newest first. The list is read from an index, so a change may take
/// seconds to appear. A payment that serves two orders shows both.
#[utoipa::path(
    get, path = "/admin/reservations", operation_id = "listAllReservations", tag = "Admin: reservations",
    params(ListReservations, ListQuery),
    responses((status = 200, description = "A page of reservations, each with its customer.",
        body = List<ReservationView>)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Reader,
    Query(query): Query<ListReservations>,
) -> Result<Response, Problem> {
    let page = ListQuery::new(query.limit, query.cursor);
    let (limit, cursor) = (page.limit()? as usize, page.cursor()?);
    let (now, deadline) = (app.clock.now(), Deadline::after(REQUEST_BUDGET));
    let search = Search {
        customer: query.customer_id,
        payment: query.payment_reference,
        status: query.status,
        product: query.product_id,
        from: query.from.map(|ApiTime(at)| at),
        to: query.to.map(|ApiTime(at)| at),
    };
    if search.to.is_some_and(|to| search.from.is_some_and(|from| to <= from)) {
        return Err(Invalid::new("to", "must be after from").into());
    }
    let found = app.store.reservations(&search, now, limit, cursor, deadline).await?;
    Ok(Answer(List::of(found, |reservation| ReservationView::for_admin(reservation, now))).into_response())
}

/// Get any customer's reservation
///
/// Returns the reservation or order with its customer.
#[utoipa::path(
    get, path = "/admin/reservations/{reservation_id}", operation_id = "getAnyReservation", tag = "Admin: reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    responses((status = 200, description = "The reservation.", body = ReservationView)),
    security(("bearer" = []))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    _: Reader,
    NoQuery: NoQuery,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: ReservationId = path_id(id, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&id);
    // Before the read: a hold that is confirmed or extended while its answer is on the way must not show as expired.
    let now = app.clock.now();
    let found = app.store.any_reservation(&id, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(Answer(ReservationView::for_admin(found, now)).into_response())
}

/// A request to release holds.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReleaseHolds)]
pub(crate) struct ReleaseHolds {
    #[schema(value_type = schema::FreeText)]
    reason: String,
}

impl ReleaseHolds {
    /// The command of this admin.
    pub(crate) fn of(self, admin: &Admin) -> Result<HoldRelease, Invalid> {
        HoldRelease { reason: self.reason, actor: admin.id.to_string() }.checked()
    }
}

/// Release a hold
///
/// Cancels any customer's hold, also one that has expired: its units are free, and no payment makes an order of it any
/// more. Idempotent: the first reason stays.
#[utoipa::path(
    post, path = "/admin/reservations/{reservation_id}/release", operation_id = "releaseReservation",
    tag = "Admin: reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = ReleaseHolds, example = json!({"reason": "event called off"})),
    responses((status = 200, description = "The reservation is cancelled.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_confirmed"])))
)]
pub(crate) async fn release(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Recorded { body, detail }: Recorded<ReleaseHolds>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ReservationId = path_id(id, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&id);
    let command = body.of(&admin)?;
    app.act(&admin, ("release_reservation", id.as_str(), detail), deadline, async {
        let now = app.clock.now();
        let released = app.store.release_hold(&id, &command, now, deadline).await?;
        // Another request's reason stays.
        let own = released.cancellation.as_ref() == Some(&command.record(now));
        let outcome = if own { Outcome("released") } else { UNCHANGED };
        Ok((Extension(outcome), Answer(ReservationView::for_admin(released, now))).into_response())
    })
    .await
}

/// A request to give any customer's order back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CancelAnyOrder)]
pub(crate) struct CancelAnyOrder {
    #[schema(value_type = schema::FreeText)]
    reason: String,
    /// Whether the units go back on sale. If not, they leave the stock, with an entry of the ledger.
    restock: bool,
}

/// Give any customer's order back
///
/// As `POST /orders/{order_id}/cancel`, for an admin.
#[utoipa::path(
    post, path = "/admin/orders/{order_id}/cancel", operation_id = "cancelAnyOrder", tag = "Admin: reservations",
    params(("order_id" = schema::ReservationId, Path)),
    request_body(content = CancelAnyOrder, example = json!({"reason": "event called off", "restock": false})),
    responses((status = 200, description = "The order is cancelled.", body = ReservationView)),
    security(("bearer" = []))
)]
pub(crate) async fn cancel_order(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Recorded { body, detail }: Recorded<CancelAnyOrder>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let order_id: ReservationId = path_id(id, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&order_id);
    let (reason, restock, actor) = (body.reason, body.restock, admin.id.to_string());
    let command = OrderCancellation { order_id, customer: None, reason, restock, actor }.checked()?;
    app.act(&admin, ("cancel_order", command.order_id.as_str(), detail), deadline, async {
        let now = app.clock.now();
        let order = app.store.cancel_order(&command, now, deadline).await?;
        let own = order.cancellation.as_ref() == Some(&command.record(now));
        let outcome = if own { Outcome("order_cancelled") } else { UNCHANGED };
        Ok((Extension(outcome), Answer(ReservationView::for_admin(order, now))).into_response())
    })
    .await
}

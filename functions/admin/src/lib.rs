//! The admin API: products, stock, all customers' reservations, failed confirmations.
//!
//! - `products`: create, change and list products; adjust the stock, with a reason in the ledger
//! - `failed`: list, retry, resolve and redrive failed confirmations
//!
//! Every handler takes an [`Admin`](holdfast_http::Admin), so each requires an admin's token.

mod failed;
mod products;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Extension, Json as Answer, Router};
use holdfast_aws::clock::Clock;
use holdfast_aws::log;
use holdfast_aws::queues::Queues;
use holdfast_domain::{OrderCancellation, ProductId, ReservationId, Status};
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{
    Admin, Json, List, ListQuery, NoQuery, Outcome, Problem, Query, ReservationView, codes, path_id, schema,
};
use holdfast_store::{Deadline, Store};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The dead-letter queue of confirmations, and the queue for retries.
    pub queues: Queues,
    /// The time.
    pub clock: Clock,
    /// The limit per customer of a product that is made without one; `None` for no limit.
    pub default_max_per_customer: Option<u32>,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(
    paths(
        products::create,
        products::list,
        products::change,
        products::adjust,
        products::ledger,
        reservations,
        reservation,
        cancel_order,
        failed::list,
        failed::redrive,
        failed::retry,
        failed::resolve
    ),
    components(schemas(schema::IdempotencyKey))
)]
pub struct Description;

/// The function's routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/admin/products", post(products::create).get(products::list))
        .route("/admin/products/{product_id}", patch(products::change))
        .route("/admin/products/{product_id}/stock", post(products::adjust))
        .route("/admin/products/{product_id}/ledger", get(products::ledger))
        .route("/admin/reservations", get(reservations))
        .route("/admin/reservations/{reservation_id}", get(reservation))
        .route("/admin/orders/{order_id}/cancel", post(cancel_order))
        .route("/admin/failed-confirmations", get(failed::list))
        .route("/admin/failed-confirmations/redrive", post(failed::redrive))
        .route("/admin/failed-confirmations/{failed_confirmation_id}/retry", post(failed::retry))
        .route("/admin/failed-confirmations/{failed_confirmation_id}/resolve", post(failed::resolve))
        .with_state(Arc::new(app))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListReservations {
    /// Filter by status. Default: all.
    #[param(value_type = Option<schema::ReservationStatus>)]
    status: Option<Status>,
    /// Filter by product. Default: all.
    #[param(value_type = Option<schema::ProductId>)]
    product_id: Option<ProductId>,
    #[param(ignore)]
    limit: Option<u32>,
    #[param(ignore)]
    cursor: Option<String>,
}

/// List all customers' reservations
///
/// Returns reservations in no particular order. It scans the whole table: use it to investigate, not for every page view.
#[utoipa::path(
    get, path = "/admin/reservations", operation_id = "listAllReservations", tag = "Admin: reservations",
    params(ListReservations, ListQuery),
    responses((status = 200, description = "A page of reservations, each with its customer.",
        body = List<ReservationView>)),
    security(("bearer" = []))
)]
async fn reservations(
    State(app): State<Arc<App>>,
    _: Admin,
    Query(query): Query<ListReservations>,
) -> Result<Response, Problem> {
    let page = ListQuery::new(query.limit, query.cursor);
    let (limit, cursor) = (page.limit()? as usize, page.cursor()?);
    let (now, deadline) = (app.clock.now(), Deadline::after(REQUEST_BUDGET));
    let found = app.store.reservations(query.status, query.product_id.as_ref(), now, limit, cursor, deadline).await?;
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
async fn reservation(
    State(app): State<Arc<App>>,
    _: Admin,
    NoQuery: NoQuery,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: ReservationId = path_id(id, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&id);
    let found = app.store.any_reservation(&id, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(Answer(ReservationView::for_admin(found, app.clock.now())).into_response())
}

/// A request to give any customer's order back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CancelAnyOrder)]
struct CancelAnyOrder {
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
async fn cancel_order(
    State(app): State<Arc<App>>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    Json(body): Json<CancelAnyOrder>,
) -> Result<Response, Problem> {
    let order_id: ReservationId = path_id(id, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&order_id);
    let (reason, restock, actor) = (body.reason, body.restock, admin.into());
    let command = OrderCancellation { order_id, customer: None, reason, restock, actor }.checked()?;
    let now = app.clock.now();
    let order = app.store.cancel_order(&command, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok((Extension(Outcome("order_cancelled")), Answer(ReservationView::for_admin(order, now))).into_response())
}

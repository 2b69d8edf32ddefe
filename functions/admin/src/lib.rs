//! The admin API: products, stock, all customers' reservations, failed confirmations.
//!
//! - `products`: create, change and list products; adjust the stock, with a reason in the ledger
//! - `failed`: list, retry, resolve and redrive failed confirmations
//!
//! Every handler takes an [`Admin`](holdfast_http::Admin), so each requires an admin's token.

mod failed;
mod products;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json as Answer, Router};
use holdfast_aws::clock::Clock;
use holdfast_aws::queues::Queues;
use holdfast_domain::{ProductId, Status};
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{Admin, List, ListQuery, Problem, Query, ReservationView, schema};
use holdfast_store::{Deadline, Store};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};

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
    get, path = "/admin/reservations", operation_id = "listAllReservations", tag = "Admin: products",
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

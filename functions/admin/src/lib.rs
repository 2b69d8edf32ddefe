//! The admin API: products, stock, all customers' reservations, failed confirmations; and the page that uses it.
//!
//! - `products`: create, change and list products; adjust the stock, with a reason in the ledger
//! - `audit`: whether a product's books agree
//! - `reservations`: find, release and cancel any customer's reservations and orders
//! - `failed`: list, retry, resolve and redrive failed confirmations
//! - `actions`: the log of what admins do
//!
//! - `console`: the page, which is public
//!
//! A handler that changes something takes an [`Admin`](holdfast_http::Admin) and makes its change in `App::act`, which
//! writes it down; one that only reads takes a [`Reader`](holdfast_http::Reader), so that an auditor may call it.

mod actions;
mod audit;
pub mod console;
mod failed;
mod products;
mod reservations;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, patch, post};
use holdfast_aws::clock::Clock;
use holdfast_aws::queues::Queues;
use holdfast_http::schema;
use holdfast_store::Store;
use utoipa::OpenApi;

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
        audit::audit,
        products::release_holds,
        reservations::list,
        reservations::get,
        reservations::release,
        reservations::cancel_order,
        failed::list,
        failed::redrive,
        failed::retry,
        failed::resolve,
        actions::list,
        console::page,
        console::file,
        console::config_file
    ),
    components(schemas(schema::IdempotencyKey))
)]
pub struct Description;

/// The function's routes, without the console's.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/admin/products", post(products::create).get(products::list))
        .route("/admin/products/{product_id}", patch(products::change))
        .route("/admin/products/{product_id}/stock", post(products::adjust))
        .route("/admin/products/{product_id}/ledger", get(products::ledger))
        .route("/admin/products/{product_id}/audit", get(audit::audit))
        .route("/admin/products/{product_id}/release-holds", post(products::release_holds))
        .route("/admin/reservations", get(reservations::list))
        .route("/admin/reservations/{reservation_id}", get(reservations::get))
        .route("/admin/reservations/{reservation_id}/release", post(reservations::release))
        .route("/admin/orders/{order_id}/cancel", post(reservations::cancel_order))
        .route("/admin/failed-confirmations", get(failed::list))
        .route("/admin/failed-confirmations/redrive", post(failed::redrive))
        .route("/admin/failed-confirmations/{failed_confirmation_id}/retry", post(failed::retry))
        .route("/admin/failed-confirmations/{failed_confirmation_id}/resolve", post(failed::resolve))
        .route("/admin/actions", get(actions::list))
        .with_state(Arc::new(app))
}

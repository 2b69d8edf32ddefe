//! Reads products and where their units are. Anyone may.
//!
//! It also answers for every path and method that no route of API Gateway knows: see `elsewhere`.

mod elsewhere;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::ProductId;
use holdfast_http::{List, ListQuery, Problem, ProductView, Query, cached, path_id};
use holdfast_store::{Deadline, Store};

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
}

/// The function's routes.
pub fn router(app: App) -> Router {
    let own = Router::new().route("/products", get(list)).route("/products/{product_id}", get(one));
    elsewhere::refuse(own).with_state(Arc::new(app))
}

/// Stock moves all the time: a copy is good for a second, as what the store remembers for us is.
const CACHE_SECONDS: u64 = 1;

async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products_lately(query.limit()?, query.cursor()?, deadline).await?;
    cached(&headers, CACHE_SECONDS, &List::of(page, |(product, stock)| ProductView::new(product, stock)))
}

async fn one(State(app): State<Arc<App>>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, "product_not_found")?;
    let (product, stock) = app.store.product_lately(&id, Deadline::after(REQUEST_BUDGET)).await?;
    cached(&headers, CACHE_SECONDS, &ProductView::new(product, stock))
}

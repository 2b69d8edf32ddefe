//! Reads products and where their units are. Anyone may.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::{Product, ProductId};
use holdfast_http::{List, ListQuery, Problem, ProductView, Query, path_id};
use holdfast_store::{Deadline, Store};

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
}

/// The function's routes.
pub fn router(app: App) -> Router {
    Router::new().route("/products", get(list)).route("/products/{product_id}", get(one)).with_state(Arc::new(app))
}

/// Stock moves all the time: a copy is good for a second.
const CACHE: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=1")];

async fn list(State(app): State<Arc<App>>, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products(query.limit()?, query.cursor()?, deadline).await?;
    let products: Vec<&Product> = page.items.iter().collect();
    let mut stock = app.store.stock(&products, deadline).await?;
    let view = |product: Product| {
        let stock = stock.remove(&product.product_id).unwrap_or_default();
        ProductView::new(product, stock)
    };
    Ok((CACHE, Json(List::of(page, view))).into_response())
}

async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ProductId = path_id(id, "product_not_found")?;
    let product = app.store.product(&id, deadline).await?;
    let stock = app.store.stock(&[&product], deadline).await?.remove(&id).unwrap_or_default();
    Ok((CACHE, Json(ProductView::new(product, stock))).into_response())
}

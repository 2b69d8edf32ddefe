//! Reads products and where their units are, and shows the API's description (`docs`). Anyone may.

mod docs;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::{Product, ProductId};
use holdfast_http::{List, ListQuery, Problem, ProductView, Query, path_id, schema};
use holdfast_store::{Deadline, Store};
use utoipa::OpenApi;

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(paths(list, one, docs::description, docs::page, docs::file))]
pub struct Description;

/// The function's routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/products", get(list))
        .route("/products/{product_id}", get(one))
        .merge(docs::router())
        .with_state(Arc::new(app))
}

/// Stock moves all the time: a copy is good for a second.
const CACHE: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=1")];

/// List products
///
/// All products, by id.
#[utoipa::path(
    get, path = "/products", operation_id = "listProducts", tag = "Products",
    params(ListQuery),
    responses((status = 200, description = "A page of products.", body = List<ProductView>, headers(
        ("Cache-Control" = String, description = "How long a copy is good for."))))
)]
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

/// Get a product
///
/// The product, and where its units are.
#[utoipa::path(
    get, path = "/products/{product_id}", operation_id = "getProduct", tag = "Products",
    params(("product_id" = schema::ProductId, Path)),
    responses((status = 200, description = "The product.", body = ProductView, headers(
        ("Cache-Control" = String, description = "How long a copy is good for."))))
)]
async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ProductId = path_id(id, "product_not_found")?;
    let product = app.store.product(&id, deadline).await?;
    let stock = app.store.stock(&[&product], deadline).await?.remove(&id).unwrap_or_default();
    Ok((CACHE, Json(ProductView::new(product, stock))).into_response())
}

//! Reads products and where their units are, and shows the API's description (`docs`). Anyone may.
//!
//! It also answers for every path and method that no route of API Gateway knows: see `elsewhere`.

mod docs;
mod elsewhere;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::ProductId;
use holdfast_http::{List, ListQuery, Problem, ProductView, Query, cached, path_id, schema};
use holdfast_store::{Deadline, Store};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};

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
    let own =
        Router::new().route("/products", get(list)).route("/products/{product_id}", get(one)).merge(docs::router());
    elsewhere::refuse(own).with_state(Arc::new(app))
}

/// Stock moves all the time: a copy is good for a second, as what the store remembers for us is.
const CACHE_SECONDS: u64 = 1;

/// [`ListQuery`] but that it ignores every other parameter, as all that is public does.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListProducts {
    /// The most items of the page. 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

/// List products
///
/// All products, by id.
#[utoipa::path(
    get, path = "/products", operation_id = "listProducts", tag = "Products",
    params(ListProducts, ("If-None-Match" = Option<String>, Header, description = "The `ETag` of a copy.")),
    responses(
        (status = 200, description = "A page of products.", body = List<ProductView>, headers(
            ("ETag" = String, description = "Names this very answer."),
            ("Cache-Control" = String, description = "How long a copy is good for."))),
        (status = 304, description = "The copy is as it should be.", headers(
            ("ETag" = String, description = "Names this very answer."),
            ("Cache-Control" = String, description = "How long a copy is good for."))))
)]
async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(ListProducts { limit, cursor }): Query<ListProducts>,
) -> Result<Response, Problem> {
    let query = ListQuery::new(limit, cursor);
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products_with_stock(query.limit()?, query.cursor()?, deadline).await?;
    cached(&headers, CACHE_SECONDS, &List::of(page, |(product, stock)| ProductView::new(product, stock)))
}

/// Get a product
///
/// The product, and where its units are.
#[utoipa::path(
    get, path = "/products/{product_id}", operation_id = "getProduct", tag = "Products",
    params(
        ("product_id" = schema::ProductId, Path),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of a copy.")),
    responses(
        (status = 200, description = "The product.", body = ProductView, headers(
            ("ETag" = String, description = "Names this very answer."),
            ("Cache-Control" = String, description = "How long a copy is good for."))),
        (status = 304, description = "The copy is as it should be.", headers(
            ("ETag" = String, description = "Names this very answer."),
            ("Cache-Control" = String, description = "How long a copy is good for."))))
)]
async fn one(State(app): State<Arc<App>>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, "product_not_found")?;
    let (product, stock) = app.store.product_with_stock(&id, Deadline::after(REQUEST_BUDGET)).await?;
    cached(&headers, CACHE_SECONDS, &ProductView::new(product, stock))
}

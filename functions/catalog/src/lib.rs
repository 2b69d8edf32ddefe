//! Public reads: products with their stock, and the API description (`docs`).
//!
//! It is also the `$default` route of API Gateway, for unknown paths and methods: see `other_routes`.

mod docs;
mod other_routes;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use holdfast_aws::clock::Clock;
use holdfast_domain::ProductId;
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{List, ListQuery, Problem, ProductView, Query, cached, codes, path_id, schema};
use holdfast_store::{Deadline, Store};
use serde::Deserialize;
use utoipa::OpenApi;

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The time.
    pub clock: Clock,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(paths(list_products, get_product, docs::description, docs::page, docs::file))]
pub struct Description;

/// The function's routes.
pub fn router(app: App) -> Router {
    let own = Router::new()
        .route("/products", get(list_products))
        .route("/products/{product_id}", get(get_product))
        .merge(docs::router());
    other_routes::refuse(own).with_state(Arc::new(app))
}

/// Stock changes all the time, and the store keeps what it shows for a second, too.
const CACHE_SECONDS: u64 = 1;

/// [`ListQuery`], but it ignores other parameters, as all public routes do.
#[derive(Deserialize)]
struct ListProducts {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// List products
///
/// Returns all products that are not archived, sorted by id, as they were at most two seconds ago (`stock_at`). A new product
/// may appear a second late.
#[utoipa::path(
    get, path = "/products", operation_id = "listProducts", tag = "Products",
    params(ListQuery),
    responses((status = 200, description = "A page of products.", body = List<ProductView>)),
    extensions(("x-cached" = json!(true)))
)]
async fn list_products(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(ListProducts { limit, cursor }): Query<ListProducts>,
) -> Result<Response, Problem> {
    let query = ListQuery::new(limit, cursor);
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products_with_stock(query.limit()?, query.cursor()?, deadline).await?;
    let now = app.clock.now();
    let counts_down = page.items.iter().any(|shown| shown.product.counts_down(now));
    let list = List::of(page, |shown| ProductView::shown(shown, now));
    cached(&headers, CACHE_SECONDS, counts_down, &list)
}

/// Get a product
///
/// Returns a product with its stock, as they were at most two seconds ago (`stock_at`).
#[utoipa::path(
    get, path = "/products/{product_id}", operation_id = "getProduct", tag = "Products",
    params(("product_id" = schema::ProductId, Path)),
    responses((status = 200, description = "The product.", body = ProductView)),
    extensions(("x-cached" = json!(true)))
)]
async fn get_product(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, &codes::PRODUCT_NOT_FOUND)?;
    let shown = app.store.product_with_stock(&id, Deadline::after(REQUEST_BUDGET)).await?;
    let now = app.clock.now();
    cached(&headers, CACHE_SECONDS, shown.product.counts_down(now), &ProductView::shown(shown, now))
}

//! Products and their stock.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::{Currency, HoldSeconds, Product, ProductChange, ProductId, ProductStatus};
use holdfast_http::{Admin, ApiTime, Json, Key, List, ListQuery, Problem, ProductView, Query, path_id, some};
use holdfast_store::{Adjustment, Deadline, LedgerEntry, Stock};
use serde::{Deserialize, Serialize};

use crate::App;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    product_id: ProductId,
    name: String,
    price_minor: u64,
    currency: Currency,
    total: u64,
    shards: Option<u32>,
    hold_seconds: Option<HoldSeconds>,
    max_per_customer: Option<u32>,
    sale_starts_at: Option<ApiTime>,
    sale_ends_at: Option<ApiTime>,
    status: Option<ProductStatus>,
}

/// `POST /admin/products`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Admin(admin): Admin,
    Json(body): Json<Create>,
) -> Result<Response, Problem> {
    let product = Product {
        product_id: body.product_id,
        name: body.name,
        price_minor: body.price_minor,
        currency: body.currency,
        total: body.total,
        shards: body.shards.unwrap_or_else(|| Product::default_shards(body.total)),
        hold_seconds: body.hold_seconds.unwrap_or(HoldSeconds::DEFAULT),
        max_per_customer: body.max_per_customer,
        sale_starts_at: body.sale_starts_at.map(|at| at.0),
        sale_ends_at: body.sale_ends_at.map(|at| at.0),
        status: body.status.unwrap_or(ProductStatus::OnSale),
        version: 1,
    }
    .checked()?;
    app.store.create_product(&product, admin.as_str(), app.clock.now(), Deadline::after(REQUEST_BUDGET)).await?;
    let stock = Stock { available: product.total, ..Stock::default() };
    Ok((StatusCode::CREATED, Answer(ProductView::new(product, stock))).into_response())
}

/// `GET /admin/products`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Admin,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products(query.limit()?, query.cursor()?, deadline).await?;
    let mut stock = app.store.stock(&page.items.iter().collect::<Vec<_>>(), deadline).await?;
    let view = |product: Product| {
        let stock = stock.remove(&product.product_id).unwrap_or_default();
        ProductView::new(product, stock)
    };
    Ok(Answer(List::of(page, view)).into_response())
}

/// A field that is absent stays; `null` takes an optional one away.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    version: u64,
    name: Option<String>,
    price_minor: Option<u64>,
    hold_seconds: Option<HoldSeconds>,
    #[serde(default, deserialize_with = "some")]
    max_per_customer: Option<Option<u32>>,
    #[serde(default, deserialize_with = "some")]
    sale_starts_at: Option<Option<ApiTime>>,
    #[serde(default, deserialize_with = "some")]
    sale_ends_at: Option<Option<ApiTime>>,
    status: Option<ProductStatus>,
}

/// `PATCH /admin/products/{product_id}`
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    _: Admin,
    Path(id): Path<String>,
    Json(body): Json<Change>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ProductId = path_id(id, "product_not_found")?;
    let at = |time: Option<Option<ApiTime>>| time.map(|time| time.map(|time| time.0));
    let change = ProductChange {
        name: body.name,
        price_minor: body.price_minor,
        hold_seconds: body.hold_seconds,
        max_per_customer: body.max_per_customer,
        sale_starts_at: at(body.sale_starts_at),
        sale_ends_at: at(body.sale_ends_at),
        status: body.status,
    };
    let product = app.store.change_product(&id, body.version, change, deadline).await?;
    let stock = app.store.stock(&[&product], deadline).await?.remove(&id).unwrap_or_default();
    Ok(Answer(ProductView::new(product, stock)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adjust {
    delta: i64,
    reason: String,
    reference: Option<String>,
    expected_total: Option<u64>,
}

/// An entry of the ledger, and the answer to an adjustment.
#[derive(Serialize)]
struct EntryView {
    entry_id: String,
    delta: i64,
    total_after: u64,
    reason: String,
    reference: Option<String>,
    actor: String,
    created_at: ApiTime,
}

impl From<LedgerEntry> for EntryView {
    fn from(entry: LedgerEntry) -> Self {
        let LedgerEntry { entry_id, delta, total_after, reason, reference, actor, created_at } = entry;
        Self { entry_id, delta, total_after, reason, reference, actor, created_at: ApiTime(created_at) }
    }
}

/// `POST /admin/products/{product_id}/stock`
pub(crate) async fn adjust(
    State(app): State<Arc<App>>,
    Admin(admin): Admin,
    Path(id): Path<String>,
    Key(key): Key,
    Json(body): Json<Adjust>,
) -> Result<Response, Problem> {
    let adjustment = Adjustment {
        product_id: path_id(id, "product_not_found")?,
        delta: body.delta,
        reason: body.reason,
        reference: body.reference,
        expected_total: body.expected_total,
        actor: admin.into(),
        key,
    }
    .checked()?;
    let adjusted = app.store.adjust(&adjustment, app.clock.now(), Deadline::after(REQUEST_BUDGET)).await?;
    let mut answer = Answer(EntryView::from(adjusted.entry)).into_response();
    if adjusted.replayed {
        answer.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// `GET /admin/products/{product_id}/ledger`
pub(crate) async fn ledger(
    State(app): State<Arc<App>>,
    _: Admin,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, "product_not_found")?;
    let page = app.store.ledger(&id, query.limit()?, query.cursor()?, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(Answer(List::of(page, EntryView::from)).into_response())
}

//! Products and their stock.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_domain::{
    Adjustment, Currency, DEFAULT_LATE_PAYMENT_SECONDS, HoldSeconds, Product, ProductChange, ProductId, ProductStatus,
};
use holdfast_http::{Admin, ApiTime, Json, Key, List, ListQuery, Problem, ProductView, Query, path_id, schema, some};
use holdfast_store::{Deadline, LedgerEntry, Stock};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;

/// A product to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateProduct)]
pub(crate) struct Create {
    #[schema(value_type = schema::ProductId)]
    product_id: ProductId,
    #[schema(value_type = schema::Name)]
    name: String,
    #[schema(value_type = schema::Price)]
    price_minor: u64,
    #[schema(value_type = schema::PriceCurrency)]
    currency: String,
    #[schema(value_type = schema::Total)]
    total: u64,
    #[schema(value_type = Option<schema::Shards>)]
    shards: Option<u32>,
    /// How long a hold lasts. 600 unless given.
    #[schema(value_type = Option<schema::Seconds>)]
    hold_seconds: Option<HoldSeconds>,
    /// How long after a hold's end a payment is still honored. Default: 86400 (a day).
    #[schema(value_type = Option<schema::LatePaymentSeconds>)]
    late_payment_seconds: Option<u32>,
    /// The most units that one customer may hold and own. Default: no limit yet. Each customer's units are counted all
    /// the same, so a limit that is set later counts what was bought before it. Null: no limit, now or later, and nothing
    /// is counted, which saves two write units per line of a reservation.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<u32>, format = Int64, minimum = 1, maximum = 4_294_967_295_i64)]
    max_per_customer: Option<Option<u32>>,
    /// From when it may be reserved.
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_starts_at: Option<ApiTime>,
    /// Until when it may be reserved. Later than `sale_starts_at`.
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_ends_at: Option<ApiTime>,
    /// `on_sale` unless given.
    #[schema(value_type = Option<schema::ProductStatus>)]
    status: Option<ProductStatus>,
}

/// Make a product
///
/// Its total is the first entry of its ledger.
#[utoipa::path(
    post, path = "/admin/products", operation_id = "createProduct", tag = "Admin: products",
    request_body(content = Create, example = json!({"product_id": "tee-black", "name": "Black tee",
        "price_minor": 2_500, "currency": "EUR", "total": 3})),
    responses((status = 201, description = "The product is there.", body = ProductView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["product_exists"])))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Admin(admin): Admin,
    Json(body): Json<Create>,
) -> Result<Response, Problem> {
    let product = Product {
        product_id: body.product_id,
        name: body.name,
        price_minor: body.price_minor,
        currency: Currency::in_force(&body.currency)?,
        total: body.total,
        shards: body.shards.unwrap_or_else(|| Product::default_shards(body.total)),
        hold_seconds: body.hold_seconds.unwrap_or(HoldSeconds::DEFAULT),
        late_payment_seconds: body.late_payment_seconds.unwrap_or(DEFAULT_LATE_PAYMENT_SECONDS),
        max_per_customer: body.max_per_customer.flatten(),
        // Null says that there will never be a limit; who says nothing may want one later.
        counts_per_customer: body.max_per_customer != Some(None),
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

/// List products
///
/// All products, by id, as everybody sees them.
#[utoipa::path(
    get, path = "/admin/products", operation_id = "listProductsAsAdmin", tag = "Admin: products",
    params(ListQuery),
    responses((status = 200, description = "A page of products.", body = List<ProductView>)),
    security(("bearer" = []))
)]
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
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChangeProduct)]
pub(crate) struct Change {
    /// The version that the change is made on: if it is another by now, nothing happens.
    version: u64,
    #[schema(value_type = Option<schema::Name>)]
    name: Option<String>,
    #[schema(value_type = Option<schema::Price>)]
    price_minor: Option<u64>,
    /// How long a hold lasts. Holds that were made before keep theirs.
    #[schema(value_type = Option<schema::Seconds>)]
    hold_seconds: Option<HoldSeconds>,
    /// How long after a hold's end a payment is still honored. Holds that were made before keep theirs.
    #[schema(value_type = Option<schema::LatePaymentSeconds>)]
    late_payment_seconds: Option<u32>,
    /// The most units that one customer may hold and own, what they bought before included. Null: any number. Refused
    /// where `counts_per_customer` is false.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<u32>, format = Int64, minimum = 1, maximum = 4_294_967_295_i64)]
    max_per_customer: Option<Option<u32>>,
    /// From when it may be reserved. Null: at once.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_starts_at: Option<Option<ApiTime>>,
    /// Until when it may be reserved. Null: for ever.
    #[serde(default, deserialize_with = "some")]
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_ends_at: Option<Option<ApiTime>>,
    #[schema(value_type = Option<schema::ProductStatus>)]
    status: Option<ProductStatus>,
}

/// Change a product
///
/// Once it has returned, nobody reserves on the old price, limit or dates. The total is changed by its stock.
#[utoipa::path(
    patch, path = "/admin/products/{product_id}", operation_id = "changeProduct", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path)),
    request_body(content = Change, example = json!({"version": 1, "price_minor": 1_900})),
    responses((status = 200, description = "The product, one version on.", body = ProductView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["version_mismatch"])))
)]
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
        late_payment_seconds: body.late_payment_seconds,
        max_per_customer: body.max_per_customer,
        sale_starts_at: at(body.sale_starts_at),
        sale_ends_at: at(body.sale_ends_at),
        status: body.status,
    };
    let product = app.store.change_product(&id, body.version, change, deadline).await?;
    let stock = app.store.stock(&[&product], deadline).await?.remove(&id).unwrap_or_default();
    Ok(Answer(ProductView::new(product, stock)).into_response())
}

/// A change of a product's total.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdjustStock)]
pub(crate) struct Adjust {
    /// Units that came in, or went away where negative. Not 0.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    delta: i64,
    #[schema(value_type = schema::Words)]
    reason: String,
    /// The document behind it.
    #[schema(value_type = Option<schema::Words>)]
    reference: Option<String>,
    /// The total that the caller believes in: if it is another, nothing happens.
    expected_total: Option<u64>,
}

/// An entry of the ledger, and the answer to an adjustment.
#[derive(Serialize, ToSchema)]
#[schema(as = LedgerEntry, examples(json!({
    "entry_id": "01M7YEVF14SFM3QJ869M98QS76", "delta": 5, "total_after": 8, "reason": "delivery", "reference": "PO-7",
    "actor": "root", "created_at": "2026-11-21T07:06:41.060Z",
})))]
struct EntryView {
    /// Sorts by time.
    #[schema(pattern = "^[0-9A-HJKMNP-TV-Z]{26}$")]
    entry_id: String,
    /// Units that came in, or went away where negative.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    delta: i64,
    #[schema(value_type = schema::Total)]
    total_after: u64,
    #[schema(value_type = schema::Words)]
    reason: String,
    #[schema(value_type = Option<schema::Words>, required)]
    reference: Option<String>,
    /// Who: the `sub` of their token.
    #[schema(value_type = schema::CustomerId)]
    actor: String,
    #[schema(value_type = schema::Time)]
    created_at: ApiTime,
}

impl From<LedgerEntry> for EntryView {
    fn from(entry: LedgerEntry) -> Self {
        let LedgerEntry { entry_id, delta, total_after, reason, reference, actor, created_at } = entry;
        Self { entry_id, delta, total_after, reason, reference, actor, created_at: ApiTime(created_at) }
    }
}

/// Adjust the stock
///
/// Units that are held or sold cannot be taken away. The same request with the same key is carried out once.
#[utoipa::path(
    post, path = "/admin/products/{product_id}/stock", operation_id = "adjustStock", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path), Key),
    request_body(content = Adjust, example = json!({"delta": 5, "reason": "delivery", "reference": "PO-7"})),
    responses((status = 200, description = "The entry that it left in the ledger.", body = EntryView, headers(
        ("Idempotent-Replayed" = String, description = "`true` where an earlier request made it, otherwise absent.")))),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["insufficient_stock", "version_mismatch", "idempotency_key_reused"])))
)]
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

/// Read a product's ledger
///
/// Every change of the total, the newest first. Nothing in it is ever changed or removed.
#[utoipa::path(
    get, path = "/admin/products/{product_id}/ledger", operation_id = "getLedger", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path), ListQuery),
    responses((status = 200, description = "A page of entries.", body = List<EntryView>)),
    security(("bearer" = []))
)]
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

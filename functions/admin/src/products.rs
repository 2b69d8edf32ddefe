//! Products and their stock.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Answer};
use holdfast_domain::{
    Adjustment, Currency, DEFAULT_LATE_PAYMENT_SECONDS, HoldSeconds, Product, ProductChange, ProductId, ProductStatus,
    Stock,
};
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{
    Admin, ApiTime, Key, List, ListQuery, Outcome, Problem, ProductView, Query, Reader, Recorded, codes, nullable,
    path_id, schema,
};
use holdfast_store::{Deadline, LedgerEntry};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::actions::UNCHANGED;
use crate::reservations::ReleaseHolds;

/// A request to create a product.
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
    /// Length of a hold, in seconds. Default: 600.
    #[schema(value_type = Option<schema::Seconds>)]
    hold_seconds: Option<HoldSeconds>,
    /// Seconds after the end of a hold during which a payment is still accepted. Default: 86400 (one day).
    #[schema(value_type = Option<schema::LatePaymentSeconds>)]
    late_payment_seconds: Option<u32>,
    /// Maximum number of units that one customer may hold and own. Default: the deployment's (`DefaultMaxPerCustomer`).
    /// Null: no limit, now or later. Units are not counted then, which saves two write units per line of a reservation.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>, format = Int64, minimum = 1, maximum = 4_294_967_295_i64)]
    max_per_customer: Option<Option<u32>>,
    /// Start of the sale. Default: at once.
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_starts_at: Option<ApiTime>,
    /// End of the sale (exclusive), later than `sale_starts_at`. Default: no end.
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_ends_at: Option<ApiTime>,
    /// Default: `on_sale`.
    #[schema(value_type = Option<schema::ProductStatus>)]
    status: Option<ProductStatus>,
}

/// Create a product
///
/// Its total becomes the first entry of its ledger.
#[utoipa::path(
    post, path = "/admin/products", operation_id = "createProduct", tag = "Admin: products",
    request_body(content = Create, example = json!({"product_id": "tee-black", "name": "Black tee",
        "price_minor": 2_500, "currency": "EUR", "total": 3})),
    responses((status = 201, description = "The product was created.", body = ProductView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["product_exists"])))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    admin: Admin,
    Recorded { body, detail }: Recorded<Create>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let product = Product {
        product_id: body.product_id,
        name: body.name,
        price_minor: body.price_minor,
        currency: Currency::in_force(&body.currency)?,
        total: body.total,
        shards: body.shards.unwrap_or_else(|| Product::default_shards(body.total)),
        hold_seconds: body.hold_seconds.unwrap_or(HoldSeconds::DEFAULT),
        late_payment_seconds: body.late_payment_seconds.unwrap_or(DEFAULT_LATE_PAYMENT_SECONDS),
        max_per_customer: body.max_per_customer.unwrap_or(app.default_max_per_customer),
        // Null means that there will never be a limit; without the field there may be one later, if there is none by
        // default.
        counts_per_customer: body.max_per_customer != Some(None),
        sale_starts_at: body.sale_starts_at.map(|at| at.0),
        sale_ends_at: body.sale_ends_at.map(|at| at.0),
        status: body.status.unwrap_or(ProductStatus::OnSale),
        version: 1,
    }
    .checked()?;
    app.act(&admin, ("create_product", product.product_id.as_str(), detail), deadline, async {
        let now = app.clock.now();
        app.store.create_product(&product, admin.id.as_str(), now, deadline).await?;
        let stock = Stock { available: product.total, ..Stock::default() };
        Ok((StatusCode::CREATED, Answer(ProductView::new(product.clone(), stock, now))).into_response())
    })
    .await
}

/// List products
///
/// Returns all products, archived ones too, sorted by id.
#[utoipa::path(
    get, path = "/admin/products", operation_id = "listProductsAsAdmin", tag = "Admin: products",
    params(ListQuery),
    responses((status = 200, description = "A page of products.", body = List<ProductView>)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Reader,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let page = app.store.products(query.limit()?, query.cursor()?, deadline).await?;
    let mut stock = app.store.stock(&page.items.iter().collect::<Vec<_>>(), deadline).await?;
    let mut audits = app.store.last_audits(page.items.iter().map(|product| &product.product_id), deadline).await?;
    let now = app.clock.now();
    let view = |product: Product| {
        let stock = stock.remove(&product.product_id).unwrap_or_default();
        let last_audit = audits.remove(&product.product_id);
        ProductView::counted(product, stock, now).with_last_audit(last_audit)
    };
    Ok(Answer(List::of(page, view)).into_response())
}

/// Changes to a product. A field that is absent stays unchanged; `null` removes an optional value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChangeProduct)]
pub(crate) struct Change {
    /// The version that was read (optimistic lock). If the product has another version, nothing is changed.
    version: u64,
    #[schema(value_type = Option<schema::Name>)]
    name: Option<String>,
    #[schema(value_type = Option<schema::Price>)]
    price_minor: Option<u64>,
    /// Length of a hold, in seconds. Existing holds keep theirs.
    #[schema(value_type = Option<schema::Seconds>)]
    hold_seconds: Option<HoldSeconds>,
    /// Seconds after the end of a hold during which a payment is still accepted. Existing holds keep theirs.
    #[schema(value_type = Option<schema::LatePaymentSeconds>)]
    late_payment_seconds: Option<u32>,
    /// Maximum number of units that one customer may hold and own, including earlier orders. Null: no limit. Refused if
    /// `counts_per_customer` is false.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>, format = Int64, minimum = 1, maximum = 4_294_967_295_i64)]
    max_per_customer: Option<Option<u32>>,
    /// Start of the sale. Null: at once.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_starts_at: Option<Option<ApiTime>>,
    /// End of the sale (exclusive). Null: no end.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<schema::GivenTime>)]
    sale_ends_at: Option<Option<ApiTime>>,
    #[schema(value_type = Option<schema::ProductStatus>)]
    status: Option<ProductStatus>,
}

/// Change a product
///
/// After this has returned, no reservation is made with the old price, limit or dates. To change the total, adjust the
/// stock.
#[utoipa::path(
    patch, path = "/admin/products/{product_id}", operation_id = "changeProduct", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path)),
    request_body(content = Change, example = json!({"version": 1, "price_minor": 1_900})),
    responses((status = 200, description = "The product with its new version.", body = ProductView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["version_mismatch"])))
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Recorded { body, detail }: Recorded<Change>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ProductId = path_id(id, &codes::PRODUCT_NOT_FOUND)?;
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
    app.act(&admin, ("change_product", id.as_str(), detail), deadline, async {
        let product = app.store.change_product(&id, body.version, change, deadline).await?;
        let stock = app.store.stock(&[&product], deadline).await?.remove(&id).unwrap_or_default();
        Ok(Answer(ProductView::counted(product, stock, app.clock.now())).into_response())
    })
    .await
}

/// A request to adjust the stock.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AdjustStock)]
pub(crate) struct Adjust {
    /// Number of units to add, or to remove if negative. Not 0.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    delta: i64,
    #[schema(value_type = schema::FreeText)]
    reason: String,
    /// A reference to a document, such as a purchase order.
    #[schema(value_type = Option<schema::FreeText>)]
    reference: Option<String>,
    /// The expected current total (optimistic lock). If the total differs, nothing is changed.
    expected_total: Option<u64>,
}

/// An entry of the ledger: one change of a product's total.
#[derive(Serialize, ToSchema)]
#[schema(as = LedgerEntry, examples(json!({
    "entry_id": "01M7YEVF14SFM3QJ869M98QS76", "delta": 5, "total_after": 8, "reason": "delivery", "reference": "PO-7",
    "actor": "root", "created_at": "2026-11-21T07:06:41.060Z",
})))]
struct EntryView {
    /// Sortable by time.
    #[schema(pattern = "^[0-9A-HJKMNP-TV-Z]{26}$")]
    entry_id: String,
    /// Number of units that were added, or removed if negative.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    delta: i64,
    #[schema(value_type = schema::Total)]
    total_after: u64,
    #[schema(value_type = schema::FreeText)]
    reason: String,
    #[schema(value_type = Option<schema::FreeText>, required)]
    reference: Option<String>,
    /// The `sub` of the admin who made the change.
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
/// Adds units to the stock, or removes them. Units that are held or sold cannot be removed. Idempotent: the same request
/// with the same key has its effect once.
#[utoipa::path(
    post, path = "/admin/products/{product_id}/stock", operation_id = "adjustStock", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path), Key),
    request_body(content = Adjust, example = json!({"delta": 5, "reason": "delivery", "reference": "PO-7"})),
    responses((status = 200, description = "The ledger entry of the adjustment.", body = EntryView, headers(
        ("Idempotent-Replayed" = String, description = "`true` if an earlier request created it; otherwise absent.")))),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["insufficient_stock", "version_mismatch", "idempotency_key_reused"])))
)]
pub(crate) async fn adjust(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Key(key): Key,
    Recorded { body, mut detail }: Recorded<Adjust>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let adjustment = Adjustment {
        product_id: path_id(id, &codes::PRODUCT_NOT_FOUND)?,
        delta: body.delta,
        reason: body.reason,
        reference: body.reference,
        expected_total: body.expected_total,
        actor: admin.id.to_string(),
        key,
    }
    .checked()?;
    detail["idempotency_key"] = adjustment.key.as_str().into();
    app.act(&admin, ("adjust_stock", adjustment.product_id.as_str(), detail), deadline, async {
        let adjusted = app.store.adjust(&adjustment, app.clock.now(), deadline).await?;
        let mut answer = Answer(EntryView::from(adjusted.entry)).into_response();
        if adjusted.replayed {
            answer.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
            answer.extensions_mut().insert(UNCHANGED);
        }
        Ok(answer)
    })
    .await
}

/// Get a product's ledger
///
/// Returns every change of the total, newest first. Entries are never changed or removed.
#[utoipa::path(
    get, path = "/admin/products/{product_id}/ledger", operation_id = "getLedger", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path), ListQuery),
    responses((status = 200, description = "A page of ledger entries.", body = List<EntryView>)),
    security(("bearer" = []))
)]
pub(crate) async fn ledger(
    State(app): State<Arc<App>>,
    _: Reader,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, &codes::PRODUCT_NOT_FOUND)?;
    let page = app.store.ledger(&id, query.limit()?, query.cursor()?, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(Answer(List::of(page, EntryView::from)).into_response())
}

/// What a release of all holds has done.
#[derive(Serialize, ToSchema)]
#[schema(as = ReleasedHolds)]
pub(crate) struct ReleasedView {
    /// Number of holds released by this call. While `complete` is false it may be too low, because responses may have been lost.
    released_holds: u64,
    /// Their units, of all products.
    released_units: u64,
    /// Whether every hold that the index showed was released. If not, call it again.
    complete: bool,
}

/// Release all holds of a product
///
/// Cancels every hold with units of the product, also its other lines, when an event is called off. Pause or archive the
/// product first: holds that are made during the call, or in the seconds before it, may be left; repeat it then. Orders and
/// expired reservations stay as they are.
#[utoipa::path(
    post, path = "/admin/products/{product_id}/release-holds", operation_id = "releaseHolds", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path)),
    request_body(content = ReleaseHolds, example = json!({"reason": "event called off"})),
    responses((status = 200, description = "What was released.", body = ReleasedView,
        example = json!({"released_holds": 12, "released_units": 30, "complete": true}))),
    security(("bearer" = []))
)]
pub(crate) async fn release_holds(
    State(app): State<Arc<App>>,
    admin: Admin,
    Path(id): Path<String>,
    Recorded { body, detail }: Recorded<ReleaseHolds>,
) -> Result<Response, Problem> {
    let deadline = Deadline::after(REQUEST_BUDGET);
    let id: ProductId = path_id(id, &codes::PRODUCT_NOT_FOUND)?;
    let command = body.of(&admin)?;
    app.act(&admin, ("release_holds", id.as_str(), detail), deadline, async {
        let swept = app.store.release_all(&id, &command, app.clock.now(), deadline).await?;
        let view = ReleasedView { released_holds: swept.holds, released_units: swept.units, complete: swept.complete };
        Ok((Extension(Outcome("holds_released")), Answer(view)).into_response())
    })
    .await
}

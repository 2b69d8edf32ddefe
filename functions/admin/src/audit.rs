//! Audits of a product's books.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Answer};
use holdfast_domain::ProductId;
use holdfast_domain::audit::{Finding, Verdict};
use holdfast_http::budgets::{OUTCOME_BUDGET, REQUEST_BUDGET};
use holdfast_http::{ApiTime, NoQuery, Outcome, Problem, Reader, codes, path_id, schema};
use holdfast_store::{Audited, Deadline, LastAudit, measure};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;

/// The audit of a product's books.
#[derive(Serialize, ToSchema)]
#[schema(as = Audit, examples(json!({
    "product_id": "tee-black", "total": 100, "available": 92, "held": 3, "sold": 4, "ledger_total": 100,
    "checked_reservations": 12, "consistent": false, "in_progress": false, "complete": true,
    "findings": [{"kind": "units", "where": "tee-black", "expected": "100", "found": "99"}],
    "server_time": "2026-11-21T07:06:41.060Z",
})))]
struct AuditView {
    #[schema(value_type = schema::ProductId)]
    product_id: ProductId,
    total: i64,
    /// Units on shards. Those of a hold that has expired, but is not released yet, are in `held`.
    available: i64,
    /// Units in holds.
    held: i64,
    /// Units in orders.
    sold: i64,
    /// All entries of the ledger together.
    ledger_total: i64,
    /// Number of reservations of the product that were read, whatever their status.
    checked_reservations: usize,
    /// Whether every reservation was read, and nothing is off, nor was at the last look. If `in_progress`, a difference smaller
    /// than the units that were moving cannot be excluded.
    consistent: bool,
    /// Whether units were moving during every look, or what the last look found is yet to be confirmed. The product is in
    /// use: audit it again.
    in_progress: bool,
    /// Whether every reservation was read in time. If not, `held`, `sold` and `findings` say nothing: use `cargo local audit`,
    /// which takes the time that it needs.
    complete: bool,
    /// What is off, seen by two looks in a row.
    findings: Vec<FindingView>,
    #[schema(value_type = schema::Time)]
    server_time: ApiTime,
}

/// Something that is off in the books of a product.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditFinding)]
struct FindingView {
    /// - `units`: available, held and sold units do not add up to the total
    /// - `ledger`: the ledger does not explain the total, or an entry does not continue the one before it
    /// - `limit`: what counts against a customer's limit is not what the customer holds and owns
    /// - `shard`: a part of the stock is missing, negative, or of no product
    /// - `reservation`: a reservation contradicts itself, or an index does not have it as it should
    #[schema(value_type = FindingKind)]
    kind: &'static str,
    /// The product, the number of the shard, or the id of the ledger entry, customer or reservation.
    r#where: String,
    /// What it should be.
    expected: String,
    /// What it is.
    found: String,
}

/// The kinds of findings.
#[derive(ToSchema)]
#[schema(as = AuditFindingKind, rename_all = "snake_case")]
#[expect(dead_code, reason = "only describes the values of `Kind::as_str`")]
enum FindingKind {
    Units,
    Ledger,
    Limit,
    Shard,
    Reservation,
}

impl From<Finding> for FindingView {
    fn from(Finding { kind, place, expected, found }: Finding) -> Self {
        Self { kind: kind.as_str(), r#where: place, expected, found }
    }
}

/// Audit a product
///
/// Proves, by reading the table itself, that available, held and sold units add up to the total, that the ledger explains
/// the total, that each customer's limit counts what the customer holds and owns, and that every hold will be found when
/// it ends. It changes no stock, and may be used at any time: a change that is under way is told from drift by looking again.
///
/// It reads all reservations, so it takes seconds with many. Units that are missing while the indexes of the table lag by
/// more than its time look like drift, as do those of orders from before the index `made`: `cargo local audit` reads the table
/// without the indexes.
#[utoipa::path(
    get, path = "/admin/products/{product_id}/audit", operation_id = "auditProduct", tag = "Admin: products",
    params(("product_id" = schema::ProductId, Path)),
    responses((status = 200, description = "What the books say.", body = AuditView)),
    security(("bearer" = []))
)]
pub(crate) async fn audit(
    State(app): State<Arc<App>>,
    reader: Reader,
    NoQuery: NoQuery,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: ProductId = path_id(id, &codes::PRODUCT_NOT_FOUND)?;
    let began = app.clock.now();
    let Audited { verdict, complete } = app.store.audit(&id, Deadline::after(REQUEST_BUDGET)).await?;
    let (drift, consistent) = (!verdict.findings.is_empty(), complete && verdict.is_consistent());
    let Verdict { total, available, held, sold, ledger_total, reservations, findings, in_progress, .. } = verdict;
    if drift || consistent {
        measure::note(measure::DRIFT, findings.len() as u64);
    }
    // Only what is certain; and dated by its beginning, so that it does not replace one that saw something later.
    if drift || consistent && !in_progress {
        let actor = reader.id.to_string();
        let last = LastAudit { product_id: id.clone(), audited_at: began, actor, consistent };
        // What was found is worth more than the record of it.
        if let Err(error) = app.store.record_audit(&last, Deadline::after(OUTCOME_BUDGET)).await {
            tracing::warn!(%error, "audit not recorded");
        }
    }
    let view = AuditView {
        product_id: id,
        total,
        available,
        held,
        sold,
        ledger_total,
        checked_reservations: reservations,
        consistent,
        in_progress,
        complete,
        findings: findings.into_iter().map(FindingView::from).collect(),
        server_time: ApiTime(app.clock.now()),
    };
    let outcome = Outcome(if drift { "drift_found" } else { "read" });
    Ok((Extension(outcome), Answer(view)).into_response())
}

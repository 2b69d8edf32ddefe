//! The log of what admins do: each change is written down before it is made, and its outcome afterwards.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use holdfast_domain::ActionTarget;
use holdfast_http::budgets::{OUTCOME_BUDGET, REQUEST_BUDGET};
use holdfast_http::{Admin, ApiTime, List, ListQuery, Outcome, Problem, Query, Reader, schema};
use holdfast_store::{Action, Deadline, Intent};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::App;

/// What a request came to that found its change made already, by an earlier one.
pub(crate) const UNCHANGED: Outcome = Outcome("unchanged");

impl App {
    /// Makes a change for an admin: `action` is its name, `target` what it is about, `detail` the fields of the request. If
    /// that cannot be written down, nothing is done.
    pub(crate) async fn act(
        &self,
        admin: &Admin,
        (action, target, detail): (&str, &str, Value),
        deadline: Deadline,
        change: impl Future<Output = Result<Response, Problem>>,
    ) -> Result<Response, Problem> {
        let intent = Intent {
            actor: admin.id.to_string(),
            action: action.to_owned(),
            target: target.to_owned(),
            detail,
            request_id: admin.request_id.clone(),
        };
        let begun = self.store.begin_action(intent, self.clock.now(), deadline).await?;
        let answer = change.await;
        let outcome = match &answer {
            Ok(response) if response.extensions().get() == Some(&UNCHANGED) => {
                format!("{} unchanged", response.status().as_u16())
            }
            Ok(response) => response.status().as_u16().to_string(),
            Err(problem) => problem.outcome(),
        };
        // The admin's answer is about the change, which was made or refused all the same.
        if let Err(error) = self.store.finish_action(&begun, &outcome, Deadline::after(OUTCOME_BUDGET)).await {
            tracing::warn!(%error, action_id = begun.action_id, "outcome of an action not recorded");
        }
        answer
    }
}

/// What an admin did, or tried to do.
#[derive(Serialize, ToSchema)]
#[schema(as = Action, examples(json!({
    "action_id": "01M7YEVF14SFM3QJ869M98QS76", "at": "2026-11-21T07:06:41.060Z", "actor": "root",
    "action": "adjust_stock", "target": "tee-black", "detail": {"delta": 5, "reason": "delivery", "reference": "PO-7"},
    "outcome": "200", "request_id": "UYdGk15TDoEEM6g=",
})))]
struct ActionView {
    /// Sortable by time.
    #[schema(pattern = "^[0-9A-HJKMNP-TV-Z]{26}$")]
    action_id: String,
    /// When it was about to begin.
    #[schema(value_type = schema::Time)]
    at: ApiTime,
    /// The `sub` of the admin.
    #[schema(value_type = schema::CustomerId)]
    actor: String,
    /// What was done: `create_product`, `change_product`, `adjust_stock`, `release_holds`, `release_reservation`, `cancel_order`,
    /// `retry_failed_confirmation`, `resolve_failed_confirmation` or `redrive_failed_confirmations`. There may be more.
    #[schema(pattern = "^[a-z_]+$")]
    action: String,
    #[schema(value_type = schema::ActionTarget)]
    target: String,
    /// The fields of the request, as they were sent.
    #[schema(value_type = Object)]
    detail: Value,
    /// The status of the response, and the problem's code: `200`, `409 insufficient_stock`. `200 unchanged`: an earlier request
    /// had made the change. With 5xx it may have been made. `unknown`: there is none yet, or none was recorded, as when the
    /// function was stopped.
    #[schema(pattern = "^(unknown|[0-9]{3}( [a-z_]+)?)$")]
    outcome: String,
    /// The id of the request in the logs.
    request_id: String,
}

impl From<Action> for ActionView {
    fn from(action: Action) -> Self {
        let Action { action_id, created_at, intent, outcome } = action;
        let Intent { actor, action, target, detail, request_id } = intent;
        let outcome = outcome.unwrap_or_else(|| "unknown".to_owned());
        Self { action_id, at: ApiTime(created_at), actor, action, target, detail, outcome, request_id }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListActions {
    /// Filter by target. Default: all.
    #[param(value_type = Option<schema::ActionTarget>)]
    target: Option<ActionTarget>,
    #[param(ignore)]
    limit: Option<u32>,
    #[param(ignore)]
    cursor: Option<String>,
}

/// List what admins did
///
/// Returns every request of an admin that changes something, newest first, also if it was refused; but not those that were
/// invalid by themselves, or not an admin's. Each is recorded before it is carried out, and never removed. Without a `target`
/// the list is read from an index, so an action may take seconds to appear.
#[utoipa::path(
    get, path = "/admin/actions", operation_id = "listActions", tag = "Admin: actions",
    params(ListActions, ListQuery),
    responses((status = 200, description = "A page of actions.", body = List<ActionView>)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Reader,
    Query(query): Query<ListActions>,
) -> Result<Response, Problem> {
    let page = ListQuery::new(query.limit, query.cursor);
    let (target, deadline) = (query.target.as_ref().map(ActionTarget::as_str), Deadline::after(REQUEST_BUDGET));
    let found = app.store.actions(target, page.limit()?, page.cursor()?, deadline).await?;
    Ok(Answer(List::of(found, ActionView::from)).into_response())
}

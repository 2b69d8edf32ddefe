//! The log of what admins do: who, what, when, and what came of it. Append only.
//!
//! An action is written before it is carried out, and its outcome afterwards. So one without an outcome is in flight, or
//! nobody knows what came of it, as after a crash; and there is none that was not written down.

use holdfast_domain::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use ulid::Ulid;

use crate::items::{self, text, time};
use crate::page::Part;
use crate::update::Expression;
use crate::{Cursor, Deadline, Error, Page, Store, keys, lock};

/// What an admin is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Intent {
    /// Who: the `sub` of the admin.
    pub actor: String,
    /// What, such as `adjust_stock`.
    pub action: String,
    /// With what: the id of a product, a reservation or a failed confirmation.
    pub target: String,
    /// The fields of the request, as JSON.
    pub detail: Value,
    /// The id of the request in the logs.
    pub request_id: String,
}

/// What an admin did, or tried to do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Action {
    /// Its id: a ULID, so that actions sort by time.
    pub action_id: String,
    /// When it was about to begin.
    pub created_at: Timestamp,
    /// What was written before it began.
    #[serde(flatten)]
    pub intent: Intent,
    /// What was answered, such as `200` or `409 insufficient_stock`; `None`: unknown.
    #[serde(default)]
    pub outcome: Option<String>,
}

impl Store {
    /// Writes an action down, before it is carried out.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline: nothing must be done then.
    pub async fn begin_action(&self, intent: Intent, now: Timestamp, deadline: Deadline) -> Result<Action, Error> {
        let millis = u64::try_from(now.as_millis()).unwrap_or_default();
        let random = lock(&self.random).u128(..);
        let action_id = Ulid::from_parts(millis, random).to_string();
        let update = Expression::new(
            "SET #action_id = :id, #created_at = :now, #made_key = :made, #actor = :actor, #action = :action, \
             #target = :target, #detail = :detail, #request_id = :request_id",
            vec![
                (":id", text(&action_id)),
                (":now", time(now)),
                (":made", text(keys::MADE_ACTIONS)),
                (":actor", text(&intent.actor)),
                (":action", text(&intent.action)),
                (":target", text(&intent.target)),
                (":detail", items::value("action", &intent.detail)?),
                (":request_id", text(&intent.request_id)),
            ],
        );
        // A late copy must not take the outcome away. What is there already is from an earlier try, whose answer was lost:
        // the id is random.
        let absent = Expression::new("attribute_not_exists(#pk)", vec![]);
        let key = keys::action(&intent.target, &action_id);
        self.update(&key, (update, absent), &mut self.attempts(deadline)).await?;
        Ok(Action { action_id, created_at: now, intent, outcome: None })
    }

    /// Writes down what came of an action, once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn finish_action(&self, action: &Action, outcome: &str, deadline: Deadline) -> Result<(), Error> {
        let key = keys::action(&action.intent.target, &action.action_id);
        let update = Expression::new("SET #outcome = :outcome", vec![(":outcome", text(outcome))]);
        let once = Expression::new("attribute_exists(#pk) AND attribute_not_exists(#outcome)", vec![]);
        // An outcome that is there already is from an earlier try, whose answer was lost.
        self.update(&key, (update, once), &mut self.attempts(deadline)).await.map(drop)
    }

    /// A page of the actions with one target, by consistent reads, or of all, the newest first.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn actions(
        &self,
        target: Option<&str>,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Action>, Error> {
        let Some(target) = target else { return self.all_actions(limit, cursor, deadline).await };
        let request = self.newest_in(keys::action(target, "").pk, cursor)?;
        self.page("action", request, limit, deadline).await
    }

    async fn all_actions(&self, limit: u32, cursor: Option<Cursor>, deadline: Deadline) -> Result<Page<Action>, Error> {
        let parts = [
            (keys::MADE_KEY, Part::Is(keys::MADE_ACTIONS)),
            (keys::CREATED_AT, Part::Number),
            (keys::PK, Part::Begins(keys::ACTION_PREFIX)),
            (keys::SK, Part::Begins("")),
        ];
        let request = self
            .client
            .query()
            .index_name(keys::MADE_INDEX)
            .key_condition_expression("#made_key = :actions")
            .expression_attribute_names("#made_key", keys::MADE_KEY)
            .expression_attribute_values(":actions", text(keys::MADE_ACTIONS))
            .scan_index_forward(false)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .set_exclusive_start_key(cursor.map(|cursor| cursor.into_key(&parts)).transpose()?);
        let (found, next) = self.query(request, deadline).await?;
        // The index has only keys.
        let keys = found.iter().filter_map(keys::Key::of).collect();
        let found = self.get_many(keys, deadline).await?.into_iter();
        let mut actions = found.map(|item| items::read("action", item)).collect::<Result<Vec<Action>, _>>()?;
        actions.sort_by(|a, b| b.action_id.cmp(&a.action_id));
        Ok(Page { items: actions, next: next.map(Cursor::new) })
    }
}

//! Answers about what admins did.

use serde_json::Value;

use super::{Case, Ruling, shown};

impl Case<'_> {
    pub(super) fn actions(&self) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            return (false, "only_documented_refusals");
        };
        let target = self.asked.query("target");
        let right = items.iter().all(|body| {
            let text = |name: &str| body[name].as_str().unwrap_or_default();
            let place = (format!("ACTION#{}", text("target")), text("action_id").to_owned());
            target.is_none_or(|target| body["target"] == target)
                && self.once([&place], |at| self.item(&place, at).is_some_and(|item| shows(item, body)))
        });
        if !right || !items.is_sorted_by(|newer, older| newer["action_id"].as_str() > older["action_id"].as_str()) {
            return (false, "answers_are_the_table");
        }
        let whole = self.asked.query("cursor").is_none() && self.reply.body["next_cursor"].is_null();
        let listed = |id: &str| items.iter().any(|body| body["action_id"] == id);
        let sent = self.window.sent;
        let missing = match target {
            Some(target) => {
                let partition = format!("ACTION#{target}");
                let there = |id: &str| self.item(&(partition.clone(), id.to_owned()), sent).is_some();
                self.books.partition(&partition).any(|(id, _)| there(id) && !listed(id))
            }
            // From an index, which may lag.
            None => self.books.indexed_since("ACTION#", sent, |_, _| true).any(|(_, id)| !listed(id)),
        };
        (!whole || !missing, "the_lists_are_the_table")
    }
}

/// Whether an answer shows this action in every field.
fn shows(item: &Value, body: &Value) -> bool {
    let outcome = item["outcome"].as_str().unwrap_or("unknown");
    ["action_id", "actor", "action", "target", "detail", "request_id"].iter().all(|name| body[*name] == item[*name])
        && shown(&body["at"]) == item["created_at"].as_i64()
        && body["outcome"] == outcome
}

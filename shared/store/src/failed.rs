//! Storing failed confirmations; the rules are in [`holdfast_domain`].
//!
//! They arrive in the dead-letter queue, where they cannot be lost, but which has no order and no way to look at one
//! message. So they are moved into the table, and only then deleted from the queue.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{
    Confirmation, FailedConfirmation, FailedState, Failure, ORDER_CANCELLED, RecordDecision, Refusal, Reservation,
    ReservationId, ResolveDecision, RetryDecision, Status, Timestamp,
};

use crate::confirm::{CLOSED_EARLIER, close_unpaid_update, owe_back_update};
use crate::items::{self, number, text, time};
use crate::page::Part;
use crate::transact::Transaction;
use crate::update::{Change, Expression, Updated};
use crate::{Cursor, Deadline, Error, Page, Store, keys};

/// The most pages of the index that one request reads to fill its own page.
const MAX_INDEX_READS: u32 = 10;

/// Which failed confirmations are listed: those for which all of this holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailedSearch {
    /// Of this state, by the index `failed`.
    pub state: Option<FailedState>,
    /// Of this reservation, by the index `due`.
    pub reservation: Option<ReservationId>,
}

impl From<Option<FailedState>> for FailedSearch {
    fn from(state: Option<FailedState>) -> Self {
        Self { state, reservation: None }
    }
}

impl FailedSearch {
    fn has(&self, failed: &FailedConfirmation) -> bool {
        self.state.is_none_or(|state| state == failed.state)
            && self.reservation.as_ref().is_none_or(|id| failed.reservation_id.as_ref() == Some(id))
    }
}

const UNSETTLED: &str = "(#state = :open OR #state = :retrying)";

fn unsettled() -> Vec<(&'static str, AttributeValue)> {
    vec![(":open", text(FailedState::Open.as_str())), (":retrying", text(FailedState::Retrying.as_str()))]
}

/// The condition that it is not settled, and that nothing new was recorded.
fn unchanged_since(seen: &FailedConfirmation) -> Expression {
    let mut values = unsettled();
    if seen.failures == 0 {
        // Stored before failures were counted.
        return Expression::new(format!("{UNSETTLED} AND attribute_not_exists(#failures)"), values);
    }
    values.push((":seen", number(seen.failures)));
    Expression::new(format!("{UNSETTLED} AND #failures = :seen"), values)
}

/// The condition that nothing was recorded since `stored` was read, settled or not; `None`: that nothing is stored.
pub(crate) fn seen_failures(stored: Option<&FailedConfirmation>) -> Expression {
    match stored {
        None => Expression::new("attribute_not_exists(#pk)", vec![]),
        Some(stored) if stored.failures == 0 => Expression::new("attribute_not_exists(#failures)", vec![]),
        Some(stored) => Expression::new("#failures = :seen", vec![(":seen", number(stored.failures))]),
    }
}

fn resolve_update(actor: &str, note: Option<&str>, now: Timestamp) -> Expression {
    let mut update = "SET #state = :resolved, #settled_by = :actor, #settled_at = :now".to_owned();
    let mut values =
        vec![(":resolved", text(FailedState::Resolved.as_str())), (":actor", text(actor)), (":now", time(now))];
    if let Some(note) = note {
        update.push_str(", #note = :note");
        values.push((":note", text(note)));
    }
    Expression::new(update, values)
}

impl Store {
    /// Records a failure as open, or adds it to what is stored. One that is settled stays settled. One whose
    /// reservation is the order that it asked for is settled by that.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn record_failure(
        &self,
        failure: &Failure,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let id = failure.id();
        let attempts = self.attempts(deadline);
        loop {
            let stored: Option<FailedConfirmation> =
                self.get("failed confirmation", keys::failed(&id), deadline).await?;
            let absent = || Expression::new("attribute_not_exists(#pk)", vec![]);
            let condition = stored.as_ref().map_or_else(absent, unchanged_since);
            let record = match failure.record(stored, now) {
                RecordDecision::Record(record) => record,
                RecordDecision::Settled(settled) => return Ok(settled),
            };
            match self.update_failed(&id, (record_update(&record), condition), deadline).await? {
                Some(recorded) => return self.settle_if_ordered(recorded, now, deadline).await,
                // It was changed meanwhile, or this was applied and its answer lost: recording it again only raises the
                // count.
                None if deadline.passed() => return Err(attempts.unavailable("record failure")),
                None => {}
            }
        }
    }

    /// Opens a failed confirmation for an admin's retry. With `lift`, a payment that was refused as owed back is not
    /// owed any more; see [`FailedConfirmation::retry`].
    ///
    /// It counts like a failure, so that earlier marks that are still on their way have no effect afterwards.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`], [`Refusal::AlreadySettled`].
    pub async fn begin_retry(&self, id: &str, lift: bool, deadline: Deadline) -> Result<FailedConfirmation, Error> {
        let mut attempts = self.attempts(deadline);
        loop {
            let seen = self.failed(id, deadline).await?;
            let found = if seen.state.is_settled() { None } else { self.reservation_of(&seen, deadline).await? };
            let lift = match seen.retry(found.as_ref(), lift) {
                RetryDecision::Retry { lift } => lift,
                RetryDecision::SettleAsDuplicate => {
                    self.update_failed(id, settle_as_duplicate(self.clock.now()), deadline).await?;
                    return Err(attempts.refuse(Refusal::AlreadySettled));
                }
                RetryDecision::Refuse(refusal) => return Err(attempts.refuse(refusal)),
            };
            let next = seen.failures + 1;
            let open = Expression::new("SET #state = :open, #failures = :next", vec![(":next", number(next))]);
            let mut transaction = Transaction::new(&self.table);
            transaction.update((), &keys::failed(id), (open, unchanged_since(&seen)))?;
            if let (Some(payment), Some(found)) = (&lift, &found) {
                let owed_back = AttributeValue::Ss(vec![payment.to_string()]);
                let update = Expression::new("DELETE #owed_back :owed_back", vec![(":owed_back", owed_back)]);
                let unresolved = Expression::new(
                    format!("#created_at = :created AND {NOT_REFUNDED}"),
                    vec![(":created", time(found.created_at)), (":payment", text(payment.as_str()))],
                );
                transaction.update((), &keys::reservation(&found.reservation_id), (update, unresolved))?;
            }
            if self.transact_or_wait("failed confirmation", &transaction, &mut attempts).await? {
                return Ok(FailedConfirmation { state: FailedState::Open, failures: next, ..seen });
            }
        }
    }

    /// Marks a failed confirmation as being in the queue again. One that has failed again since it was `seen` stays
    /// open, and one that was settled since, for example by that very message, stays settled: the retry has begun all the
    /// same.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`].
    pub async fn mark_retrying(
        &self,
        seen: &FailedConfirmation,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let next = number(seen.failures + 1);
        let update = Expression::new("SET #state = :retrying, #failures = :next", vec![(":next", next)]);
        if let Some(marked) = self.update_failed(&seen.id, (update, unchanged_since(seen)), deadline).await? {
            return Ok(marked);
        }
        self.failed(&seen.id, deadline).await
    }

    /// Settles a failed confirmation by an admin's resolution. The reservation records it: it never becomes an order
    /// with that payment or, without a payment, by what is still in the queue. If it is that order already, that
    /// settles it instead.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`], [`Refusal::AlreadySettled`].
    pub async fn resolve_failed(
        &self,
        id: &str,
        actor: &str,
        note: Option<&str>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let mut attempts = self.attempts(deadline);
        loop {
            let seen = self.failed(id, deadline).await?;
            let ordered = seen.state == FailedState::Confirmed;
            let found = if ordered { None } else { self.reservation_of(&seen, deadline).await? };
            let mut transaction = Transaction::new(&self.table);
            let resolved = match seen.resolve(found.as_ref(), actor, note, now) {
                ResolveDecision::Resolve(resolved) => {
                    let change = (resolve_update(actor, note, now), unchanged_since(&seen));
                    transaction.update((), &keys::failed(id), change)?;
                    *resolved
                }
                ResolveDecision::Note => seen.clone(),
                ResolveDecision::Done => return Ok(seen),
                ResolveDecision::SettleAsConfirmed => {
                    self.update_failed(id, settle(now), deadline).await?;
                    return Err(Refusal::AlreadySettled.into());
                }
                ResolveDecision::SettleAsDuplicate => {
                    self.update_failed(id, settle_as_duplicate(now), deadline).await?;
                    return Err(Refusal::AlreadySettled.into());
                }
                ResolveDecision::Refuse(refusal) => return Err(refusal.into()),
            };
            match (&found, &seen.reservation_id) {
                (Some(found), _) if seen.is_about(found) => {
                    let key = keys::reservation(&found.reservation_id);
                    // Also what was accepted since this request began is closed.
                    transaction.update((), &key, resolution_note(&seen, found, now.max(self.clock.now())))?;
                }
                // One that is made meanwhile must record it.
                (None, Some(missing)) => {
                    let none = Expression::new("attribute_not_exists(#pk)", vec![]);
                    transaction.check((), &keys::reservation(missing), none)?;
                }
                _ => {}
            }
            if self.transact_or_wait("failed confirmation", &transaction, &mut attempts).await? {
                return Ok(resolved);
            }
        }
    }

    /// Settles what failed of this confirmation before, if there is anything: it has confirmed the reservation.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn settle_as_confirmed(
        &self,
        confirmation: &Confirmation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let id = confirmation.failed_id();
        self.update_failed(&id, settle(now), deadline).await.map(drop)
    }

    /// Settles it if its reservation is the order that it asked for. Returns it as it is then.
    async fn settle_if_ordered(
        &self,
        failed: FailedConfirmation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        if failed.state.is_settled() {
            return Ok(failed);
        }
        match self.reservation_of(&failed, deadline).await? {
            Some(found) if failed.is_settled_by(&found) => self.settle(failed, now, deadline).await,
            _ => Ok(failed),
        }
    }

    async fn settle(
        &self,
        failed: FailedConfirmation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        match self.update_failed(&failed.id, settle(now), deadline).await? {
            Some(settled) => Ok(settled),
            None => self.failed(&failed.id, deadline).await,
        }
    }

    /// The reservation that a failed confirmation names, if it exists. It may be another customer's.
    async fn reservation_of(
        &self,
        failed: &FailedConfirmation,
        deadline: Deadline,
    ) -> Result<Option<Reservation>, Error> {
        let Some(id) = &failed.reservation_id else { return Ok(None) };
        self.get("reservation", keys::reservation(id), deadline).await
    }

    /// One failed confirmation.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`].
    pub async fn failed(&self, id: &str, deadline: Deadline) -> Result<FailedConfirmation, Error> {
        let found = self.get("failed confirmation", keys::failed(id), deadline).await?;
        found.ok_or(Refusal::FailedConfirmationNotFound.into())
    }

    /// A page of failed confirmations, of one state, of one reservation or of all, the oldest first within a state or a
    /// reservation. Those that are shown as unsettled were compared with their reservations, and are no orders.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn failed_confirmations(
        &self,
        search: impl Into<FailedSearch>,
        limit: u32,
        cursor: Option<Cursor>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Page<FailedConfirmation>, Error> {
        let search = search.into();
        let (pk, sk) = ((keys::PK, Part::Is(keys::FAILED)), (keys::SK, Part::Begins("fc_")));
        let request = self.client.query();
        let (mut start, request) = match (&search.reservation, search.state) {
            (Some(id), _) => {
                let partition = keys::failed_partition(id);
                let parts = [(keys::DUE_KEY, Part::Is(&partition)), (keys::DUE_AT, Part::Number), pk, sk];
                let start = cursor.map(|cursor| cursor.into_key(&parts)).transpose()?;
                let request = request
                    .index_name(keys::DUE_INDEX)
                    .key_condition_expression("#due_key = :reservation")
                    .expression_attribute_names("#due_key", keys::DUE_KEY)
                    .expression_attribute_values(":reservation", text(partition));
                (start, request)
            }
            (None, Some(state)) => {
                let parts =
                    [(keys::FAILED_STATE, Part::Is(state.as_str())), (keys::FIRST_FAILED_AT, Part::Number), pk, sk];
                let request = request
                    .index_name(keys::FAILED_INDEX)
                    .key_condition_expression("#state = :state")
                    .expression_attribute_names("#state", keys::FAILED_STATE)
                    .expression_attribute_values(":state", text(state.as_str()));
                (cursor.map(|cursor| cursor.into_key(&parts)).transpose()?, request)
            }
            (None, None) => {
                let request = request
                    .key_condition_expression("#pk = :failed")
                    .expression_attribute_names("#pk", keys::PK)
                    .expression_attribute_values(":failed", text(keys::FAILED))
                    .consistent_read(true);
                (cursor.map(|cursor| cursor.into_key(&[pk, sk])).transpose()?, request)
            }
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut found: Vec<FailedConfirmation> = Vec::new();
        for _ in 0..MAX_INDEX_READS {
            // Not more than still fit on the page, so that the last key read is the last one shown.
            let room = i32::try_from(limit.saturating_sub(found.len())).unwrap_or(i32::MAX);
            let (items, next) =
                self.query(request.clone().limit(room).set_exclusive_start_key(start), deadline).await?;
            // The index has only keys, and lags: read the items themselves.
            let mut page = Vec::new();
            for item in self.get_many(items.iter().filter_map(keys::Key::of).collect(), deadline).await? {
                page.push(items::read("failed confirmation", item)?);
            }
            page = self.settle_ordered(page, now, deadline).await?;
            page.retain(|failed| search.has(failed));
            page.sort_by(|a, b| (a.first_failed_at, &a.id).cmp(&(b.first_failed_at, &b.id)));
            found.extend(page);
            start = next;
            if start.is_none() || found.len() >= limit {
                break;
            }
        }
        Ok(Page { items: found, next: start.map(Cursor::new) })
    }

    /// Settles every open failed confirmation whose reservation is the order that it asked for, until time runs out:
    /// the sweep does this, so that open ones need an answer even if nobody has listed them. Returns how many are open.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn settle_open(&self, now: Timestamp, deadline: Deadline) -> Result<u64, Error> {
        let (mut open, mut cursor) = (0, None);
        loop {
            let page = self.failed_confirmations(Some(FailedState::Open), 100, cursor, now, deadline).await?;
            open += page.items.len() as u64;
            cursor = page.next;
            if cursor.is_none() || deadline.passed() {
                return Ok(open);
            }
        }
    }

    /// These failed confirmations, after settling those whose reservations are the orders that they asked for.
    async fn settle_ordered(
        &self,
        page: Vec<FailedConfirmation>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<FailedConfirmation>, Error> {
        let unsettled = page.iter().filter(|failed| !failed.state.is_settled());
        let ids: BTreeSet<&ReservationId> = unsettled.filter_map(|failed| failed.reservation_id.as_ref()).collect();
        let mut reservations = BTreeMap::new();
        for item in self.get_many(ids.into_iter().map(keys::reservation).collect(), deadline).await? {
            match items::read::<Reservation>("reservation", item) {
                Ok(reservation) => _ = reservations.insert(reservation.reservation_id.clone(), reservation),
                // One that cannot be read must not hide the others.
                Err(error) => tracing::error!(%error, "a failed confirmation is not compared with its reservation"),
            }
        }
        let mut settled = Vec::with_capacity(page.len());
        for failed in page {
            let reservation = failed.reservation_id.as_ref().and_then(|id| reservations.get(id));
            let ordered = !failed.state.is_settled() && reservation.is_some_and(|found| failed.is_settled_by(found));
            settled.push(if ordered { self.settle(failed, now, deadline).await? } else { failed });
        }
        Ok(settled)
    }

    async fn update_failed(
        &self,
        id: &str,
        change: Change,
        deadline: Deadline,
    ) -> Result<Option<FailedConfirmation>, Error> {
        match self.update(&keys::failed(id), change, &mut self.attempts(deadline)).await? {
            Updated::Applied(item) => items::read("failed confirmation", item).map(Some),
            Updated::ConditionFailed(_) => Ok(None),
        }
    }
}

/// Part of a condition: no admin has resolved `:payment`.
const NOT_REFUNDED: &str = "(attribute_not_exists(#refunded) OR NOT contains(#refunded, :payment))";

/// The update that records a resolution on the reservation, and the condition that it is not the order.
fn resolution_note(seen: &FailedConfirmation, found: &Reservation, now: Timestamp) -> Change {
    let mut values = vec![(":created", time(found.created_at)), (":confirmed", text(Status::Confirmed.as_str()))];
    match &seen.payment_reference {
        Some(payment) => {
            values.push((":payment", text(payment.as_str())));
            let no_order = "NOT (#status = :confirmed AND #payment_reference = :payment)";
            let mut update = owe_back_update(payment, None);
            update.text.push_str(", #refunded :owed_back");
            (update, Expression::new(format!("#created_at = :created AND {no_order} AND {NOT_REFUNDED}"), values))
        }
        None => {
            // Whichever clock dated it.
            let asked = seen.requested_at.map_or(now, |at| at.max(now));
            (
                close_unpaid_update(found.unpaid_closed_by(asked)),
                Expression::new(
                    format!("#created_at = :created AND #status <> :confirmed AND {CLOSED_EARLIER}"),
                    values,
                ),
            )
        }
    }
}

/// The update that stores what is known of a failure.
pub(crate) fn record_update(failed: &FailedConfirmation) -> Expression {
    let mut update = "SET #id = :id, #reason = :reason, #body = :body, #state = :open, #failures = :failures, \
         #first_failed_at = :first, #last_failed_at = :last"
        .to_owned();
    let mut values = vec![
        (":id", text(&failed.id)),
        (":reason", text(&failed.reason)),
        (":body", text(&failed.body)),
        (":open", text(FailedState::Open.as_str())),
        (":failures", number(failed.failures)),
        (":first", time(failed.first_failed_at)),
        (":last", time(failed.last_failed_at)),
    ];
    let mut optional = |set: &str, name, value: Option<AttributeValue>| {
        if let Some(value) = value {
            update.push_str(set);
            values.push((name, value));
        }
    };
    optional(
        ", #reservation_id = :reservation_id, #due_at = :first",
        ":reservation_id",
        failed.reservation_id.as_ref().map(|id| text(id.as_str())),
    );
    optional(
        ", #due_key = :due_key",
        ":due_key",
        failed.reservation_id.as_ref().map(|id| text(keys::failed_partition(id))),
    );
    // Not `customer`: that attribute would put it into the index of reservations.
    optional(
        ", #failed_customer = :failed_customer",
        ":failed_customer",
        failed.customer.as_ref().map(|customer| text(customer.as_str())),
    );
    optional(
        ", #payment_reference = :payment_reference",
        ":payment_reference",
        failed.payment_reference.as_ref().map(|payment| text(payment.as_str())),
    );
    optional(", #requested_at = :requested_at", ":requested_at", failed.requested_at.map(time));
    Expression::new(update, values)
}

/// Settles one whose reservation is an order; not if that was given back meanwhile.
fn settle(now: Timestamp) -> Change {
    let (update, mut condition) = settle_as(FailedState::Confirmed, "retry", now);
    condition.text.push_str(" AND #reason <> :given_back");
    condition.values.push((":given_back", text(ORDER_CANCELLED)));
    (update, condition)
}

/// The update that settles one whose payment was resolved by another one, and its condition.
fn settle_as_duplicate(now: Timestamp) -> Change {
    settle_as(FailedState::Resolved, "duplicate", now)
}

fn settle_as(state: FailedState, by: &str, now: Timestamp) -> Change {
    let update = Expression::new(
        "SET #state = :settled, #settled_at = :now, #settled_by = :by",
        vec![(":settled", text(state.as_str())), (":now", time(now)), (":by", text(by))],
    );
    (update, Expression::new(UNSETTLED, unsettled()))
}

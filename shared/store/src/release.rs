//! Ending holds and releasing their units: cancelled by the customer, released by an admin, or expired. (One protocol, hence
//! the length.)
//!
//! A hold ends once: its reservation leaves `held` in the transaction that moves the units, under the condition that it
//! is held and is what was read (`created_at` and the lines' `revision`). Otherwise a late copy of a release could release a
//! new hold under the same key, made after the first was deleted, or give back units that it no longer has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use std::{slice, vec};

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use holdfast_domain::decide::{self, CancelDecision, ReleaseDecision};
use holdfast_domain::{
    Cancellation, CustomerId, HoldRelease, Product, ProductId, Refusal, Reservation, ReservationId, Status, Timestamp,
};

use crate::cache::{CachedProduct, ReadTime};
use crate::error::Attempts;
use crate::items::{self, Hold, text, time, ttl, unchanged};
use crate::looks::SEARCH_LIFETIME_MS;
use crate::partitions::DUE_OF_SHARD;
use crate::transact::{MAX_ACTIONS, Outcome, Reason, Transaction, contention_error};
use crate::units::given_back;
use crate::update::{Expression, Updated};
use crate::{Deadline, Error, Item, QUERIES_AT_ONCE, Store, keys, measure, side_by_side};

/// The most holds in one transaction: with a limit each, and their shard, they are 99 of its 100 actions.
pub(crate) const HOLDS_PER_TRANSACTION: usize = 49;
/// Transactions of one sweep at once, each on shards of its own: enough for 100,000 holds in two minutes. More would take
/// more of the shards from reserves, and write more to the index and the table than a sale does.
const RELEASES_AT_ONCE: usize = 2;
/// How long a sweep rests between two transactions on the same shards if it has no others to go to meanwhile: without, hardly any
/// reserve would get its turn there (docs/performance.md, the model).
const REST: Duration = Duration::from_millis(5);
/// How long one batch may take, or one page of the index: a busy shard must not delay the release of other holds.
const BATCH_BUDGET: Duration = Duration::from_secs(4);
/// The holds read in one query: from the two partitions of a shard, eight transactions' worth.
const HOLDS_PER_PAGE: i32 = 200;
/// A sweep reads pages until it has this many holds, and releases those before it reads more: what it has read must fit into its
/// memory.
const HOLDS_PER_ROUND: usize = 3_200;

/// The attribute with the token of the request of an admin that released a hold.
const RELEASED_BY: &str = "released_by";

/// The result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Holds released by this sweep.
    pub holds: u64,
    /// Units released.
    pub units: u64,
    /// Holds that ended or changed before: confirmed, cancelled, extended, or released by another sweep.
    pub ended_before: u64,
    /// Whether every overdue hold was handled. If not, the next sweep continues.
    pub complete: bool,
}

/// How a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// By its customer.
    Cancelled,
    /// By an admin, who need not know when it ends.
    Released(&'a AdminRelease),
    Expired,
}

/// One request of an admin that releases holds.
#[derive(Debug, PartialEq, Eq)]
struct AdminRelease {
    record: Cancellation,
    /// Tells it from the request of another admin, or from its own repetition, with the same reason in the same
    /// millisecond: each hold is counted in one answer.
    token: String,
}

/// The meaning of an action in a release.
#[derive(Debug, Clone, Copy)]
enum Action {
    Hold(usize),
    Units,
}

impl Store {
    /// Cancels a hold for its owner. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::HoldExpired`], [`Refusal::AlreadyConfirmed`].
    pub async fn cancel(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        loop {
            let reservation = self.reservation(id, customer, deadline).await?;
            match decide::cancellation(&reservation, now) {
                CancelDecision::Refuse(Refusal::HoldExpired) => {
                    if self.end_for_good(&reservation, now, deadline).await? {
                        return Err(Refusal::HoldExpired.into());
                    }
                    continue;
                }
                CancelDecision::Refuse(refusal) => return Err(refusal.into()),
                CancelDecision::Done => return Ok(reservation),
                CancelDecision::Release => {}
            }
            let released = self.release(vec![Hold::from(&reservation)], End::Cancelled, now, deadline).await?;
            if released.holds == 1 {
                // Units are free: this environment must not answer "sold out" from its cache.
                for line in &reservation.lines {
                    self.with_cached(&line.product_id, CachedProduct::invalidate_stock);
                }
                return Ok(Reservation { status: Status::Cancelled, cancelled_at: Some(now), ..reservation });
            }
            // It has ended or changed meanwhile: decide again.
            if deadline.passed() {
                return Err(self.attempts(deadline).unavailable("cancel"));
            }
        }
    }

    /// Releases a hold for an admin, who calls an event off: no payment makes an order of it afterwards. Repeating it changes
    /// nothing: the first reason stays.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::AlreadyConfirmed`].
    pub async fn release_hold(
        &self,
        id: &ReservationId,
        command: &HoldRelease,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let release = self.admin_release(command, now);
        let mut attempts = self.attempts(deadline);
        loop {
            let seen = self.any_reservation(id, deadline).await?;
            match decide::release(&seen) {
                ReleaseDecision::Refuse(refusal) => return Err(refusal.into()),
                ReleaseDecision::Done => return Ok(seen),
                ReleaseDecision::Close => {
                    if let Updated::Applied(closed) = self.close_expired(&seen, &release.record, &mut attempts).await? {
                        return Ok(closed);
                    }
                }
                ReleaseDecision::Release => {
                    self.release(vec![Hold::from(&seen)], End::Released(&release), now, deadline).await?;
                    for line in &seen.lines {
                        self.with_cached(&line.product_id, CachedProduct::invalidate_stock);
                    }
                }
            }
            // Read what became of it: it may have changed meanwhile.
            if deadline.passed() {
                return Err(attempts.unavailable("release"));
            }
        }
    }

    fn admin_release(&self, command: &HoldRelease, now: Timestamp) -> AdminRelease {
        AdminRelease { record: command.record(now), token: self.random_token() }
    }

    /// Cancels a hold that has expired, and whose units are free.
    async fn close_expired(
        &self,
        seen: &Reservation,
        record: &Cancellation,
        attempts: &mut Attempts<'_>,
    ) -> Result<Updated<Reservation>, Error> {
        let update = Expression::new(
            "SET #status = :cancelled, #cancellation = :cancellation",
            vec![
                (":cancelled", text(Status::Cancelled.as_str())),
                (":cancellation", items::value("cancellation", record)?),
            ],
        );
        let condition = Expression::new(
            "#status = :expired AND #created_at = :created",
            vec![(":expired", text(Status::Expired.as_str())), (":created", time(seen.created_at))],
        );
        self.update_reservation(&seen.reservation_id, (update, condition), attempts).await
    }

    /// Releases every hold that has units of a product, with its other lines, for an admin who calls an event off. Those
    /// that the index `due` does not show yet are left: nobody may reserve the product meanwhile.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`]; otherwise as [`Store::release_overdue`]. Running out of time is not an error: see
    /// [`Swept::complete`].
    pub async fn release_all(
        &self,
        id: &ProductId,
        command: &HoldRelease,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Swept, Error> {
        let facts = self.facts([id].into_iter(), 0, deadline).await?;
        let product = facts.get(id).ok_or_else(|| Refusal::ProductNotFound { product_id: id.clone() })?;
        let release = self.admin_release(command, now);
        let end_of_time = Timestamp::from_millis(i64::MAX);
        let mut swept = Swept { complete: true, ..Swept::default() };
        let mut failed = None;
        // Baskets come last: a hold that becomes one meanwhile is found there.
        let partitions: Vec<String> = self.partitions.due_of(product).chain(self.partitions.due_of_baskets()).collect();
        // Those of one shard, or they might be too many for the memory; and each as a whole, since a hold that is released
        // leaves the index.
        for part in partitions.chunks(DUE_OF_SHARD as usize) {
            let read = |due: &String| self.due_holds_of(slice::from_ref(&product), due.clone(), end_of_time, deadline);
            let holds = match side_by_side(part.iter().map(read).collect()).await {
                Ok(found) => {
                    let (holds, unreadable): (Vec<_>, Vec<_>) = found.into_iter().unzip();
                    let unreadable = unreadable.into_iter().flatten().next();
                    swept.complete &= unreadable.is_none();
                    failed = failed.or(unreadable);
                    holds.into_iter().flatten().collect()
                }
                Err(Error::Unavailable { .. }) => {
                    swept.complete = false;
                    break;
                }
                Err(error) => return Err(error),
            };
            // One at a time: each is also a write to these few partitions.
            let parts = self.release_side_by_side(holds, End::Released(&release), 1, now, deadline).await;
            for Part { released, error, .. } in parts.parts {
                // One that has changed since it was read may still be held.
                swept.complete &= released.ended_before == 0 && error.is_none();
                swept.add(released);
                match error {
                    None | Some(Error::Unavailable { .. }) => {}
                    Some(error) => _ = failed.get_or_insert(error),
                }
            }
            swept.complete &= parts.all_begun;
            if deadline.passed() {
                swept.complete = false;
                break;
            }
        }
        self.with_cached(id, CachedProduct::invalidate_stock);
        failed.map_or(Ok(swept), Err)
    }

    /// Before the customer is told that it has expired: releases an overdue hold, and closes an expired one to unpaid
    /// confirmations that wait in the queue. Returns whether only a payment can change it now; if not, read it again.
    pub(crate) async fn end_for_good(
        &self,
        seen: &Reservation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        if seen.status == Status::Held {
            self.end_overdue(seen, now, deadline).await?;
        } else if let Updated::Applied(()) = self.close_unpaid(seen, &mut self.attempts(deadline)).await? {
            return Ok(true);
        }
        if deadline.passed() { Err(self.attempts(deadline).unavailable("release")) } else { Ok(false) }
    }

    /// Releases an overdue hold before anybody is told that it has expired: no clock that is behind can confirm it
    /// afterwards.
    pub(crate) async fn end_overdue(
        &self,
        held: &Reservation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), Error> {
        match self.release(vec![Hold::from(held)], End::Expired, now, deadline).await {
            Ok(_) => Ok(()),
            Err(error @ Error::Internal { .. }) => {
                tracing::error!(%error, reservation_id = held.reservation_id.as_str(), "hold not released");
                // While it is held, nobody can be told that it has expired for good.
                Err(Error::Unavailable { during: "release", last: "the hold cannot be released".to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// Releases every hold that is overdue at `now`. Safe to run twice, late, or concurrently.
    ///
    /// A batch that fails, or a hold that cannot be read, does not keep the others from being released; its error is
    /// returned at the end.
    ///
    /// # Errors
    /// The first error of a page, a hold or a batch. Running out of time is not an error if anything was released: see
    /// [`Swept::complete`].
    pub async fn release_overdue(&self, now: Timestamp, deadline: Deadline) -> Result<Swept, Error> {
        let mut swept = Swept { complete: true, ..Swept::default() };
        let mut failed = None;
        // A page of each partition in turn: each hold that is released is also a write to its partition.
        let mut left: VecDeque<(String, Option<Item>)> = self.partitions.all_due().map(|due| (due, None)).collect();
        // Another sweep may have begun at the same time, or the one before may have got no answer from the first ones.
        let first = self.random_below(u32::try_from(left.len()).unwrap_or(u32::MAX));
        left.rotate_left(usize::try_from(first).unwrap_or_default());
        while !left.is_empty() {
            // By key: one that gets other lines between two pages is on both, with a greater revision on the later one.
            let mut holds: BTreeMap<String, Hold> = BTreeMap::new();
            while holds.len() < HOLDS_PER_ROUND && !left.is_empty() && !deadline.passed() {
                let pages = left.drain(..QUERIES_AT_ONCE.min(left.len())).map(async |(due, start)| {
                    let page = self.overdue_page(&due, now, start, deadline.sooner(BATCH_BUDGET)).await;
                    (due, page)
                });
                for (due, page) in join_all(pages.collect::<Vec<_>>()).await {
                    let unread = match page {
                        Ok(page) => {
                            for hold in page.holds {
                                let known = holds.get(&hold.pk).map_or(0, Hold::revision);
                                if hold.revision() >= known {
                                    holds.insert(hold.pk.clone(), hold);
                                }
                            }
                            left.extend(page.next.map(|next| (due, Some(next))));
                            page.unreadable
                        }
                        Err(error) => Some(error),
                    };
                    if let Some(error) = unread {
                        swept.complete = false;
                        failed.get_or_insert(error);
                    }
                }
            }
            let holds = holds.into_values().collect();
            let parts = self.release_side_by_side(holds, End::Expired, RELEASES_AT_ONCE, now, deadline).await;
            swept.complete &= parts.all_begun;
            for Part { released, error, .. } in parts.parts {
                swept.add(released);
                if let Some(error) = error {
                    swept.complete = false;
                    failed.get_or_insert(error);
                }
            }
            if deadline.passed() {
                swept.complete &= left.is_empty();
                break;
            }
        }
        // What was in flight as the time was over has no answer. The next sweep goes on: no reason for an alarm.
        let cut_short = deadline.passed() && swept.holds > 0;
        match failed.filter(|error| !(cut_short && matches!(error, Error::Unavailable { .. }))) {
            None => Ok(swept),
            Some(error) => Err(error),
        }
    }

    /// Releases the overdue holds of these products, or of these and this customer: before a request is refused for
    /// lack of units. Returns also as of when none is left, if that is complete. If it looks `ahead`, it remembers until when
    /// no other one ends.
    ///
    /// Running out of time is not an error: [`Swept::complete`] is false then. Nor is a hold that cannot be released or
    /// read: the sweep reports it, and its units are not available to anybody.
    pub(crate) async fn release_overdue_of(
        &self,
        products: &[&Product],
        customer: Option<&CustomerId>,
        ahead: bool,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(Swept, ReadTime), Error> {
        // Dated before the reads, so that what they find is never older than its date.
        let looked_at = ReadTime::now(&self.clock);
        // The request may have begun a while ago: holds that have ended since then are overdue too.
        let now = now.max(looked_at.wall());
        let (mut as_of, mut unknown) = (looked_at, Vec::new());
        for product in products {
            let no_overdue = self.with_cached(&product.product_id, |cached| cached.no_overdue).flatten();
            match no_overdue.filter(|(at, until)| at.within(SEARCH_LIFETIME_MS, &self.clock) && now < *until) {
                // A hold may have got a line of this product since then, and have ended.
                Some((at, _)) => as_of = as_of.or_before(at),
                None => unknown.push(*product),
            }
        }
        let products = unknown;
        let mut swept = Swept { complete: true, ..Swept::default() };
        if products.is_empty() {
            return Ok((swept, as_of));
        }
        // Include the holds that end while the search is relied on, which is less than a tenth of the shortest hold: until the
        // first of them ends, no further search is needed.
        let ahead_ms = if ahead { SEARCH_LIFETIME_MS } else { 0 };
        let horizon = Timestamp::from_millis(now.as_millis().saturating_add(ahead_ms));
        let own: BTreeSet<String> = products.iter().flat_map(|product| self.partitions.due_of(product)).collect();
        // Baskets come last: a hold that becomes one meanwhile is found there. One that is found in both is the later one.
        let mut holds: BTreeMap<String, Hold> = BTreeMap::new();
        for partitions in [own, self.partitions.due_of_baskets().collect()] {
            let read = |due| self.due_holds_of(&products, due, horizon, deadline);
            let read: Vec<_> = partitions.into_iter().map(read).collect();
            let mut read = stream::iter(read).buffer_unordered(QUERIES_AT_ONCE);
            while let Some(part) = read.next().await {
                match part {
                    Ok((part, _)) => holds.extend(part.into_iter().map(|hold| (hold.pk.clone(), hold))),
                    Err(Error::Unavailable { .. }) => swept.complete = false,
                    Err(error) => return Err(error),
                }
            }
        }
        let (mut overdue, soon): (Vec<Hold>, Vec<Hold>) = holds.into_values().partition(|hold| hold.due_at <= now);
        let all = overdue.len();
        overdue.retain(|hold| customer.is_none_or(|customer| hold.customer == *customer));
        let left_over = overdue.len() < all;
        // Those of one customer would meet on a limit.
        let at_once = if customer.is_some() { 1 } else { RELEASES_AT_ONCE };
        let parts = self.release_side_by_side(overdue, End::Expired, at_once, now, deadline).await;
        swept.complete &= parts.all_begun;
        for Part { released, error, out_of_time } in parts.parts {
            swept.add(released);
            swept.complete &= !out_of_time;
            if let Some(error) = error.filter(|error| !matches!(error, Error::Unavailable { .. })) {
                tracing::error!(%error, "overdue hold not released");
            }
        }
        if ahead && swept.complete && !left_over {
            for product in &products {
                let of_it = |hold: &&Hold| hold.lines.iter().any(|line| line.product_id == product.product_id);
                let until = soon.iter().filter(of_it).map(|hold| hold.due_at).min().unwrap_or(horizon);
                self.with_cached(&product.product_id, |cached| cached.no_overdue = Some((looked_at, until)));
            }
        }
        Ok((swept, as_of))
    }

    /// The holds of these products in one partition of the index that end by `horizon`, and the error of one that cannot be
    /// read.
    async fn due_holds_of(
        &self,
        products: &[&Product],
        due: String,
        horizon: Timestamp,
        deadline: Deadline,
    ) -> Result<(Vec<Hold>, Option<Error>), Error> {
        let wanted = |hold: &Hold| {
            hold.lines.iter().any(|line| products.iter().any(|product| product.product_id == line.product_id))
        };
        // One that is extended between two pages is on both: by its key, as it was last read.
        let (mut found, mut unreadable, mut start) = (BTreeMap::new(), None, None);
        loop {
            let page = self.overdue_page(&due, horizon, start, deadline).await?;
            found.extend(page.holds.into_iter().filter(wanted).map(|hold| (hold.pk.clone(), hold)));
            unreadable = unreadable.or(page.unreadable);
            start = page.next;
            if start.is_none() {
                return Ok((found.into_values().collect(), unreadable));
            }
        }
    }

    /// A query of one partition of the index, for holds that end by a time, or for all: then it has to read `#due_at`.
    pub(crate) fn due_query(&self, due: &str, until: Option<Timestamp>) -> QueryFluentBuilder {
        let request = self
            .client
            .query()
            .index_name(keys::DUE_INDEX)
            .expression_attribute_names("#due_key", keys::DUE_KEY)
            .expression_attribute_names("#due_at", keys::DUE_AT)
            .expression_attribute_values(":key", text(due));
        match until {
            Some(until) => request
                .key_condition_expression("#due_key = :key AND #due_at <= :until")
                .expression_attribute_values(":until", time(until)),
            None => request.key_condition_expression("#due_key = :key"),
        }
    }

    /// A page of overdue holds in one partition of the index.
    async fn overdue_page(
        &self,
        due: &str,
        now: Timestamp,
        start: Option<Item>,
        deadline: Deadline,
    ) -> Result<OverduePage, Error> {
        let request = self.due_query(due, Some(now)).limit(HOLDS_PER_PAGE).set_exclusive_start_key(start);
        let (found, next) = self.query(request, deadline).await?;
        let mut page = OverduePage { holds: Vec::with_capacity(found.len()), unreadable: None, next };
        for item in found {
            match items::read("hold", item) {
                Ok(hold) => page.holds.push(hold),
                Err(error) => _ = page.unreadable.get_or_insert(error),
            }
        }
        Ok(page)
    }

    /// Releases these holds in as few transactions as they fit into, several at once. Those that share a shard are one after
    /// another, since they would refuse each other, and between two of them come those of other shards, so that reserves get
    /// their turn. If one of them has no answer in its time, the rest of them is left, so that a shard that refuses everything does
    /// not keep those of other shards waiting.
    async fn release_side_by_side(
        &self,
        holds: Vec<Hold>,
        end: End<'_>,
        at_once: usize,
        now: Timestamp,
        deadline: Deadline,
    ) -> Parts {
        let mut chains = chains(batches(holds));
        if chains.len() > at_once {
            // Another sweep may have begun at the same time.
            let first = self.random_below(u32::try_from(chains.len()).unwrap_or(u32::MAX));
            chains.rotate_left(usize::try_from(first).unwrap_or_default());
        }
        // What is left of each chain, and whether its shards need a rest first.
        let mut waiting: VecDeque<_> = chains.into_iter().map(|chain| (chain.into_iter(), false)).collect();
        let mut all = Parts { parts: Vec::new(), all_begun: true };
        let release_next = async |(mut chain, needs_rest): (vec::IntoIter<Vec<Hold>>, bool)| {
            if needs_rest {
                tokio::time::sleep(REST).await;
            }
            let part = match chain.next() {
                Some(batch) if !deadline.passed() => {
                    Some(self.release_each(batch, end, now, deadline.sooner(BATCH_BUDGET)).await)
                }
                _ => None,
            };
            (part, chain)
        };
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < at_once
                && let Some(next) = waiting.pop_front()
            {
                running.push(release_next(next));
            }
            let Some((part, chain)) = running.next().await else { return all };
            let goes_on = part.as_ref().is_some_and(|part| !part.out_of_time);
            all.all_begun &= goes_on;
            all.parts.extend(part);
            if goes_on && chain.len() > 0 {
                let no_other = waiting.is_empty();
                waiting.push_back((chain, no_other));
            }
        }
    }

    /// Releases these holds together or, if one of them cannot be released, each alone: a missing shard or limit must
    /// not keep the others.
    async fn release_each(&self, holds: Vec<Hold>, end: End<'_>, now: Timestamp, deadline: Deadline) -> Part {
        let alone = holds.len() == 1;
        let mut part = Part::default();
        match self.release(holds.clone(), end, now, deadline).await {
            Err(error @ Error::Internal { .. }) if !alone => {
                tracing::warn!(%error, "holds not released together; trying each alone");
            }
            released => {
                part.add(released);
                return part;
            }
        }
        for hold in holds {
            part.add(self.release(vec![hold], end, now, deadline).await);
        }
        part
    }

    /// Releases these holds in one transaction, without those that turn out to have ended.
    async fn release(
        &self,
        mut holds: Vec<Hold>,
        end: End<'_>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Swept, Error> {
        let mut attempts = self.attempts(deadline);
        let mut swept = Swept::default();
        let mut changed = Vec::new();
        while !holds.is_empty() {
            let transaction = self.release_transaction(&holds, end, now)?;
            let reasons = match self.transact(&transaction, &mut attempts).await? {
                Outcome::Applied => {
                    note_released(&holds, end, now);
                    swept.holds += holds.len() as u64;
                    swept.units += units(&holds);
                    // Each alone: with other lines, they might not fit a transaction together.
                    holds = changed.pop().into_iter().collect();
                    swept.ended_before -= holds.len() as u64;
                    continue;
                }
                Outcome::TryAgain => continue,
                Outcome::Cancelled(reasons) => reasons,
            };
            let mut ended = vec![false; holds.len()];
            let (mut lacking, mut own) = (false, 0);
            for (action, reason) in &reasons {
                match (action, reason) {
                    (&Action::Hold(at), Reason::Condition(item)) => {
                        ended[at] = true;
                        changed.extend(held_with_other_lines(&holds[at], item.as_ref(), end)?);
                        if released_before(item.as_ref(), end) {
                            note_released(&holds[at..=at], end, now);
                            swept.add(Swept { holds: 1, units: units(&holds[at..=at]), ..Swept::default() });
                            own += 1;
                        }
                    }
                    (Action::Units, Reason::Condition(_)) => lacking = true,
                    (_, Reason::Conflict | Reason::Throttled) => {}
                }
            }
            if !ended.contains(&true) {
                // A hold that has ended has released its units before. A conflict may hide that, and so may the
                // different instants of the conditions: read the holds to see whether units are really missing.
                if lacking && !reasons.iter().any(|(_, reason)| reason.hides_condition()) {
                    for (at, item) in self.which_have_ended(&holds, &mut attempts).await? {
                        ended[at] = true;
                        changed.extend(held_with_other_lines(&holds[at], item.as_ref(), end)?);
                    }
                    if !ended.contains(&true) {
                        return Err(Error::internal("release", "a shard or a limit of the hold does not exist"));
                    }
                } else {
                    attempts.pause(contention_error(&reasons)).await?;
                }
            }
            swept.ended_before += ended.iter().filter(|&&ended| ended).count() as u64 - own;
            let mut ended = ended.into_iter();
            holds.retain(|_| !ended.next().unwrap_or(false));
            if holds.is_empty() {
                holds = changed.pop().into_iter().collect();
                swept.ended_before -= holds.len() as u64;
            }
        }
        Ok(swept)
    }

    /// Which of these are no longer held, or have changed, and what they are now.
    async fn which_have_ended(
        &self,
        holds: &[Hold],
        attempts: &mut Attempts<'_>,
    ) -> Result<Vec<(usize, Option<Item>)>, Error> {
        let keys = holds.iter().map(|hold| Ok(keys::reservation(&hold.reservation_id()?)));
        let found = self.snapshot(&keys.collect::<Result<Vec<_>, Error>>()?, attempts).await?;
        let mut ended = Vec::new();
        for (at, (hold, item)) in holds.iter().zip(found).enumerate() {
            let now = item.clone().map(|item| items::read::<Reservation>("reservation", item)).transpose()?;
            let same = |now: &Reservation| {
                now.status == Status::Held && now.created_at == hold.created_at && now.revision() == hold.revision()
            };
            if !now.as_ref().is_some_and(same) {
                ended.push((at, item));
            }
        }
        Ok(ended)
    }

    fn release_transaction(
        &self,
        holds: &[Hold],
        end: End<'_>,
        now: Timestamp,
    ) -> Result<Transaction<'_, Action>, Error> {
        let mut transaction = Transaction::new(&self.table);
        for (at, hold) in holds.iter().enumerate() {
            let status = match end {
                End::Cancelled | End::Released(_) => Status::Cancelled,
                End::Expired => Status::Expired,
            };
            let mut condition = unchanged(hold.created_at, hold.revision());
            condition.text.push_str(" AND #status = :held");
            condition.values.push((":held", text(Status::Held.as_str())));
            // Some are kept for longer: see `kept_until`.
            let mut set = "SET #status = :end, #ttl = if_not_exists(#kept_until, :ttl)".to_owned();
            let mut values = vec![(":end", text(status.as_str())), (":ttl", ttl(now))];
            // It may have been extended since it was read.
            match end {
                End::Expired => {
                    condition.text.push_str(" AND #expires_at <= :now");
                    condition.values.push((":now", time(now)));
                }
                // The answer shows the hold as it was read.
                End::Cancelled => {
                    condition.text.push_str(" AND #expires_at = :expires");
                    condition.values.push((":expires", time(hold.due_at)));
                    set.push_str(", #cancelled_at = :now");
                    values.push((":now", time(now)));
                }
                End::Released(AdminRelease { record, token }) => {
                    set.push_str(", #cancellation = :cancellation, #released_by = :token");
                    values.push((":cancellation", items::value("cancellation", record)?));
                    values.push((":token", text(token)));
                }
            }
            let update = Expression::new(format!("{set} REMOVE #due_key, #due_at"), values);
            let key = keys::reservation(&hold.reservation_id()?);
            transaction.update(Action::Hold(at), &key, (update, condition))?;
        }
        for (key, change) in given_back(holds) {
            transaction.update(Action::Units, &key, change)?;
        }
        Ok(transaction)
    }
}

/// The hold as it is now, if it is still held and its lines or its owner were changed since it was read from an index.
fn held_with_other_lines(read: &Hold, item: Option<&Item>, end: End<'_>) -> Result<Option<Hold>, Error> {
    // Others decide again: a customer's answer shows the hold, and an admin may have asked for those of one product.
    let Some(item) = item.filter(|_| end == End::Expired) else { return Ok(None) };
    let now: Reservation = items::read("reservation", item.clone())?;
    let changed = now.status == Status::Held && now.created_at == read.created_at && now.revision() != read.revision();
    Ok(changed.then(|| Hold::from(&now)))
}

/// Whether it was this very request of an admin that ended it, by a try whose answer was lost.
fn released_before(item: Option<&Item>, end: End<'_>) -> bool {
    let (Some(item), End::Released(release)) = (item, end) else { return false };
    item.get(RELEASED_BY) == Some(&text(&release.token))
}

/// Counts each hold that has ended. Names each that has expired or that an admin released, so that a search for its
/// reservation shows how it ended; a cancelled one is named by its request.
fn note_released(holds: &[Hold], end: End<'_>, now: Timestamp) {
    for hold in holds {
        let units: u32 = hold.lines.iter().map(|line| line.quantity).sum();
        let id = hold.reservation_id().ok();
        let reservation_id = id.as_ref().map(ReservationId::as_str);
        match end {
            End::Cancelled => measure::note(measure::GIVEN_BACK, 1),
            End::Expired => {
                let lag_ms = now.as_millis().saturating_sub(hold.due_at.as_millis());
                measure::note(measure::RELEASE_LAG, u64::try_from(lag_ms).unwrap_or_default());
                measure::note(measure::EXPIRED, 1);
                tracing::info!(reservation_id, units, "hold expired");
            }
            End::Released(_) => {
                measure::note(measure::GIVEN_BACK, 1);
                tracing::info!(reservation_id, units, "hold released");
            }
        }
    }
}

/// What became of holds that were to be released.
struct Parts {
    /// Of each transaction.
    parts: Vec<Part>,
    /// Whether all of them were begun.
    all_begun: bool,
}

/// What became of the holds of one transaction.
#[derive(Default)]
struct Part {
    released: Swept,
    /// The first error.
    error: Option<Error>,
    /// Whether one of them may be released by another try, whatever the first error is.
    out_of_time: bool,
}

impl Part {
    fn add(&mut self, released: Result<Swept, Error>) {
        match released {
            Ok(released) => self.released.add(released),
            Err(error) => {
                self.out_of_time |= matches!(error, Error::Unavailable { .. });
                self.error.get_or_insert(error);
            }
        }
    }
}

/// A page of overdue holds.
struct OverduePage {
    holds: Vec<Hold>,
    /// The error of a hold that cannot be read, as after a rollback to an older version of this program.
    unreadable: Option<Error>,
    /// Where the next page starts.
    next: Option<Item>,
}

impl Swept {
    fn add(&mut self, part: Self) {
        self.holds += part.holds;
        self.units += part.units;
        self.ended_before += part.ended_before;
    }
}

fn units(holds: &[Hold]) -> u64 {
    holds.iter().flat_map(|hold| &hold.lines).map(|line| u64::from(line.quantity)).sum()
}

/// The first shard that a hold has units of.
fn home(hold: &Hold) -> Option<(&ProductId, Option<u32>)> {
    hold.lines.first().map(|line| (&line.product_id, line.takes.first().map(|take| take.shard)))
}

/// Groups holds into transactions: those of one shard together, none with more actions than a transaction may have.
fn batches(mut holds: Vec<Hold>) -> Vec<Vec<Hold>> {
    // From the end, so that each batch has room for its own holds only.
    holds.sort_by(|one, other| home(other).cmp(&home(one)));
    let mut batches = Vec::new();
    while !holds.is_empty() {
        let last = |size: usize| &holds[holds.len() - size..];
        let fits = |batch: &[Hold]| {
            home(&batch[0]) == home(&batch[batch.len() - 1]) && batch.len() + given_back(batch).len() <= MAX_ACTIONS
        };
        // One alone always fits.
        let most = holds.len().min(HOLDS_PER_TRANSACTION);
        let size = (2..=most).find(|&size| !fits(last(size))).map_or(most, |size| size - 1);
        batches.push(holds.split_off(holds.len() - size));
    }
    batches
}

/// Those that have a shard in common are in one chain, to be released one after another. Limits that they have in common are
/// few: two releases that meet on one are retried.
fn chains(batches: Vec<Vec<Hold>>) -> Vec<Vec<Vec<Hold>>> {
    let mut chains: BTreeMap<usize, Vec<Vec<Hold>>> = BTreeMap::new();
    // The chain of each shard; where chains have become one, the number of the one that they are part of now.
    let mut of_shard: BTreeMap<(ProductId, u32), usize> = BTreeMap::new();
    let mut part_of: Vec<usize> = Vec::new();
    for batch in batches {
        let own = part_of.len();
        part_of.push(own);
        let mut chain = Vec::new();
        for line in batch.iter().flat_map(|hold| &hold.lines) {
            for take in &line.takes {
                let Some(mut other) = of_shard.insert((line.product_id.clone(), take.shard), own) else { continue };
                while part_of[other] != other {
                    other = part_of[other];
                }
                if other != own {
                    part_of[other] = own;
                    chain.extend(chains.remove(&other).into_iter().flatten());
                }
            }
        }
        chain.push(batch);
        chains.insert(own, chain);
    }
    chains.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::{HoldSeconds, IdempotencyKey, Line, Take};

    /// A hold of one unit from each of these shards of a product.
    fn hold(n: usize, product: &str, shards: impl IntoIterator<Item = u32>) -> Hold {
        let customer = CustomerId::try_from("alice").unwrap();
        let takes: Vec<Take> = shards.into_iter().map(|shard| Take { shard, units: 1 }).collect();
        let line = Line {
            product_id: product.try_into().unwrap(),
            quantity: takes.iter().map(|take| take.units).sum(),
            name: "Tee".to_owned(),
            unit_price_minor: 1,
            limited: false,
            takes,
            revision: 0,
        };
        let reservation_id = ReservationId::derive(&customer, &IdempotencyKey::try_from(format!("k{n}")).unwrap());
        let (currency, now) = ("EUR".to_owned().try_into().unwrap(), Timestamp::from_millis(0));
        Hold::from(&Reservation::held(reservation_id, customer, vec![line], currency, HoldSeconds::DEFAULT, now))
    }

    fn sizes(holds: Vec<Hold>) -> Vec<usize> {
        batches(holds).iter().map(Vec::len).collect()
    }

    #[test]
    fn holds_of_one_shard_share_a_transaction_up_to_forty_nine() {
        assert_eq!(sizes((0..110).map(|n| hold(n, "tee", [3])).collect()), [49, 49, 12]);
        // In any order, those of another shard or product are apart.
        let mixed = (0..30).map(|n| hold(n, if n % 3 == 0 { "cap" } else { "tee" }, [u32::from(n % 3 == 1)]));
        assert_eq!(sizes(mixed.collect()), [10, 10, 10]);
    }

    /// How long releases of 100,000 holds of limited products take by the calls of a sweep, in seconds: a transaction takes 18 ms
    /// and 0.3 ms an item, as in the model of docs/performance.md, and a page of each partition 20 ms.
    fn computed(shards: u32) -> f64 {
        let pages = usize::try_from(shards * DUE_OF_SHARD).unwrap().min(QUERIES_AT_ONCE);
        let round = usize::try_from(HOLDS_PER_PAGE).unwrap() * pages;
        assert!(round <= HOLDS_PER_ROUND);
        let in_round = u32::try_from(pages).unwrap() / DUE_OF_SHARD;
        let holds = (0..round).map(|n| hold(n, "tee", [u32::try_from(n).unwrap() % in_round])).collect();
        let mut waiting: VecDeque<_> =
            chains(batches(holds)).into_iter().map(|chain| (chain.into_iter(), 0.0)).collect();
        let mut running: Vec<(f64, vec::IntoIter<Vec<Hold>>)> = Vec::new();
        let mut millis = 20.0;
        loop {
            while running.len() < RELEASES_AT_ONCE
                && let Some((mut chain, rest)) = waiting.pop_front()
            {
                // Each hold, its limit, and the shard.
                let takes = chain.next().map_or(0.0, |batch| 18.0 + 0.3 * (2 * batch.len() + 1) as f64);
                running.push((millis + rest + takes, chain));
            }
            // From the one that ends last, so that the first is the last one here.
            running.sort_by(|one, other| other.0.total_cmp(&one.0));
            let Some((ends, chain)) = running.pop() else { break };
            millis = ends;
            if chain.len() > 0 {
                let rest = if waiting.is_empty() { REST.as_secs_f64() * 1e3 } else { 0.0 };
                waiting.push_back((chain, rest));
            }
        }
        millis / 1e3 * 100_000.0 / round as f64
    }

    #[test]
    fn a_hundred_thousand_overdue_holds_take_less_than_two_minutes() {
        let (sixteen, one) = (computed(16), computed(1));
        eprintln!("16 shards: {sixteen:.0} s; 1 shard: {one:.0} s");
        assert!(sixteen < 60.0 && one < 120.0, "{sixteen}, {one}");
    }

    #[test]
    fn a_round_takes_no_more_room_than_its_holds() {
        // Each of another shard, with some that join two of them.
        let holds = |n: usize| {
            let shards = if n.is_multiple_of(10) { vec![0, 1] } else { vec![0] };
            hold(n, &format!("tee-{}", n / 2), shards.into_iter().map(|shard| shard + u32::from(!n.is_multiple_of(2))))
        };
        let all = 2 * HOLDS_PER_ROUND;
        let batches = batches((0..all).map(holds).collect());
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), all);
        let room: usize = batches.iter().map(Vec::capacity).sum();
        assert!(room < 2 * all, "{room}");
        let chains = chains(batches);
        assert_eq!(chains.iter().flatten().map(Vec::len).sum::<usize>(), all);
        // No shard is in two of them.
        let mut seen = BTreeMap::new();
        for (number, chain) in chains.iter().enumerate() {
            for line in chain.iter().flatten().flat_map(|hold| &hold.lines) {
                for take in &line.takes {
                    let shard = (line.product_id.clone(), take.shard);
                    assert_eq!(*seen.entry(shard).or_insert(number), number);
                }
            }
        }
    }

    #[test]
    fn a_batch_fits_a_transaction() {
        // Each hold is one action, and so is each shard that gets units back, from however many holds.
        assert_eq!(sizes((0..3).map(|n| hold(n, "tee", 0..64)).collect()), [3]);
        // 2 holds and 98 shards are a hundred actions; one shard more is too many.
        let together = |more: u32| vec![hold(0, "tee", 0..60), hold(1, "tee", [0].into_iter().chain(60..98 + more))];
        assert_eq!(sizes(together(0)), [2]);
        assert_eq!(sizes(together(1)), [1, 1]);
        assert_eq!(given_back(&together(0)).len(), 98);
    }
}

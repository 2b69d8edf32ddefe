//! Making a hold: one transaction, and in a warm environment nothing before it.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{Basket, Draft, Line, Product, Refusal, Reservation, Shortage, Status, Take, Timestamp, draft};

use crate::error::Attempts;
use crate::items::{self, ShardItem, number};
use crate::products::{FACTS_LIFETIME, REFUSAL_LIFETIME};
use crate::transact::{Cancelled, Expression, MAX_ACTIONS, Reason, Transaction, worst};
use crate::{Deadline, Error, Item, Store, keys};

/// How long a reserve that found too little may spend on releasing what is overdue.
const RELEASE_FIRST: Duration = Duration::from_secs(1);

/// A reservation that was made, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The reservation as it is now.
    pub reservation: Reservation,
    /// Whether an earlier request made it.
    pub replayed: bool,
}

/// What an action of the transaction stands for.
#[derive(Debug, Clone, Copy)]
enum Action {
    Reservation,
    Shard { line: usize, take: Take },
    Limit { line: usize },
}

/// What a cancelled reserve means, in the order of precedence.
enum Verdict {
    /// The reservation exists: it outranks everything.
    Exists(Option<Item>),
    /// The facts that the draft rests on are out of date.
    Stale,
    /// The customer's limit stands against it.
    Limit { line: usize },
    /// A shard holds too little.
    Short,
    /// Nothing stands against it but other transactions.
    Contention,
}

impl Store {
    /// Makes the hold that `basket` asks for, or finds the one that it made before.
    ///
    /// `remind` makes sure that something will look at the hold when it ends; it is awaited before the transaction,
    /// so there is no hold without its reminder.
    ///
    /// # Errors
    /// Every refusal that reserving can meet, and [`Error::Unavailable`] where contention or lost answers outlast the
    /// deadline: the hold may exist then, and the same key finds it.
    pub async fn reserve<F>(
        &self,
        basket: &Basket,
        now: Timestamp,
        deadline: Deadline,
        remind: impl Fn(Timestamp) -> F,
    ) -> Result<Reserved, Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let mut attempts = self.attempts(deadline);
        let mut released = false;
        // Whether all shards were looked at since anything was learned of the stock.
        let mut looked = false;
        let mut facts_age = FACTS_LIFETIME;
        loop {
            let facts = self.facts(basket.products(), facts_age, deadline).await?;
            let draft = match draft(basket, &facts, now) {
                Ok(draft) => draft,
                Err(_) if facts_age > REFUSAL_LIFETIME => {
                    facts_age = REFUSAL_LIFETIME;
                    continue;
                }
                Err(refusal) => return self.replay_or(basket, refusal, deadline).await,
            };
            let lines = match self.choose(&draft, looked) {
                Ok(lines) => lines,
                Err(Lack::Certain(refusal)) => return self.replay_or(basket, refusal, deadline).await,
                Err(Lack::Perhaps) => {
                    let products: Vec<&Product> = draft.lines.iter().map(|line| &line.product).collect();
                    self.look(&products, deadline).await?;
                    if !released && self.choose(&draft, true).is_err() {
                        released = true;
                        if self.release_overdue_of(&products, now, deadline.sooner(RELEASE_FIRST)).await? > 0 {
                            self.look(&products, deadline).await?;
                        }
                    }
                    looked = true;
                    continue;
                }
            };
            remind(draft.expires_at).await?;
            let reservation = held(basket, &draft, lines, now);
            let Err(cancelled) = self.try_reserve(&reservation, &draft, &mut attempts).await? else {
                return Ok(Reserved { reservation, replayed: false });
            };
            let reasons = match cancelled {
                Cancelled::Fault(fault) => {
                    attempts.pause(fault).await?;
                    continue;
                }
                Cancelled::Because(reasons) => reasons,
            };
            match self.learn(&draft, &reasons)? {
                Verdict::Exists(item) => {
                    let item = match item {
                        Some(item) => item,
                        // Some emulators leave the old item out.
                        None => match self.get(keys::reservation(&basket.reservation_id), deadline).await? {
                            Some(item) => item,
                            None => continue,
                        },
                    };
                    let mut found = replay(basket, items::read("reservation", item)?)?;
                    // Made by our own earlier try, whose answer was lost: for the caller it is the first answer.
                    found.replayed = !(attempts.ambiguous && found.reservation.created_at == now);
                    return Ok(found);
                }
                Verdict::Stale => {
                    facts.keys().for_each(|id| self.forget(id));
                    attempts.count();
                }
                Verdict::Limit { line } => {
                    let Product { product_id, version, .. } = &draft.lines[line].product;
                    // A change that has not reached the shards yet may have lifted the limit.
                    let newest = self.facts([product_id].into_iter(), REFUSAL_LIFETIME, deadline).await?;
                    if newest.get(product_id).is_none_or(|newest| newest.version == *version) {
                        let limit = draft.lines[line].product.max_per_customer.unwrap_or_default();
                        return Err(Refusal::CustomerLimitReached { product_id: product_id.clone(), limit }.into());
                    }
                    attempts.count();
                }
                Verdict::Short => {
                    looked = false;
                    attempts.count();
                }
                Verdict::Contention => attempts.pause(worst(&reasons)).await?,
            }
            if deadline.passed() {
                return Err(attempts.unavailable("reserve"));
            }
        }
    }

    /// The lines of the draft with the shards that they take from, by what is remembered of the stock; `looked` says
    /// that this request itself has just looked at it.
    fn choose(&self, draft: &Draft, looked: bool) -> Result<Vec<Line>, Lack> {
        let mut lines = Vec::with_capacity(draft.lines.len());
        let mut shortages = Vec::new();
        let mut certain = true;
        let mut actions = 1;
        for line in &draft.lines {
            let product = &line.product;
            let chosen = self.with_known(&product.product_id, |known| match known.choose(line.quantity) {
                Some(takes) => Ok(takes),
                None => Err((looked || known.looked_lately(), known.free())),
            });
            let takes = match chosen {
                Some(Ok(takes)) => takes,
                Some(Err((looked_lately, available))) => {
                    certain &= looked_lately;
                    let product_id = product.product_id.clone();
                    shortages.push(Shortage { product_id, requested: line.quantity, available });
                    continue;
                }
                None => return Err(Lack::Perhaps),
            };
            let limited = product.max_per_customer.is_some();
            actions += takes.len() + usize::from(limited);
            lines.push(Line {
                product_id: product.product_id.clone(),
                quantity: line.quantity,
                name: product.name.clone(),
                unit_price_minor: product.price_minor,
                limited,
                takes,
            });
        }
        if !shortages.is_empty() {
            return Err(if certain { Lack::Certain(Refusal::InsufficientStock { shortages }) } else { Lack::Perhaps });
        }
        if actions > MAX_ACTIONS {
            // So many lines of stock in so many crumbs that no one transaction can take them.
            let shortages = draft.lines.iter().map(|line| Shortage {
                product_id: line.product.product_id.clone(),
                requested: line.quantity,
                available: 0,
            });
            return Err(Lack::Certain(Refusal::InsufficientStock { shortages: shortages.collect() }));
        }
        Ok(lines)
    }

    /// The transaction itself. Each condition is one promise: the shard has the units and knows no newer product, the
    /// reservation does not exist, the customer stays within the limit.
    async fn try_reserve(
        &self,
        reservation: &Reservation,
        draft: &Draft,
        attempts: &mut Attempts<'_>,
    ) -> Result<Result<(), Cancelled<Action>>, Error> {
        let mut transaction = Transaction::new();
        let item = items::reservation(reservation, self.due_partitions)?;
        transaction.put(Action::Reservation, &self.table, item, "attribute_not_exists(#pk)")?;
        for (at, line) in reservation.lines.iter().enumerate() {
            let version = number(draft.lines[at].product.version);
            for &take in &line.takes {
                transaction.update(
                    Action::Shard { line: at, take },
                    &self.table,
                    &keys::shard(&line.product_id, take.shard),
                    Expression::new("SET #available = #available - :q", vec![(":q", number(take.units))]),
                    Expression::new("#available >= :q AND #product_version <= :v", vec![(":v", version.clone())]),
                )?;
            }
            if let Some(limit) = draft.lines[at].product.max_per_customer {
                let (update, condition) = take_limit(line.quantity, limit);
                let key = keys::limit(&line.product_id, &reservation.customer);
                transaction.update(Action::Limit { line: at }, &self.table, &key, update, condition)?;
            }
        }
        let outcome = self.transact(&transaction, attempts).await?;
        if outcome.is_ok() {
            for line in &reservation.lines {
                self.with_known(&line.product_id, |known| {
                    line.takes.iter().for_each(|take| known.took(take.shard, take.units));
                });
            }
        }
        Ok(outcome)
    }

    /// What the reasons mean, in the order of precedence; and what they say of the stock is remembered.
    fn learn(&self, draft: &Draft, reasons: &[(Action, Reason)]) -> Result<Verdict, Error> {
        let mut stale = false;
        let mut short = false;
        let mut limit = None;
        let mut exists = None;
        for (action, reason) in reasons {
            match (action, reason) {
                (Action::Reservation, Reason::Condition(item)) => exists = Some(item.clone()),
                (&Action::Limit { line }, Reason::Condition(_)) => limit = limit.or(Some(line)),
                (&Action::Shard { line, take }, Reason::Condition(item)) => {
                    let product = &draft.lines[line].product;
                    let shard = item.clone().map(|item| items::read::<ShardItem>("shard", item)).transpose()?;
                    // A shard that does not answer with its item is looked at instead.
                    let (available, version) = shard.map_or((0, 0), |shard| (shard.available, shard.product_version));
                    stale |= version > product.version;
                    short |= version <= product.version;
                    self.with_known(&product.product_id, |known| {
                        known.saw(take.shard, available);
                        known.doubt();
                    });
                }
                (&Action::Shard { line, take: _ }, Reason::Conflict) => {
                    // Somebody else is at home here: move, and leave each other in peace from now on.
                    let product = &draft.lines[line].product;
                    let home = self.random_below(product.shards);
                    self.with_known(&product.product_id, |known| known.move_home(home));
                }
                (_, Reason::Conflict | Reason::Throttled) => {}
            }
        }
        Ok(match (exists, limit) {
            (Some(item), _) => Verdict::Exists(item),
            // A limit that stale facts name is no reason to refuse anybody.
            _ if stale => Verdict::Stale,
            (None, Some(line)) => Verdict::Limit { line },
            (None, None) if short => Verdict::Short,
            (None, None) => Verdict::Contention,
        })
    }

    /// The reservation that this key made before, else `refusal`: the owner of a hold is never told "sold out".
    async fn replay_or(&self, basket: &Basket, refusal: Refusal, deadline: Deadline) -> Result<Reserved, Error> {
        match self.get(keys::reservation(&basket.reservation_id), deadline).await? {
            Some(item) => replay(basket, items::read("reservation", item)?),
            None => Err(refusal.into()),
        }
    }
}

/// Why the remembered stock does not serve a draft.
enum Lack {
    /// All shards were looked at a moment ago.
    Certain(Refusal),
    /// It may be out of date.
    Perhaps,
}

/// The first answer again, if this is the first request again.
fn replay(basket: &Basket, reservation: Reservation) -> Result<Reserved, Error> {
    if reservation.fingerprint == basket.fingerprint {
        Ok(Reserved { reservation, replayed: true })
    } else {
        Err(Refusal::IdempotencyKeyReused.into())
    }
}

/// Counts `quantity` more units of a customer, where that stays within `limit`.
pub(crate) fn take_limit(quantity: u32, limit: u32) -> (Expression, Expression) {
    let room: AttributeValue = number(i64::from(limit) - i64::from(quantity));
    (
        Expression::new("ADD #units :q", vec![(":q", number(quantity))]),
        Expression::new("attribute_not_exists(#units) OR #units <= :room", vec![(":room", room)]),
    )
}

fn held(basket: &Basket, draft: &Draft, lines: Vec<Line>, now: Timestamp) -> Reservation {
    Reservation {
        reservation_id: basket.reservation_id.clone(),
        customer: basket.customer.clone(),
        lines,
        currency: draft.currency,
        status: Status::Held,
        created_at: now,
        expires_at: draft.expires_at,
        hold_seconds: draft.hold_seconds,
        fingerprint: basket.fingerprint.clone(),
        confirmed_at: None,
        confirmed_late: false,
        payment_reference: None,
        paid_back: BTreeSet::new(),
    }
}

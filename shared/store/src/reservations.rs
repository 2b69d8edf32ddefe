//! Reading reservations, listing them, and extending their holds.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use holdfast_domain::decide::{self, ExtendDecision};
use holdfast_domain::{
    CustomerId, HoldSeconds, Invalid, PaymentReference, ProductId, Refusal, Reservation, ReservationId, Status,
    Timestamp,
};

use crate::error::Attempts;
use crate::items::{self, number, text, time};
use crate::page::Part;
use crate::partitions::Partitions;
use crate::update::{Change, Expression, Updated};
use crate::{Cursor, Deadline, Error, Item, Page, Store, keys, side_by_side};

/// How often one request reads the index to fill its page. A list whose filter matches little continues in the next
/// request.
const MAX_READS: u32 = 10;

/// Which of a customer's reservations are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// All of them.
    All,
    /// Those of this status.
    Of(Status),
    /// Orders, also those that were given back.
    Orders,
}

impl From<Option<Status>> for Listed {
    fn from(status: Option<Status>) -> Self {
        status.map_or(Self::All, Self::Of)
    }
}

impl Listed {
    fn has(self, reservation: &Reservation, now: Timestamp) -> bool {
        match self {
            Self::All => true,
            Self::Of(status) => status == reservation.status_at(now),
            Self::Orders => reservation.was_ordered(),
        }
    }
}

impl Store {
    /// One of the customer's own reservations. Another customer's does not exist for them.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`]; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn reservation(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let found: Option<Reservation> = self.get("reservation", keys::reservation(id), deadline).await?;
        found.filter(|found| found.customer == *customer).ok_or(Refusal::ReservationNotFound.into())
    }

    /// A reservation of any customer: for an admin.
    ///
    /// # Errors
    /// As [`Store::reservation`].
    pub async fn any_reservation(&self, id: &ReservationId, deadline: Deadline) -> Result<Reservation, Error> {
        let found: Option<Reservation> = self.get("reservation", keys::reservation(id), deadline).await?;
        found.ok_or(Refusal::ReservationNotFound.into())
    }

    /// A reservation, after waiting for transactions that are on it: for a refusal that is based on it.
    pub(crate) async fn latest_reservation(
        &self,
        id: &ReservationId,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reservation>, Error> {
        let found = self.latest(keys::reservation(id), attempts).await?;
        found.map(|item| items::read("reservation", item)).transpose()
    }

    /// The same for display: an overdue hold is released first, so that what is shown as expired stays expired for
    /// every clock.
    ///
    /// # Errors
    /// As [`Store::reservation`].
    pub async fn current_reservation(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let found = self.reservation(id, customer, deadline).await?;
        self.end_if_overdue(found, now, deadline).await
    }

    /// Releases it if it is overdue. Returns it as it is then.
    pub(crate) async fn end_if_overdue(
        &self,
        found: Reservation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        if found.status != Status::Held || !found.overdue(now) {
            return Ok(found);
        }
        self.end_overdue(&found, now, deadline).await?;
        self.reservation(&found.reservation_id, &found.customer, deadline).await
    }

    /// Makes the hold last at least `hold_seconds` from now. `remind` as in [`Store::reserve`].
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::HoldExpired`], [`Refusal::ExtensionLimitReached`],
    /// [`Refusal::ReservationCancelled`], [`Refusal::AlreadyConfirmed`].
    pub async fn extend<F>(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        hold_seconds: HoldSeconds,
        now: Timestamp,
        deadline: Deadline,
        remind: impl Fn(Timestamp) -> F,
    ) -> Result<Reservation, Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let mut attempts = self.attempts(deadline);
        loop {
            let reservation = self.reservation(id, customer, deadline).await.map_err(|error| attempts.error(error))?;
            let until = match decide::extension(&reservation, hold_seconds, now) {
                ExtendDecision::Refuse(Refusal::HoldExpired) => {
                    if self.end_for_good(&reservation, now, deadline).await? {
                        return Err(attempts.refuse(Refusal::HoldExpired));
                    }
                    continue;
                }
                ExtendDecision::Refuse(refusal) => return Err(attempts.refuse(refusal)),
                ExtendDecision::Done => return Ok(reservation),
                ExtendDecision::Until(until) => until,
            };
            remind(until).await?;
            let update = Expression::new("SET #expires_at = :until, #due_at = :until", vec![(":until", time(until))]);
            let condition = Expression::new(
                // It may have been handed to another customer since it was read.
                "#status = :held AND #created_at = :created AND #expires_at = :seen AND #customer = :customer",
                vec![
                    (":customer", text(customer.as_str())),
                    (":held", text(Status::Held.as_str())),
                    (":created", time(reservation.created_at)),
                    (":seen", time(reservation.expires_at)),
                ],
            );
            if let Updated::Applied(extended) = self.update_reservation(id, (update, condition), &mut attempts).await? {
                return Ok(extended);
            }
            if deadline.passed() {
                return Err(attempts.unavailable("extend"));
            }
        }
    }

    pub(crate) async fn update_reservation(
        &self,
        id: &ReservationId,
        change: Change,
        attempts: &mut Attempts<'_>,
    ) -> Result<Updated<Reservation>, Error> {
        self.update(&keys::reservation(id), change, attempts).await?.read("reservation")
    }

    /// A page of the customer's own reservations, the newest first.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn reservations_of(
        &self,
        customer: &CustomerId,
        listed: impl Into<Listed>,
        now: Timestamp,
        limit: usize,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Reservation>, Error> {
        let listed = listed.into();
        let search = Search { customer: Some(customer.clone()), ..Search::default() };
        self.newest(&search, |found| listed.has(found, now), limit, cursor, deadline).await
    }

    /// A page of all reservations that match, the newest first: for an admin.
    ///
    /// # Errors
    /// As [`Store::reservations_of`].
    pub async fn reservations(
        &self,
        search: &Search,
        now: Timestamp,
        limit: usize,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Reservation>, Error> {
        let of_status = |found: &Reservation| search.status.is_none_or(|status| status == found.status_at(now));
        self.newest(search, of_status, limit, cursor, deadline).await
    }

    /// A page of what `search` finds, and `also` holds for, the newest first.
    async fn newest(
        &self,
        search: &Search,
        also: impl Fn(&Reservation) -> bool,
        limit: usize,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Reservation>, Error> {
        let mut after = cursor.map(Position::of).transpose()?;
        let mut found: Vec<Reservation> = Vec::new();
        for _ in 0..MAX_READS {
            let fits = limit.saturating_sub(found.len());
            let partitions = search.partitions();
            let positions = |part| self.positions(part, search, after.as_ref(), fits, deadline);
            let parts = partitions.iter().map(positions).collect();
            let (mut positions, mut more) = (Vec::new(), false);
            for (part, continues) in side_by_side(parts).await? {
                positions.extend(part);
                more |= continues;
            }
            positions.sort_unstable();
            more |= positions.len() > fits;
            positions.truncate(fits);
            let keys = positions.iter().map(|Position(_, pk)| keys::Key { pk: pk.clone(), sk: keys::HOLD.to_owned() });
            let mut items = BTreeMap::new();
            for item in self.get_many(keys.collect(), deadline).await? {
                let reservation: Reservation = items::read("reservation", item)?;
                items.insert(keys::reservation(&reservation.reservation_id).pk, reservation);
            }
            for Position(Reverse(made), pk) in &positions {
                // An index lags: it may still show what the reservation has been.
                let is = |one: &Reservation| one.created_at.as_millis() == *made && search.has(one) && also(one);
                found.extend(items.remove(pk).filter(is));
            }
            after = positions.pop().or(after);
            if !more {
                return Ok(Page { items: found, next: None });
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(Page { items: found, next: after.map(Position::cursor) })
    }

    /// The newest reservations in one partition of an index, at least `fits` of them if the partition has them, and whether there
    /// may be more. An index has no defined order among reservations of the same millisecond, so that is read to its end.
    async fn positions(
        &self,
        part: &Partition,
        search: &Search,
        after: Option<&Position>,
        fits: usize,
        deadline: Deadline,
    ) -> Result<(Vec<Position>, bool), Error> {
        let from = search.from.map_or(0, Timestamp::as_millis);
        let to = search.to.map_or(i64::MAX, |to| to.as_millis().saturating_sub(1));
        let to = after.map_or(to, |Position(Reverse(made), _)| to.min(*made));
        if from > to {
            return Ok((Vec::new(), false));
        }
        let request = self
            .client
            .query()
            .index_name(part.index)
            .key_condition_expression("#key = :key AND #created_at BETWEEN :from AND :to")
            .expression_attribute_names("#key", part.attribute)
            .expression_attribute_names("#created_at", keys::CREATED_AT)
            .expression_attribute_values(":key", text(part.value.clone()))
            .expression_attribute_values(":from", number(from))
            .expression_attribute_values(":to", number(to))
            .scan_index_forward(false)
            .limit(i32::try_from(fits + 1).unwrap_or(i32::MAX));
        let (mut positions, mut start) = (Vec::new(), None);
        loop {
            let (page, next) = self.query(request.clone().set_exclusive_start_key(start), deadline).await?;
            for item in page {
                let position = Position::in_index(&item);
                let position = position.ok_or_else(|| Error::internal(part.index, "an item without a key"))?;
                if after.is_none_or(|after| position > *after) {
                    positions.push(position);
                }
            }
            let whole = match (fits.checked_sub(1).and_then(|last| positions.get(last)), positions.last()) {
                (Some(Position(made, _)), Some(Position(oldest, _))) => oldest.0 < made.0,
                _ => false,
            };
            if next.is_none() || whole {
                return Ok((positions, next.is_some()));
            }
            start = next;
        }
    }
}

/// What an admin searches for: reservations for which all of this holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Of this customer, by the index `customer`.
    pub customer: Option<CustomerId>,
    /// Orders of this payment, by the index `payment`; also those that were given back.
    pub payment: Option<PaymentReference>,
    /// With this status.
    pub status: Option<Status>,
    /// With units of this product.
    pub product: Option<ProductId>,
    /// Made at this time or later.
    pub from: Option<Timestamp>,
    /// Made before this time.
    pub to: Option<Timestamp>,
}

/// One partition of an index whose sort key is when a reservation was made.
struct Partition {
    index: &'static str,
    attribute: &'static str,
    value: String,
}

impl Search {
    /// The partitions of the index with the fewest reservations to read.
    fn partitions(&self) -> Vec<Partition> {
        let partition = |index, attribute, value: String| Partition { index, attribute, value };
        if let Some(payment) = &self.payment {
            return vec![partition(keys::PAYMENT_INDEX, keys::PAYMENT, payment.to_string())];
        }
        if let Some(customer) = &self.customer {
            return vec![partition(keys::CUSTOMER_INDEX, keys::CUSTOMER, customer.to_string())];
        }
        Partitions::all_made().map(|made| partition(keys::MADE_INDEX, keys::MADE_KEY, made)).collect()
    }

    /// Whether a reservation is one of these, but for its status.
    fn has(&self, found: &Reservation) -> bool {
        self.customer.as_ref().is_none_or(|customer| found.customer == *customer)
            && self.payment.as_ref().is_none_or(|payment| found.payment_reference.as_ref() == Some(payment))
            && self.product.as_ref().is_none_or(|id| found.lines.iter().any(|line| line.product_id == *id))
    }
}

/// The place of a reservation in a list: when it was made, the newest first, and its partition key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Position(Reverse<i64>, String);

impl Position {
    /// The place that a cursor names.
    fn of(cursor: Cursor) -> Result<Self, Invalid> {
        let parts = [(keys::CREATED_AT, Part::Number), (keys::PK, Part::Begins(keys::HOLD_PREFIX))];
        let key = cursor.into_key(&parts)?;
        Self::in_index(&key).ok_or(Cursor::invalid())
    }

    /// The place of an item of an index.
    fn in_index(item: &Item) -> Option<Self> {
        let made = item.get(keys::CREATED_AT)?.as_n().ok()?.parse().ok()?;
        Some(Self(Reverse(made), item.get(keys::PK)?.as_s().ok()?.clone()))
    }

    fn cursor(self) -> Cursor {
        let Self(Reverse(made), pk) = self;
        Cursor::new([(keys::CREATED_AT.to_owned(), number(made)), (keys::PK.to_owned(), text(pk))].into())
    }
}

//! Reading reservations, listing them, and extending their holds.

use holdfast_domain::decide::{self, ExtendDecision};
use holdfast_domain::{CustomerId, HoldSeconds, ProductId, Refusal, Reservation, ReservationId, Status, Timestamp};

use crate::error::{Attempts, call_error};
use crate::items::{self, text, time};
use crate::page::Part;
use crate::update::{Change, Expression, Updated};
use crate::{Cursor, Deadline, Error, Item, Page, Store, keys};

/// The most pages of an index or of the table that one request reads to fill its own page. A list whose filter matches
/// little continues in the next request.
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
        let found = self.snapshot(&[keys::reservation(id)], attempts).await?.into_iter().next().flatten();
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
            let reservation = self.reservation(id, customer, deadline).await?;
            let until = match decide::extension(&reservation, hold_seconds, now) {
                ExtendDecision::Refuse(Refusal::HoldExpired) => {
                    if self.end_for_good(&reservation, now, deadline).await? {
                        return Err(Refusal::HoldExpired.into());
                    }
                    continue;
                }
                ExtendDecision::Refuse(refusal) => return Err(refusal.into()),
                ExtendDecision::Done => return Ok(reservation),
                ExtendDecision::Until(until) => until,
            };
            remind(until).await?;
            let update = Expression::new("SET #expires_at = :until, #due_at = :until", vec![(":until", time(until))]);
            let condition = Expression::new(
                "#status = :held AND #created_at = :created AND #expires_at = :seen",
                vec![
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
        let parts = [
            (keys::CUSTOMER, Part::Is(customer.as_str())),
            (keys::CREATED_AT, Part::Number),
            (keys::PK, Part::Begins(keys::HOLD_PREFIX)),
            (keys::SK, Part::Is(keys::HOLD)),
        ];
        let mut start = cursor.map(|cursor| cursor.into_key(&parts)).transpose()?;
        let request = self
            .client
            .query()
            .index_name(keys::CUSTOMER_INDEX)
            .key_condition_expression("#customer = :customer")
            .expression_attribute_names("#customer", keys::CUSTOMER)
            .expression_attribute_values(":customer", text(customer.as_str()))
            .scan_index_forward(false);
        let mut found: Vec<Reservation> = Vec::new();
        for _ in 0..MAX_READS {
            // Not more than still fit: the page then ends at a key from the index. An index has no defined order among
            // equal sort keys, so after any other key a reservation of the same millisecond could be missed.
            let fits = i32::try_from(limit.saturating_sub(found.len())).unwrap_or(i32::MAX);
            let (index, next) =
                self.query(request.clone().limit(fits).set_exclusive_start_key(start), deadline).await?;
            start = next;
            let mut page = Vec::new();
            for key in index {
                page.push(key_of(&key)?);
            }
            let mut reservations = Vec::new();
            for item in self.get_many(page, deadline).await? {
                reservations.push(items::read::<Reservation>("reservation", item)?);
            }
            reservations.sort_by(|a, b| (b.created_at, &b.reservation_id).cmp(&(a.created_at, &a.reservation_id)));
            for reservation in reservations {
                if listed.has(&reservation, now) {
                    found.push(reservation);
                }
            }
            if start.is_none() || found.len() >= limit {
                break;
            }
        }
        Ok(Page { items: found, next: start.map(Cursor::new) })
    }

    /// A page of all reservations, in no order: for an admin. There is no index for it, so it scans the table.
    ///
    /// # Errors
    /// As [`Store::reservations_of`].
    pub async fn reservations(
        &self,
        status: Option<Status>,
        product: Option<&ProductId>,
        now: Timestamp,
        limit: usize,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Reservation>, Error> {
        let parts = [(keys::PK, Part::Begins("")), (keys::SK, Part::Begins(""))];
        let mut start = cursor.map(|cursor| cursor.into_key(&parts)).transpose()?;
        let mut attempts = self.attempts(deadline);
        let mut found: Vec<Reservation> = Vec::new();
        let mut reads = 0;
        while reads < MAX_READS {
            let request = self
                .client
                .scan()
                .table_name(&self.table)
                .filter_expression("begins_with(#pk, :prefix)")
                .expression_attribute_names("#pk", keys::PK)
                .expression_attribute_values(":prefix", text(keys::HOLD_PREFIX))
                .consistent_read(true)
                .set_exclusive_start_key(start.clone());
            let answer = match attempts.call(request.send()).await? {
                Ok(answer) => answer,
                Err(error) => {
                    attempts.pause(call_error("Scan", &error)).await?;
                    continue;
                }
            };
            reads += 1;
            for item in answer.items.unwrap_or_default() {
                let reservation: Reservation = items::read("reservation", item)?;
                let of_product = product.is_none_or(|id| reservation.lines.iter().any(|line| line.product_id == *id));
                if of_product && status.is_none_or(|status| status == reservation.status_at(now)) {
                    found.push(reservation);
                }
            }
            start = answer.last_evaluated_key;
            if start.is_none() || found.len() >= limit {
                break;
            }
        }
        if found.len() > limit {
            // The scan returned more than fits on the page: the next page starts after the last one shown. A table's
            // keys are unique, so nothing is missed.
            found.truncate(limit);
            start = found.last().map(|last| keys::reservation(&last.reservation_id).item());
        }
        Ok(Page { items: found, next: start.map(Cursor::new) })
    }
}

fn key_of(item: &Item) -> Result<keys::Key, Error> {
    let part = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
    match (part(keys::PK), part(keys::SK)) {
        (Some(pk), Some(sk)) => Ok(keys::Key { pk, sk }),
        _ => Err(Error::internal("index customer", "an item without a key")),
    }
}

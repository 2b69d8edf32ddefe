//! Generated histories of several reservations of one product, compared with a reference model without shards, statuses and
//! decisions: it only knows where every unit is.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain as domain;
use holdfast_domain::decide::{self, CancelDecision, ConfirmDecision, ExpireDecision, ExtendDecision};
use holdfast_domain::{
    Basket, Confirmation, CustomerId, HoldSeconds, IdempotencyKey, PaymentReference, Product, ProductId, ProductStatus,
    Refusal, Reservation, Status, Timestamp, shards,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Reserve { key: u8, quantity: u32, home: u32 },
    Confirm { key: u8, payment: Option<u8> },
    Cancel { key: u8 },
    Extend { key: u8, hold_seconds: u32 },
    Expire { key: u8 },
    Wait { seconds: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..6;
    prop_oneof![
        3 => (key.clone(), 1u32..8, 0u32..3).prop_map(|(key, quantity, home)| Step::Reserve { key, quantity, home }),
        2 => (key.clone(), prop::option::of(0u8..2)).prop_map(|(key, payment)| Step::Confirm { key, payment }),
        1 => key.clone().prop_map(|key| Step::Cancel { key }),
        1 => (key.clone(), 10u32..60).prop_map(|(key, hold_seconds)| Step::Extend { key, hold_seconds }),
        2 => key.prop_map(|key| Step::Expire { key }),
        2 => (1i64..30).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// Where every unit is, and until when a hold lasts: all that the model knows.
#[derive(Default)]
struct Model {
    free: u32,
    held: BTreeMap<u8, (u32, i64)>,
    sold: BTreeMap<u8, u32>,
    /// What ended, and when its time was over.
    ended: BTreeMap<u8, i64>,
    /// Payments that were refused because they bought nothing.
    owed: BTreeSet<(u8, Option<u8>)>,
}

/// For how long after its time a hold may still be paid.
const LATE: i64 = 30;

/// The system under test: the decisions, applied to shards and reservations as the store would.
struct World {
    now: Timestamp,
    product: Product,
    shards: Vec<u64>,
    reservations: BTreeMap<u8, Reservation>,
}

impl World {
    fn new() -> Self {
        let product = Product {
            product_id: ProductId::try_from("tee").unwrap(),
            name: "Tee".to_owned(),
            price_minor: 100,
            currency: "EUR".to_owned().try_into().unwrap(),
            total: 12,
            shards: 3,
            hold_seconds: HoldSeconds::try_from(20).unwrap(),
            late_payment_seconds: u32::try_from(LATE).unwrap(),
            max_per_customer: None,
            counts_per_customer: false,
            sale_starts_at: None,
            sale_ends_at: None,
            status: ProductStatus::OnSale,
            version: 1,
        };
        Self { now: Timestamp::from_millis(0), product, shards: vec![4; 3], reservations: BTreeMap::new() }
    }

    fn draw(&mut self, quantity: u32, home: u32) -> Option<Vec<domain::Take>> {
        let known: Vec<Option<u64>> = self.shards.iter().copied().map(Some).collect();
        let takes = shards::choose(quantity, &known, home)?;
        takes.iter().for_each(|take| self.shards[take.shard as usize] -= u64::from(take.units));
        Some(takes)
    }

    fn give_back(&mut self, key: u8, status: Status) {
        let reservation = self.reservations.get_mut(&key).unwrap();
        reservation.status = status;
        for take in &reservation.lines[0].takes {
            self.shards[take.shard as usize] += u64::from(take.units);
        }
    }

    fn reserve(&mut self, key: u8, quantity: u32, home: u32) -> bool {
        if self.reservations.contains_key(&key) {
            return false;
        }
        let customer = CustomerId::try_from("alice").unwrap();
        let idempotency_key = IdempotencyKey::try_from(format!("k{key}")).unwrap();
        let lines = vec![(self.product.product_id.clone(), Some(quantity))];
        let basket = Basket::new(customer, &idempotency_key, lines).unwrap();
        let known = BTreeMap::from([(self.product.product_id.clone(), self.product.clone())]);
        let draft = domain::draft(&basket, &known, self.now).unwrap();
        let Some(takes) = self.draw(quantity, home) else { return false };
        let reservation = draft.hold(&basket, vec![takes], self.now);
        self.reservations.insert(key, reservation);
        true
    }

    /// Whether the reservation is an order of this payment afterwards.
    fn confirm(&mut self, key: u8, payment: Option<&PaymentReference>) -> Result<(), Refusal> {
        let reservation = self.reservations.get(&key).ok_or(Refusal::ReservationNotFound)?;
        let quantity = reservation.lines[0].quantity;
        let command = Confirmation {
            reservation_id: reservation.reservation_id.clone(),
            customer: reservation.customer.clone(),
            payment_reference: payment.cloned(),
            requested_at: self.now,
            request: None,
        };
        let takes = match decide::confirmation(reservation, &command, self.now) {
            ConfirmDecision::Refuse(refusal) => return Err(refusal),
            ConfirmDecision::OweBack => Err(Refusal::RefundRequired),
            ConfirmDecision::CloseUnpaid => Err(Refusal::HoldExpired),
            ConfirmDecision::LateRetake => self.draw(quantity, 0).ok_or(Refusal::RefundRequired).map(Some),
            _ => Ok(None),
        };
        let reservation = self.reservations.get_mut(&key).unwrap();
        let takes = takes.inspect_err(|_| reservation.owed_back.extend(payment.cloned()))?;
        reservation.status = Status::Confirmed;
        if let Some(takes) = takes {
            reservation.lines[0].takes = takes;
        }
        if reservation.payment_reference.is_none() {
            reservation.payment_reference = payment.cloned();
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn units_are_where_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let mut model = Model { free: 12, ..Model::default() };
        for step in steps {
            let now = world.now.as_millis() / 1_000;
            match step {
                Step::Wait { seconds } => world.now = world.now.plus_seconds(seconds),
                Step::Reserve { key, quantity, home } => {
                    let fresh = !model.held.contains_key(&key) && !model.sold.contains_key(&key) && !model.ended.contains_key(&key);
                    let possible = fresh && quantity <= model.free;
                    prop_assert_eq!(world.reserve(key, quantity, home), possible);
                    if possible {
                        model.free -= quantity;
                        model.held.insert(key, (quantity, now + 20));
                    }
                }
                Step::Confirm { key, payment } => {
                    let reference = payment.map(|n| PaymentReference::try_from(format!("pay_{n}")).unwrap());
                    let answer = world.confirm(key, reference.as_ref());
                    let paid = payment.is_some() && !model.owed.contains(&(key, payment));
                    match (model.held.get(&key).copied(), model.ended.get(&key).copied()) {
                        (Some((quantity, until)), _) => {
                            let right = if payment.is_some() { paid && now < until + LATE } else { now < until };
                            prop_assert_eq!(answer.is_ok(), right);
                            if right {
                                model.held.remove(&key);
                                model.sold.insert(key, quantity);
                            }
                        }
                        (None, Some(until)) => {
                            // Only a payment makes an ended hold an order: in time, and if the units are free.
                            let ended = &world.reservations[&key];
                            let quantity = ended.lines[0].quantity;
                            let right = paid && ended.status != Status::Cancelled
                                && now < until + LATE && quantity <= model.free;
                            prop_assert_eq!(answer.is_ok() && ended.status == Status::Confirmed, right);
                            if right {
                                model.free -= quantity;
                                model.ended.remove(&key);
                                model.sold.insert(key, quantity);
                            }
                        }
                        (None, None) if model.sold.contains_key(&key) => {
                            let other = reference.is_some() && world.reservations[&key].payment_reference != reference;
                            prop_assert_eq!(answer.is_err(), other);
                        }
                        (None, None) => prop_assert_eq!(&answer, &Err(Refusal::ReservationNotFound)),
                    }
                    // A payment that bought nothing is always owed back, and stays so.
                    if let (Err(refusal), Some(_)) = (&answer, payment) {
                        prop_assert!(refusal.owes_refund());
                        if world.reservations.contains_key(&key) {
                            model.owed.insert((key, payment));
                        }
                    }
                }
                Step::Cancel { key } => {
                    let release = world.reservations.get(&key)
                        .is_some_and(|held| decide::cancellation(held, world.now) == CancelDecision::Release);
                    prop_assert_eq!(release, model.held.get(&key).is_some_and(|&(_, until)| now < until));
                    if release {
                        world.give_back(key, Status::Cancelled);
                        let (quantity, until) = model.held.remove(&key).unwrap();
                        model.free += quantity;
                        model.ended.insert(key, until);
                    }
                }
                Step::Expire { key } => {
                    let release = world.reservations.get(&key)
                        .is_some_and(|held| decide::expiry(held, world.now) == ExpireDecision::Release);
                    prop_assert_eq!(release, model.held.get(&key).is_some_and(|&(_, until)| now >= until));
                    if release {
                        world.give_back(key, Status::Expired);
                        let (quantity, until) = model.held.remove(&key).unwrap();
                        model.free += quantity;
                        model.ended.insert(key, until);
                    }
                }
                Step::Extend { key, hold_seconds } => {
                    let hold = HoldSeconds::try_from(hold_seconds).unwrap();
                    if let Some(held) = world.reservations.get_mut(&key)
                        && let ExtendDecision::Until(until) = decide::extension(held, hold, world.now)
                    {
                        let entry = model.held.get_mut(&key).unwrap();
                        prop_assert!(now < entry.1, "only a live hold is extended");
                        prop_assert!(until <= held.created_at.plus_seconds(60), "at most three times the first 20 s");
                        held.expires_at = until;
                        entry.1 = now + i64::from(hold_seconds);
                    }
                }
            }
            let held: u32 = model.held.values().map(|&(quantity, _)| quantity).sum();
            let sold: u32 = model.sold.values().sum();
            prop_assert_eq!(model.free + held + sold, 12);
            prop_assert_eq!(world.shards.iter().sum::<u64>(), u64::from(model.free));
        }
    }
}

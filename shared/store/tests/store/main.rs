//! The store over the real SDK and a DynamoDB in process, with faults on the wire.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

mod actions;
mod answers;
mod audit;
mod changes;
mod confirm;
mod failed;
mod group;
mod lists;
mod looks;
mod orders;
mod places;
mod products;
mod rate;
mod release;
mod reserve;
mod views;

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{Confirmation, Failure, Product, Refusal, Reservation, Timestamp};
use holdfast_store::{Error, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, client, confirmation, customer, payment, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::Wire;

/// When a hold that was made at [`NOW`] ends.
const LATE: Timestamp = Timestamp::from_millis(NOW.as_millis() + 600_000);

fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// The item of a reservation.
async fn stored(wire: &Wire, reservation: &Reservation) -> HashMap<String, AttributeValue> {
    let key = keys::reservation(&reservation.reservation_id).item();
    client(wire).get_item().table_name(TABLE).set_key(Some(key)).send().await.unwrap().item.unwrap()
}

/// A hold of the product `tee`.
async fn hold(store: &Store, who: &str, units: u32, at: Timestamp) -> Reservation {
    reserve(store, &basket(who, "k", &[("tee", units)]), at).await.unwrap().reservation
}

async fn pay(store: &Store, held: &Reservation, paid: &str, at: Timestamp) -> Result<Reservation, Error> {
    store.confirm(&confirmation(&held.reservation_id, &held.customer, Some(&payment(paid)), at), at, soon()).await
}

/// A product in a table, and two environments.
async fn shop(product: Product) -> (Wire, Store, Store) {
    let wire = table();
    stocked(&wire, &[product]).await;
    let (one, two) = (store(&wire, 1), store(&wire, 2));
    (wire, one, two)
}

/// A failure of a confirmation of `held` that was requested at `at`.
fn failure_of(held: &Reservation, who: &str, paid: Option<&str>, reason: &str, at: Timestamp) -> Failure {
    Failure {
        confirmation: Some(Confirmation {
            reservation_id: held.reservation_id.clone(),
            customer: customer(who),
            payment_reference: paid.map(payment),
            requested_at: at,
            request: None,
        }),
        reason: reason.to_owned(),
        body: format!("{who} {}", at.as_millis()),
    }
}

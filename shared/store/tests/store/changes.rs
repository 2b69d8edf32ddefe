//! Changes of a live hold: other lines, another owner, and its release by an admin.

use std::collections::BTreeMap;

use futures_util::future::{join, join_all};
use holdfast_domain::{
    HoldRelease, HoldSeconds, Product, ProductStatus, Refusal, RequestedLine, RequestedLines, Reservation, Status,
    Timestamp,
};
use holdfast_store::{Error, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, limited, payment, product, product_id, reserve, soon,
    stocked, store, table,
};
use holdfast_testkit::wire::{Fault, Wire};

use crate::{LATE, hold, pay, refusal, shop};

fn lines(wanted: &[(&str, u32)]) -> RequestedLines {
    let line = |&(id, quantity): &(&str, u32)| RequestedLine::from((product_id(id), Some(quantity)));
    RequestedLines::new(wanted.iter().map(line).collect()).unwrap()
}

pub(crate) async fn change(store: &Store, held: &Reservation, wanted: &[(&str, u32)]) -> Result<Reservation, Error> {
    change_at(store, held, wanted, NOW).await
}

pub(crate) async fn change_at(
    store: &Store,
    held: &Reservation,
    wanted: &[(&str, u32)],
    at: Timestamp,
) -> Result<Reservation, Error> {
    store.change_lines(&held.reservation_id, &held.customer, &lines(wanted), at, soon()).await
}

fn quantities(reservation: &Reservation) -> BTreeMap<&str, u32> {
    reservation.lines.iter().map(|line| (line.product_id.as_str(), line.quantity)).collect()
}

fn called_off() -> HoldRelease {
    HoldRelease { reason: "event called off".to_owned(), actor: "root".to_owned() }
}

/// How many units of a product a customer holds and owns, as counted for the limit.
async fn counted(wire: &Wire, id: &str, who: &str) -> String {
    let key = keys::limit(&product_id(id), &customer(who)).item();
    let item = client(wire).get_item().table_name(TABLE).set_key(Some(key)).send().await.unwrap().item;
    item.map_or_else(|| "0".to_owned(), |item| item["units"].as_n().unwrap().clone())
}

async fn two_products() -> (Wire, Store, Store) {
    let wire = table();
    stocked(&wire, &[limited(product("cap", 6, 3), 5), limited(product("tee", 6, 3), 4)]).await;
    let (one, two) = (store(&wire, 1), store(&wire, 2));
    (wire, one, two)
}

/// Where a product's units are: free, held, sold, and all.
async fn units(wire: &Wire, id: &str) -> (u64, u64, u64, u64) {
    let books = books(wire).await[id];
    (books.available, books.held, books.sold, books.total)
}

#[tokio::test]
async fn a_hold_gets_more_fewer_and_other_units_and_ends_when_it_would_have_ended() {
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "alice", 3, NOW).await;
    for (wanted, tee, cap) in [
        (vec![("tee", 4)], 4, 0),
        (vec![("tee", 1), ("cap", 5)], 1, 5),
        (vec![("cap", 2)], 0, 2),
        (vec![("cap", 2)], 0, 2),
        (vec![("cap", 2), ("tee", 4)], 4, 2),
    ] {
        let changed = change_at(&other, &held, &wanted, NOW.plus_seconds(30)).await.unwrap();
        assert_eq!(quantities(&changed), wanted.iter().copied().collect());
        assert!(
            changed.lines.iter().all(|line| line.takes.iter().map(|take| take.units).sum::<u32>() == line.quantity)
        );
        assert_eq!((changed.expires_at, changed.created_at, changed.status), (LATE, NOW, Status::Held));
        assert_eq!(shop.any_reservation(&held.reservation_id, soon()).await.unwrap(), changed);
        assert_eq!(units(&wire, "tee").await, (6 - tee, tee, 0, 6));
        assert_eq!(units(&wire, "cap").await, (6 - cap, cap, 0, 6));
        assert_eq!(
            (counted(&wire, "tee", "alice").await, counted(&wire, "cap", "alice").await),
            (tee.to_string(), cap.to_string())
        );
    }
    // The request that made it still finds it.
    let replay = reserve(&shop, &basket("alice", "k", &[("tee", 3)]), NOW).await.unwrap();
    assert_eq!((replay.replayed, quantities(&replay.reservation)), (true, [("cap", 2), ("tee", 4)].into()));
    let order = pay(&other, &held, "pay_1", NOW).await.unwrap();
    assert_eq!(quantities(&order), [("cap", 2), ("tee", 4)].into());
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((2, 0, 4, 6), (4, 0, 2, 6)));
}

#[tokio::test]
async fn what_cannot_be_had_changes_nothing() {
    let (wire, shop, _) = two_products().await;
    let held = hold(&shop, "alice", 2, NOW).await;
    reserve(&shop, &basket("bob", "k", &[("cap", 5), ("tee", 3)]), NOW).await.unwrap();
    let refused = refusal(change(&shop, &held, &[("tee", 1), ("cap", 2)]).await);
    let Refusal::InsufficientStock { shortages } = &refused else { panic!("{refused:?}") };
    assert_eq!((shortages[0].product_id.as_str(), shortages[0].requested, shortages[0].available), ("cap", 2, 1));
    let refused = refusal(change(&shop, &held, &[("tee", 4)]).await);
    let Refusal::InsufficientStock { shortages } = &refused else { panic!("{refused:?}") };
    assert_eq!((shortages[0].requested, shortages[0].available), (4, 3), "with what the hold has");
    assert_eq!(refusal(change(&shop, &held, &[("tee", 5)]).await).code(), "customer_limit_reached");
    assert_eq!(refusal(change(&shop, &held, &[("tee", 2), ("hat", 1)]).await).code(), "product_not_found");
    assert_eq!(shop.any_reservation(&held.reservation_id, soon()).await.unwrap(), held);
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((1, 5, 0, 6), (1, 5, 0, 6)));

    // By the limit of what the customer has altogether, in another reservation too.
    reserve(&shop, &basket("alice", "k2", &[("tee", 1)]), NOW).await.unwrap();
    shop.cancel(
        &reserve(&shop, &basket("bob", "k", &[("cap", 5), ("tee", 3)]), NOW).await.unwrap().reservation.reservation_id,
        &customer("bob"),
        NOW,
        soon(),
    )
    .await
    .unwrap();
    assert_eq!(refusal(change(&shop, &held, &[("tee", 4)]).await).code(), "customer_limit_reached");
    assert_eq!(quantities(&change(&shop, &held, &[("tee", 3)]).await.unwrap()), [("tee", 3)].into());

    // Only its owner changes it, and only while it is held.
    let strangers = Reservation { customer: customer("bob"), ..held.clone() };
    assert_eq!(refusal(change(&shop, &strangers, &[("tee", 1)]).await), Refusal::ReservationNotFound);
    assert_eq!(refusal(change_at(&shop, &held, &[("tee", 1)], LATE).await), Refusal::HoldExpired);
    assert_eq!(
        refusal(change(&shop, &held, &[("tee", 1)]).await),
        Refusal::HoldExpired,
        "it was told that it has ended"
    );
    let order = reserve(&shop, &basket("carol", "k", &[("cap", 1)]), NOW).await.unwrap().reservation;
    pay(&shop, &order, "pay_1", NOW).await.unwrap();
    assert_eq!(refusal(change(&shop, &order, &[("cap", 2)]).await).code(), "already_confirmed");
    let gone = reserve(&shop, &basket("carol", "k2", &[("cap", 1)]), NOW).await.unwrap().reservation;
    shop.cancel(&gone.reservation_id, &gone.customer, NOW, soon()).await.unwrap();
    assert_eq!(refusal(change(&shop, &gone, &[("cap", 2)]).await), Refusal::ReservationCancelled);
}

#[tokio::test]
async fn what_stays_keeps_its_price_and_what_grows_is_sold_as_today() {
    let wire = table();
    stocked(&wire, &[product("cap", 9, 1), product("tee", 9, 1)]).await;
    let store = store(&wire, 1);
    let held = reserve(&store, &basket("alice", "k", &[("cap", 2), ("tee", 2)]), NOW).await.unwrap().reservation;
    let before = held.lines[0].unit_price_minor;
    for id in ["cap", "tee"] {
        let change = holdfast_domain::ProductChange { price_minor: Some(before + 100), ..Default::default() };
        store.change_product(&product_id(id), 1, change, soon()).await.unwrap();
    }
    let changed = change(&store, &held, &[("cap", 1), ("tee", 3)]).await.unwrap();
    let prices: Vec<u64> = changed.lines.iter().map(|line| line.unit_price_minor).collect();
    assert_eq!(prices, [before, before + 100]);
    // The price that the customer saw is compared with the one that the line gets.
    let named = |id: &str, quantity, price| RequestedLine {
        product_id: product_id(id),
        quantity: Some(quantity),
        unit_price_minor: Some(price),
    };
    let ask = async |wanted| {
        let wanted = RequestedLines::new(wanted).unwrap();
        store.change_lines(&held.reservation_id, &held.customer, &wanted, NOW, soon()).await
    };
    let refused = refusal(ask(vec![named("cap", 2, before), named("tee", 3, before + 100)]).await);
    let Refusal::PriceChanged { prices } = &refused else { panic!("{refused:?}") };
    assert_eq!((prices.len(), prices[0].product_id.as_str(), prices[0].unit_price_minor), (1, "cap", before + 100));
    ask(vec![named("cap", 1, before), named("tee", 3, before + 100)]).await.unwrap();

    // A paused product stays in a basket, and shrinks; it does not grow.
    let paused = holdfast_domain::ProductChange { status: Some(ProductStatus::Paused), ..Default::default() };
    store.change_product(&product_id("tee"), 2, paused, soon()).await.unwrap();
    assert_eq!(refusal(change(&store, &held, &[("tee", 4)]).await).code(), "product_not_on_sale");
    let changed = change(&store, &held, &[("tee", 2), ("cap", 2)]).await.unwrap();
    assert_eq!(quantities(&changed), [("cap", 2), ("tee", 2)].into());
}

#[tokio::test]
async fn a_change_is_made_once_whatever_answers_are_lost() {
    for (fault, times) in [(Fault::LostAfter, 1), (Fault::LostAfter, 4), (Fault::Conflict, 2), (Fault::LostBefore, 3)] {
        let (wire, shop, _) = two_products().await;
        let held = hold(&shop, "alice", 3, NOW).await;
        wire.fail("TransactWriteItems", times, fault);
        let changed = change(&shop, &held, &[("tee", 1), ("cap", 4)]).await.unwrap();
        assert_eq!(quantities(&changed), [("cap", 4), ("tee", 1)].into(), "{fault:?}");
        assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((5, 1, 0, 6), (2, 4, 0, 6)));
    }
}

#[tokio::test]
async fn whoever_read_the_lines_before_a_change_gives_nothing_back_by_them() {
    // Each reads the hold, is stopped at its write, and goes on after the change.
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "alice", 3, NOW).await;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (cancelled, ()) = join(shop.cancel(&held.reservation_id, &held.customer, NOW, soon()), async {
        gate.arrived().await;
        change(&other, &held, &[("cap", 5)]).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(quantities(&cancelled.unwrap()), [("cap", 5)].into(), "the answer shows what was released");
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((6, 0, 0, 6), (6, 0, 0, 6)));

    // A sweep that reads them from the index: it releases what the hold has now.
    let held = reserve(&shop, &basket("alice", "k2", &[("tee", 3)]), NOW).await.unwrap().reservation;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (swept, ()) = join(shop.release_overdue(LATE, soon()), async {
        gate.arrived().await;
        change(&other, &held, &[("cap", 2)]).await.unwrap();
        gate.open();
    })
    .await;
    let swept = swept.unwrap();
    assert_eq!((swept.holds, swept.units, swept.ended_before), (1, 2, 0));
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((6, 0, 0, 6), (6, 0, 0, 6)));

    // Another change: one after the other.
    let held = reserve(&shop, &basket("alice", "k3", &[("tee", 3)]), NOW).await.unwrap().reservation;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (first, ()) = join(change(&shop, &held, &[("tee", 1), ("cap", 1)]), async {
        gate.arrived().await;
        change(&other, &held, &[("cap", 5)]).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(quantities(&first.unwrap()), [("cap", 1), ("tee", 1)].into());
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((5, 1, 0, 6), (5, 1, 0, 6)));
}

#[tokio::test]
async fn a_late_confirmation_orders_the_lines_that_the_hold_has_after_a_change() {
    // The hold is over by the clock of the confirmation, and not by the clock of the change.
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "alice", 3, NOW).await;
    let gate = wire.gate(|call| call.request.to_string().contains("#confirmed_late = :late"));
    let (order, ()) = join(pay(&shop, &held, "pay_1", LATE), async {
        gate.arrived().await;
        change(&other, &held, &[("cap", 2)]).await.unwrap();
        gate.open();
    })
    .await;
    let order = order.unwrap();
    assert_eq!((order.status, order.confirmed_late), (Status::Confirmed, true));
    assert_eq!(quantities(&order), [("cap", 2)].into());
    let stored = shop.reservation(&held.reservation_id, &held.customer, soon()).await.unwrap();
    assert_eq!(quantities(&stored), [("cap", 2)].into());
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((6, 0, 0, 6), (4, 0, 2, 6)));
}

#[tokio::test]
async fn two_changes_for_the_last_units_never_take_more_than_there_are() {
    let (wire, shop, other) = two_products().await;
    let one = hold(&shop, "alice", 1, NOW).await;
    let two = hold(&shop, "bob", 1, NOW).await;
    let changed = join_all([change(&shop, &one, &[("cap", 4)]), change(&other, &two, &[("cap", 4)])]).await;
    assert_eq!(changed.iter().filter(|answer| answer.is_ok()).count(), 1, "{changed:?}");
    let lost = changed.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(lost, Error::Refused(Refusal::InsufficientStock { .. })), "{lost:?}");
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((5, 1, 0, 6), (2, 4, 0, 6)));
}

#[tokio::test]
async fn a_hold_of_crumbs_is_changed_in_one_transaction() {
    let wire = table();
    stocked(&wire, &[product("a", 64, 64), product("b", 30, 30), product("c", 3, 1)]).await;
    let store = store(&wire, 1);
    let held = reserve(&store, &basket("alice", "k", &[("a", 64), ("b", 30)]), NOW).await.unwrap().reservation;
    let changed = change(&store, &held, &[("a", 63), ("b", 30), ("c", 3)]).await.unwrap();
    assert_eq!(quantities(&changed), [("a", 63), ("b", 30), ("c", 3)].into());
    assert_eq!(units(&wire, "a").await, (1, 63, 0, 64));
    store.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    assert_eq!((units(&wire, "a").await, units(&wire, "c").await), ((64, 0, 0, 64), (3, 0, 0, 3)));
}

#[tokio::test]
async fn a_full_basket_of_limited_products_is_replaced_by_another() {
    let wire = table();
    let ids: Vec<String> = (0..40).map(|n| format!("p{n:02}")).collect();
    let products: Vec<Product> = ids.iter().map(|id| limited(product(id, 4, 1), 4)).collect();
    stocked(&wire, &products).await;
    let store = store(&wire, 1);
    let basket_of = |of: &[usize], units| of.iter().map(|&n| (ids[n].as_str(), units)).collect::<Vec<(&str, u32)>>();
    let (old, new): (Vec<usize>, Vec<usize>) = ((0..20).collect(), (20..40).collect());
    let held = reserve(&store, &basket("alice", "k", &basket_of(&old, 2)), NOW).await.unwrap().reservation;
    let but_one = [basket_of(&old[..19], 3), basket_of(&new[..1], 1)].concat();
    for wanted in [basket_of(&new, 2), but_one, basket_of(&old, 4)] {
        assert_eq!(quantities(&change(&store, &held, &wanted).await.unwrap()), wanted.iter().copied().collect());
    }
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_does_not_undo_a_later_one() {
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "alice", 3, NOW).await;
    let later = async { drop(change(&other, &held, &[("cap", 5)]).await.unwrap()) };
    let first = with_its_answer_lost(&wire, "HOLD#", change(&shop, &held, &[("tee", 1)]), later).await;
    assert!(matches!(first, Err(Error::Unavailable { .. })), "{first:?}");
    let now = other.any_reservation(&held.reservation_id, soon()).await.unwrap();
    assert_eq!(quantities(&now), [("cap", 5)].into());
}

/// The answer to a change that is applied with its answer lost, where `meanwhile` happens before it is decided again: before
/// the second read of an item whose key has `of` in it.
pub(crate) async fn with_its_answer_lost<T>(
    wire: &Wire,
    of: &'static str,
    change: impl Future<Output = T>,
    meanwhile: impl Future<Output = ()>,
) -> T {
    wire.fail("TransactWriteItems", 4, Fault::LostAfter);
    let mut reads = 0;
    let gate = wire.gate(move |call| {
        reads += usize::from(call.operation == "GetItem" && call.request.to_string().contains(of));
        reads == 2
    });
    let (answer, ()) = join(change, async {
        gate.arrived().await;
        wire.clear_faults();
        meanwhile.await;
        gate.open();
    })
    .await;
    answer
}

#[tokio::test]
async fn a_change_that_was_applied_is_not_refused_for_what_came_after_it() {
    for after in ["an order", "its end", "another owner"] {
        let (wire, shop, other) = two_products().await;
        let held = hold(&shop, "alice", 3, NOW).await;
        let meanwhile = async {
            match after {
                "an order" => drop(pay(&other, &held, "pay_1", NOW).await.unwrap()),
                "its end" => assert_eq!(other.release_overdue(LATE, soon()).await.unwrap().holds, 1),
                _ => drop(transfer(&other, &held, "bob").await.unwrap()),
            }
        };
        let first = with_its_answer_lost(&wire, "HOLD#", change(&shop, &held, &[("tee", 1)]), meanwhile).await;
        assert!(matches!(first, Err(Error::Unavailable { .. })), "{after}: {first:?}");
        let now = other.any_reservation(&held.reservation_id, soon()).await.unwrap();
        assert_eq!(quantities(&now), [("tee", 1)].into(), "{after}");
        // Asked once more, it is the refusal: this request changes nothing.
        assert!(matches!(change(&shop, &held, &[("tee", 1)]).await, Err(Error::Refused(_))), "{after}");
    }
}

#[tokio::test]
async fn a_transfer_that_was_carried_out_is_not_refused_since_the_hold_was_handed_on() {
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "guest:7", 3, NOW).await;
    let meanwhile = async {
        let alices = other.any_reservation(&held.reservation_id, soon()).await.unwrap();
        assert_eq!(alices.customer, customer("alice"));
        transfer(&other, &alices, "bob").await.unwrap();
    };
    let first = with_its_answer_lost(&wire, "HOLD#", transfer(&shop, &held, "alice"), meanwhile).await;
    assert!(matches!(first, Err(Error::Unavailable { .. })), "{first:?}");
}

async fn transfer(store: &Store, held: &Reservation, to: &str) -> Result<Reservation, Error> {
    store.transfer(&held.reservation_id, &held.customer, &customer(to), NOW, soon()).await
}

#[tokio::test]
async fn a_guests_hold_is_handed_to_an_account_with_its_limit() {
    let (wire, shop, other) = shop(limited(product("tee", 9, 2), 3)).await;
    let guest = hold(&shop, "guest:7", 2, NOW).await;
    let alices = transfer(&other, &guest, "alice").await.unwrap();
    assert_eq!((alices.customer.as_str(), alices.expires_at, alices.created_at), ("alice", guest.expires_at, NOW));
    assert_eq!(shop.any_reservation(&guest.reservation_id, soon()).await.unwrap(), alices);
    assert_eq!(transfer(&shop, &guest, "alice").await.unwrap(), alices, "twice is harmless");
    assert_eq!(
        (counted(&wire, "tee", "guest:7").await, counted(&wire, "tee", "alice").await),
        ("0".into(), "2".into())
    );
    // The guest has it no more, and their key makes no second hold.
    assert_eq!(
        refusal(shop.reservation(&guest.reservation_id, &guest.customer, soon()).await),
        Refusal::ReservationNotFound
    );
    assert_eq!(refusal(reserve(&shop, &basket("guest:7", "k", &[("tee", 2)]), NOW).await), Refusal::HoldTransferred);
    assert_eq!(refusal(transfer(&shop, &guest, "bob").await), Refusal::ReservationNotFound);
    // A payment that was begun by the guest is accepted; so is the owner's word for it.
    let order = pay(&shop, &guest, "pay_1", NOW).await.unwrap();
    assert_eq!((order.status, order.customer.as_str()), (Status::Confirmed, "alice"));
    assert_eq!(pay(&other, &alices, "pay_1", NOW).await.unwrap(), order);
    let strangers = confirmation(&guest.reservation_id, &customer("bob"), Some(&payment("pay_1")), NOW);
    assert_eq!(refusal(shop.confirm(&strangers, NOW, soon()).await), Refusal::ReservationNotFound);

    // Her limit: two of three are hers, so a hold of two stays the guest's.
    let second = reserve(&shop, &basket("guest:8", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    let limit = Refusal::CustomerLimitReached { product_id: product_id("tee"), limit: 3 };
    assert_eq!(refusal(transfer(&shop, &second, "alice").await), limit);
    assert_eq!(shop.any_reservation(&second.reservation_id, soon()).await.unwrap(), second);
    assert_eq!(
        (counted(&wire, "tee", "guest:8").await, counted(&wire, "tee", "alice").await),
        ("2".into(), "2".into())
    );
    // Nor more than the limit to somebody who never had any: it was lowered since.
    let lower = holdfast_domain::ProductChange { max_per_customer: Some(Some(1)), ..Default::default() };
    shop.change_product(&product_id("tee"), 1, lower, soon()).await.unwrap();
    let limit = Refusal::CustomerLimitReached { product_id: product_id("tee"), limit: 1 };
    assert_eq!(refusal(transfer(&shop, &second, "nobody-yet").await), limit);
    // A user who hands it to another user has nothing to do with it any more.
    let users = reserve(&shop, &basket("uma", "k", &[("tee", 1)]), NOW).await.unwrap().reservation;
    transfer(&shop, &users, "victor").await.unwrap();
    for paid in [Some("pay_2"), None] {
        let hers = confirmation(&users.reservation_id, &users.customer, paid.map(payment).as_ref(), NOW);
        assert_eq!(refusal(shop.confirm(&hers, NOW, soon()).await), Refusal::ReservationNotFound);
    }
    // Nor is anything handed over that has ended.
    assert_eq!(refusal(transfer(&shop, &order, "bob").await).code(), "already_confirmed");
    let (id, from, to) = (&second.reservation_id, &second.customer, customer("bob"));
    assert_eq!(refusal(shop.transfer(id, from, &to, LATE, soon()).await), Refusal::HoldExpired);
    assert_eq!(refusal(transfer(&shop, &second, "bob").await), Refusal::HoldExpired);
}

#[tokio::test]
async fn a_hold_that_is_handed_over_while_it_is_cancelled_or_changed_gives_each_unit_back_once() {
    let (wire, shop, other) = shop(limited(product("tee", 9, 2), 3)).await;
    let guest = hold(&shop, "guest:7", 2, NOW).await;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (cancelled, ()) = join(shop.cancel(&guest.reservation_id, &guest.customer, NOW, soon()), async {
        gate.arrived().await;
        transfer(&other, &guest, "alice").await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(refusal(cancelled), Refusal::ReservationNotFound, "it is hers now");
    assert_eq!(
        (counted(&wire, "tee", "guest:7").await, counted(&wire, "tee", "alice").await),
        ("0".into(), "2".into())
    );
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (swept, ()) = join(shop.release_overdue(LATE, soon()), async {
        gate.arrived().await;
        let id = &guest.reservation_id;
        other.transfer(id, &customer("alice"), &customer("bob"), NOW, soon()).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(swept.unwrap().holds, 1);
    assert_eq!((counted(&wire, "tee", "alice").await, counted(&wire, "tee", "bob").await), ("0".into(), "0".into()));
    assert_eq!(units(&wire, "tee").await, (9, 0, 0, 9));
}

#[tokio::test]
async fn a_released_hold_never_becomes_an_order() {
    let (wire, shop, other) = shop(limited(product("tee", 9, 2), 3)).await;
    for (key, at) in [("k1", NOW), ("k2", LATE)] {
        // Also one that is over, and one that has expired: a late payment could make an order of it.
        let held = reserve(&shop, &basket("alice", key, &[("tee", 2)]), NOW).await.unwrap().reservation;
        if key == "k2" {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let released = other.release_hold(&held.reservation_id, &called_off(), at, soon()).await.unwrap();
        let said = released.cancellation.clone().unwrap();
        assert_eq!((released.status, said.at, said.by.as_str(), said.restocked), (Status::Cancelled, at, "root", true));
        let again = HoldRelease { reason: "another".to_owned(), actor: "other".to_owned() };
        assert_eq!(shop.release_hold(&held.reservation_id, &again, LATE, soon()).await.unwrap(), released);
        assert_eq!(refusal(pay(&shop, &held, "pay_1", at).await), Refusal::RefundRequired);
        let unpaid = confirmation(&held.reservation_id, &held.customer, None, NOW);
        assert_eq!(refusal(shop.confirm(&unpaid, at, soon()).await), Refusal::ReservationCancelled);
        assert_eq!((units(&wire, "tee").await, counted(&wire, "tee", "alice").await), ((9, 0, 0, 9), "0".into()));
        assert!(!released.was_ordered());
    }
    let order = hold(&shop, "bob", 1, NOW).await;
    pay(&shop, &order, "pay_2", NOW).await.unwrap();
    let refused = shop.release_hold(&order.reservation_id, &called_off(), NOW, soon()).await;
    assert_eq!(refusal(refused), Refusal::AlreadyConfirmed { other_payment: false });
}

#[tokio::test]
async fn all_holds_of_a_product_are_released_and_no_others() {
    let (wire, shop, other) = two_products().await;
    let both = reserve(&shop, &basket("alice", "k", &[("tee", 1), ("cap", 1)]), NOW).await.unwrap().reservation;
    let tees = hold(&shop, "bob", 2, NOW).await;
    let cap = reserve(&shop, &basket("carol", "k", &[("cap", 2)]), NOW).await.unwrap().reservation;
    let sold = hold(&shop, "dora", 1, NOW).await;
    pay(&shop, &sold, "pay_1", NOW).await.unwrap();
    let swept = other.release_all(&product_id("tee"), &called_off(), NOW, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.units, swept.complete), (2, 4, true));
    let status = async |held: &Reservation| shop.any_reservation(&held.reservation_id, soon()).await.unwrap().status;
    assert_eq!((status(&both).await, status(&tees).await), (Status::Cancelled, Status::Cancelled));
    assert_eq!((status(&cap).await, status(&sold).await), (Status::Held, Status::Confirmed));
    assert_eq!((units(&wire, "tee").await, units(&wire, "cap").await), ((5, 0, 1, 6), (4, 2, 0, 6)));
    let again = other.release_all(&product_id("tee"), &called_off(), NOW, soon()).await.unwrap();
    assert_eq!((again.holds, again.complete), (0, true));
    // They are counted although the answer to the write was lost.
    let more = reserve(&shop, &basket("erin", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    wire.fail("TransactWriteItems", 4, Fault::LostAfter);
    let swept = other.release_all(&product_id("tee"), &called_off(), NOW, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.units), (1, 2));
    assert_eq!(status(&more).await, Status::Cancelled);
    let unknown = other.release_all(&product_id("hat"), &called_off(), NOW, soon()).await;
    assert_eq!(refusal(unknown).code(), "product_not_found");
}

#[tokio::test]
async fn a_hold_is_counted_by_the_request_that_released_it_and_by_no_other() {
    let (wire, shop, other) = two_products().await;
    hold(&shop, "alice", 2, NOW).await;
    let all = async |store: &Store| store.release_all(&product_id("tee"), &called_off(), NOW, soon()).await.unwrap();
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (late, first) = join(all(&shop), async {
        gate.arrived().await;
        // The same admin at the same instant, with the same reason: as a request that is sent twice.
        let first = all(&other).await;
        gate.open();
        first
    })
    .await;
    assert_eq!([first, late].map(|swept| (swept.holds, swept.units)), [(1, 2), (0, 0)]);
    assert_eq!((late.ended_before, late.complete), (1, false));
}

#[tokio::test]
async fn a_hold_that_is_extended_between_two_pages_of_the_index_is_released_once() {
    let (wire, _, other) = two_products().await;
    let shop = store(&wire, 5).with_due_partitions(1, 1);
    let first = reserve(&shop, &basket("alice", "k1", &[("tee", 2)]), NOW).await.unwrap().reservation;
    reserve(&shop, &basket("bob", "k2", &[("tee", 1)]), NOW.plus_seconds(1)).await.unwrap();
    wire.shorten_pages();
    let gate = wire.gate(|call| call.request["ExclusiveStartKey"].is_object());
    let (swept, ()) = join(shop.release_all(&product_id("tee"), &called_off(), NOW, soon()), async {
        gate.arrived().await;
        let later = HoldSeconds::try_from(900).unwrap();
        let (id, owner) = (&first.reservation_id, &first.customer);
        other.extend(id, owner, later, NOW, soon(), |_| async { Ok(()) }).await.unwrap();
        gate.open();
    })
    .await;
    let swept = swept.unwrap();
    assert_eq!((swept.holds, swept.units, swept.complete), (2, 3, true));
}

#[tokio::test]
async fn a_hold_that_changes_while_all_are_released_is_not_reported_as_released() {
    let (wire, shop, other) = two_products().await;
    let held = hold(&shop, "alice", 2, NOW).await;
    for to in [vec![("cap", 1)], vec![("tee", 1)]] {
        let gate = wire.gate(|call| call.operation == "TransactWriteItems");
        let (swept, ()) = join(
            shop.release_all(&product_id(if to[0].0 == "cap" { "tee" } else { "cap" }), &called_off(), NOW, soon()),
            async {
                gate.arrived().await;
                change(&other, &held, &to).await.unwrap();
                gate.open();
            },
        )
        .await;
        let swept = swept.unwrap();
        assert_eq!((swept.holds, swept.complete), (0, false), "it has no such units any more");
    }
    let swept = shop.release_all(&product_id("tee"), &called_off(), NOW, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.complete), (1, true));
}

#[tokio::test]
async fn a_confirmation_beside_a_release_is_an_order_or_a_refund_and_never_both() {
    let (wire, shop, other) = shop(product("tee", 9, 1)).await;
    // The payment first.
    let held = hold(&shop, "alice", 1, NOW).await;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (released, ()) = join(shop.release_hold(&held.reservation_id, &called_off(), NOW, soon()), async {
        gate.arrived().await;
        pay(&other, &held, "pay_1", NOW).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(refusal(released), Refusal::AlreadyConfirmed { other_payment: false });
    // The release first.
    let held = hold(&shop, "bob", 1, NOW).await;
    let gate = wire.gate(|call| call.operation == "UpdateItem");
    let (paid, ()) = join(pay(&shop, &held, "pay_2", NOW), async {
        gate.arrived().await;
        other.release_hold(&held.reservation_id, &called_off(), NOW, soon()).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(refusal(paid), Refusal::RefundRequired);
    assert_eq!(units(&wire, "tee").await, (8, 0, 1, 9));
}

#[tokio::test]
async fn a_hold_whose_lines_have_a_shorter_time_for_late_payments_has_it_too() {
    let wire = table();
    let day = Product { late_payment_seconds: 86_400, ..product("tee", 9, 1) };
    stocked(&wire, &[day, Product { late_payment_seconds: 0, ..product("cap", 9, 1) }]).await;
    let store = store(&wire, 1);
    let held = hold(&store, "alice", 1, NOW).await;
    assert_eq!(held.late_payment_seconds, 86_400);
    assert_eq!(change(&store, &held, &[("tee", 1), ("cap", 1)]).await.unwrap().late_payment_seconds, 0);
    assert_eq!(change(&store, &held, &[("tee", 1)]).await.unwrap().late_payment_seconds, 0, "never longer again");
}

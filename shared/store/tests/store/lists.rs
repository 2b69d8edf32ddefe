//! Lists in pages, and their cursors.

use std::collections::BTreeSet;

use holdfast_domain::{OrderCancellation, Reservation, Status};
use holdfast_store::{Cursor, Error, Search};
use holdfast_testkit::fixtures::{
    NOW, basket, confirmation, customer, payment, product, product_id, reserve, soon, stocked, store, table,
};

use crate::products::tee;

#[tokio::test]
async fn a_list_whose_filter_matches_little_reads_ten_times_in_one_request_and_continues_in_the_next() {
    let (wire, store) = tee(40, 1).await;
    for n in 0..25 {
        reserve(&store, &basket("alice", &format!("k{n}"), &[("tee", 1)]), NOW.plus_seconds(n + 1)).await.unwrap();
    }
    let cancelled = reserve(&store, &basket("bob", "k", &[("tee", 1)]), NOW).await.unwrap().reservation;
    store.cancel(&cancelled.reservation_id, &cancelled.customer, NOW, soon()).await.unwrap();
    let search = Search { status: Some(Status::Cancelled), ..Search::default() };
    let (mut requests, mut seen, mut cursor) = (0, 0, None);
    loop {
        wire.take_calls();
        let page = store.reservations(&search, NOW, 1, cursor, soon()).await.unwrap();
        let calls = wire.take_calls();
        assert!(calls.iter().all(|call| call.operation != "Scan"));
        assert!(calls.iter().filter(|call| call.operation == "BatchGetItem").count() <= 10);
        requests += 1;
        seen += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((requests, seen), (3, 1));
}

#[tokio::test]
async fn an_admin_finds_reservations_by_payment_customer_product_status_and_time() {
    let wire = table();
    stocked(&wire, &[product("tee", 9, 1), product("cap", 9, 1)]).await;
    let store = store(&wire, 1);
    let make = async |who: &str, key: &str, id: &str, after: i64| {
        let at = NOW.plus_seconds(after);
        reserve(&store, &basket(who, key, &[(id, 1)]), at).await.unwrap().reservation
    };
    let pay = async |held: &Reservation, paid: &str| {
        let command = confirmation(&held.reservation_id, &held.customer, Some(&payment(paid)), held.created_at);
        store.confirm(&command, held.created_at, soon()).await.unwrap();
    };
    // One payment for two reservations is legal: a basket that was split.
    let (one, two, three) =
        (make("alice", "a", "tee", 0).await, make("bob", "b", "tee", 1).await, make("alice", "c", "cap", 2).await);
    pay(&one, "pay_1").await;
    pay(&two, "pay_1").await;
    let found = async |search: Search| {
        let page = store.reservations(&search, NOW.plus_seconds(3), 10, None, soon()).await.unwrap();
        assert_eq!(page.next, None);
        page.items.into_iter().map(|found| found.reservation_id).collect::<Vec<_>>()
    };
    let ids = |all: &[&Reservation]| all.iter().map(|one| one.reservation_id.clone()).collect::<Vec<_>>();
    let any = Search::default;
    let at = |after| Some(NOW.plus_seconds(after));
    for (search, wanted) in [
        (any(), ids(&[&three, &two, &one])),
        (Search { payment: Some(payment("pay_1")), ..any() }, ids(&[&two, &one])),
        (Search { payment: Some(payment("pay_1")), customer: Some(customer("bob")), ..any() }, ids(&[&two])),
        (Search { payment: Some(payment("pay_2")), ..any() }, ids(&[])),
        (Search { customer: Some(customer("alice")), ..any() }, ids(&[&three, &one])),
        (Search { product: Some(product_id("tee")), ..any() }, ids(&[&two, &one])),
        (Search { status: Some(Status::Held), ..any() }, ids(&[&three])),
        (Search { status: Some(Status::Confirmed), product: Some(product_id("cap")), ..any() }, ids(&[])),
        (Search { from: at(1), ..any() }, ids(&[&three, &two])),
        (Search { to: at(2), ..any() }, ids(&[&two, &one])),
        (Search { from: at(1), to: at(2), ..any() }, ids(&[&two])),
        (Search { from: at(2), to: at(2), ..any() }, ids(&[])),
    ] {
        assert_eq!(found(search.clone()).await, wanted, "{search:?}");
    }
    // An order that is given back keeps its payment.
    let command = OrderCancellation {
        order_id: one.reservation_id.clone(),
        customer: None,
        reason: "called off".to_owned(),
        restock: true,
        actor: "root".to_owned(),
    };
    store.cancel_order(&command, NOW, soon()).await.unwrap();
    assert_eq!(found(Search { payment: Some(payment("pay_1")), ..any() }).await, ids(&[&two, &one]));
}

#[tokio::test]
async fn a_page_of_one_status_is_full_while_there_is_more() {
    let (_, store) = tee(20, 1).await;
    // The newest first: held, cancelled, held, and alice has two more that are held.
    for (who, ended) in [("alice", [false, false, false, true, false].as_slice()), ("bob", &[false, true, false])] {
        for (n, &ended) in (0..).zip(ended) {
            let at = NOW.plus_seconds(n);
            let held = reserve(&store, &basket(who, &format!("k{n}"), &[("tee", 1)]), at).await.unwrap().reservation;
            if ended {
                store.cancel(&held.reservation_id, &held.customer, at, soon()).await.unwrap();
            }
        }
    }
    let page = async |who: &str, cursor| {
        let page = store.reservations_of(&customer(who), Some(Status::Held), NOW, 2, cursor, soon()).await.unwrap();
        let made = page.items.iter().map(|found| found.created_at.as_seconds() - NOW.as_seconds()).collect::<Vec<_>>();
        (made, page.next)
    };
    let (first, next) = page("alice", None).await;
    assert_eq!((first, next.is_some()), (vec![4, 2], true));
    assert_eq!(page("alice", next).await.0, [1, 0]);
    assert_eq!(page("bob", None).await, (vec![2, 0], None));
    let all = store.reservations(&Search::default(), NOW, 8, None, soon()).await.unwrap();
    assert_eq!((all.items.len(), all.next), (8, None));
}

#[tokio::test]
async fn lists_come_in_pages_and_miss_nothing() {
    let wire = table();
    let names: Vec<String> = (0..7).map(|n| format!("p{n}")).collect();
    let products: Vec<_> = names.iter().map(|name| product(name, 10, 1)).collect();
    stocked(&wire, &products).await;
    let store = store(&wire, 1);
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = store.products(3, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|product| product.product_id.to_string()));
        // Encoded and decoded, as a caller sends it.
        cursor = page.next.map(|next| Cursor::decode(&next.encode()).unwrap());
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, names);

    for (n, name) in names.iter().enumerate() {
        let at = NOW.plus_seconds(i64::try_from(n).unwrap());
        let held = reserve(&store, &basket("alice", &format!("k{n}"), &[(name, 1)]), at).await.unwrap().reservation;
        reserve(&store, &basket("bob", &format!("k{n}"), &[(name, 1)]), at).await.unwrap();
        if n % 2 == 0 {
            store.cancel(&held.reservation_id, &held.customer, at, soon()).await.unwrap();
        }
    }
    for (status, count) in
        [(None, 7), (Some(Status::Cancelled), 4), (Some(Status::Held), 3), (Some(Status::Expired), 0)]
    {
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = store.reservations_of(&customer("alice"), status, NOW, 2, cursor, soon()).await.unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(
                page.items.iter().map(|found| (std::cmp::Reverse(found.created_at), found.customer.to_string())),
            );
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), count, "{status:?}");
        assert!(seen.is_sorted() && seen.iter().all(|(_, owner)| owner == "alice"));
    }
    let later = NOW.plus_seconds(10_000);
    let overdue =
        store.reservations_of(&customer("alice"), Some(Status::Expired), later, 50, None, soon()).await.unwrap();
    assert_eq!(overdue.items.len(), 3, "by the clock they have expired, though nobody has released them");
    // A cursor is a place in time: another customer's shows nothing of theirs. One of another list is refused.
    let bobs = store.reservations_of(&customer("bob"), None, NOW, 2, None, soon()).await.unwrap().next.unwrap();
    let own = store.reservations_of(&customer("alice"), None, NOW, 20, Some(bobs), soon()).await.unwrap().items;
    assert!(!own.is_empty() && own.iter().all(|found| found.customer == customer("alice")));
    let of_products = store.products(3, None, soon()).await.unwrap().next;
    let refused = store.reservations_of(&customer("alice"), None, NOW, 2, of_products, soon()).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)));

    let mut all = 0;
    let mut cursor = None;
    let held = Search { status: Some(Status::Held), ..Search::default() };
    loop {
        let page = store.reservations(&held, NOW, 3, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= 3);
        all += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(all, 10);
    let p3 = Search { product: Some(product_id("p3")), ..Search::default() };
    let of_one = store.reservations(&p3, NOW, 50, None, soon()).await.unwrap();
    assert_eq!(of_one.items.len(), 2);
}

/// An index has no defined order among equal sort keys. The tests' database orders them by their keys; lists do so the other
/// way round, so that a page that ends within a millisecond which was not read to its end would show here.
#[tokio::test]
async fn a_list_of_equal_timestamps_misses_nothing_at_any_page_size() {
    const MADE: usize = 13;
    let (_, store) = tee(20, 1).await;
    let mut held = BTreeSet::new();
    for n in 0..MADE {
        let made = reserve(&store, &basket("alice", &format!("k{n}"), &[("tee", 1)]), NOW).await.unwrap().reservation;
        if n % 3 == 0 {
            store.cancel(&made.reservation_id, &made.customer, NOW, soon()).await.unwrap();
        } else {
            held.insert(made.reservation_id);
        }
    }
    for (status, count) in
        [(None, MADE), (Some(Status::Held), held.len()), (Some(Status::Cancelled), MADE - held.len())]
    {
        for limit in 1..=MADE + 1 {
            let (mut seen, mut cursor) = (Vec::new(), None);
            loop {
                let page = store.reservations_of(&customer("alice"), status, NOW, limit, cursor, soon()).await.unwrap();
                assert!(page.items.len() <= limit);
                seen.extend(page.items.into_iter().map(|found| found.reservation_id));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            let different: BTreeSet<_> = seen.iter().collect();
            assert_eq!((seen.len(), different.len()), (count, count), "{status:?}, {limit} a page");
        }
    }
}

//! Lists in pages, and their cursors.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::AttributeValue;
use data_encoding::BASE64URL_NOPAD;
use holdfast_domain::Status;
use holdfast_store::{Cursor, Error, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, client, customer, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::Call;
use serde_json::{Value, json};

use crate::products::tee;
#[tokio::test]
async fn the_list_of_all_reservations_reads_ten_pages_in_one_request_and_continues_in_the_next() {
    let wire = table();
    stocked(&wire, &[product("tee", 40, 1)]).await;
    let store = store(&wire, 1);
    for n in 0..20 {
        reserve(&store, &basket("alice", &format!("k{n}"), &[("tee", 1)]), NOW).await.unwrap();
    }
    // Three of these fill the megabyte that DynamoDB reads for one page.
    for n in 0..45 {
        let mut item = keys::failed(&format!("fc_{n}")).item();
        item.insert(keys::PK.to_owned(), AttributeValue::S(format!("OTHER#{n}")));
        item.insert("body".to_owned(), AttributeValue::S("x".repeat(380_000)));
        client(&wire).put_item().table_name(TABLE).set_item(Some(item)).send().await.unwrap();
    }
    let (mut seen, mut cursor, mut most) = (0, None, 0);
    loop {
        wire.take_calls();
        let page = store.reservations(None, None, NOW, 50, cursor, soon()).await.unwrap();
        most = most.max(wire.take_calls().len());
        seen += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen, most), (20, 10));
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
    // A page that is full at the last key of the index has a cursor: the next page is empty.
    let (last, next) = page("bob", None).await;
    assert_eq!((last, page("bob", next).await), (vec![2, 0], (vec![], None)));
    // All eight fit on one page of the table.
    let all = store.reservations(None, None, NOW, 8, None, soon()).await.unwrap();
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
    let bobs = store.reservations_of(&customer("bob"), None, NOW, 2, None, soon()).await.unwrap().next.unwrap();
    let stolen = store.reservations_of(&customer("alice"), None, NOW, 2, Some(bobs), soon()).await.unwrap_err();
    assert!(matches!(stolen, Error::Invalid(_)));

    let mut all = 0;
    let mut cursor = None;
    loop {
        let page = store.reservations(Some(Status::Held), None, NOW, 3, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= 3);
        all += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(all, 10);
    let of_one = store.reservations(None, Some(&product_id("p3")), NOW, 50, None, soon()).await.unwrap();
    assert_eq!(of_one.items.len(), 2);
}

/// The key at which the last query ended, in the form of a cursor.
fn end_of_last_query(calls: &[Call]) -> Option<Value> {
    let query = calls.iter().rfind(|call| call.operation == "Query").unwrap();
    let key = query.response.as_ref().unwrap().get("LastEvaluatedKey")?.as_object().unwrap();
    let parts = key.iter().map(|(name, value)| {
        let (kind, text) = value.as_object().unwrap().iter().next().unwrap();
        (name.clone(), json!(format!("{kind}{}", text.as_str().unwrap())))
    });
    Some(Value::Object(parts.collect()))
}

/// An index has no defined order among equal sort keys: a page can only continue from a key that a query returned. The
/// tests' database has a fixed order, and would not show a mistake: so each cursor is compared with that key.
#[tokio::test]
async fn a_list_of_equal_timestamps_misses_nothing_at_any_page_size() {
    const MADE: usize = 13;
    let (wire, store) = tee(20, 1).await;
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
                let said = cursor.as_ref().map(|next| BASE64URL_NOPAD.decode(next.encode().as_bytes()).unwrap());
                let said: Option<Value> = said.map(|said| serde_json::from_slice(&said).unwrap());
                assert_eq!(said, end_of_last_query(&wire.take_calls()), "{status:?}, {limit} a page");
                if cursor.is_none() {
                    break;
                }
            }
            let different: BTreeSet<_> = seen.iter().collect();
            assert_eq!((seen.len(), different.len()), (count, count), "{status:?}, {limit} a page");
        }
    }
}

//! Cursors: what a caller may send instead of one that a page returned.

use data_encoding::BASE64URL_NOPAD;
use holdfast_store::Cursor;
use serde_json::Value;

use crate::events::ask;
use crate::request::request;
use crate::shop::{Shop, in_shop};

/// Every list that takes a cursor. The caller in these tests may read all of them.
const LISTS: [&str; 7] = [
    "/products",
    "/reservations",
    "/orders",
    "/admin/products",
    "/admin/products/tee-black/ledger",
    "/admin/reservations",
    "/admin/failed-confirmations",
];

/// The input as a cursor, as it is and encoded as real ones are. One that is accepted is the same after it is encoded
/// and decoded again.
pub fn cursors(input: &[u8]) {
    for text in [&*String::from_utf8_lossy(input), &BASE64URL_NOPAD.encode(input)] {
        match Cursor::decode(text) {
            Ok(cursor) => assert_eq!(Cursor::decode(&cursor.encode()).as_ref(), Ok(&cursor), "{text}"),
            Err(invalid) => assert_eq!(invalid.field, "cursor"),
        }
    }
}

/// The input as a cursor of every list, encoded as real ones are: no list breaks with a cursor that none has returned.
/// Separate from [`cursors`], which is far faster without a list.
pub fn lists(input: &[u8]) {
    let cursor = BASE64URL_NOPAD.encode(input);
    if Cursor::decode(&cursor).is_err() {
        return;
    }
    in_shop(async |shop| {
        for list in LISTS {
            let answer = page(shop, list, &format!("&cursor={cursor}")).await;
            assert!([200, 400].into_iter().any(|status| answer["statusCode"] == status), "{list}: {answer}");
        }
    });
}

/// A list's answer to an admin.
async fn page(shop: &Shop, list: &str, cursor: &str) -> Value {
    let text = format!("GET {list}?limit=1{cursor}\n@sub alice\n@cognito:groups [admin]");
    let router = match list {
        "/products" => &shop.catalog,
        list if list.starts_with("/admin") => &shop.admin,
        _ => &shop.reserve,
    };
    ask(shop, router, &request(text.as_bytes()).event).await.expect("an answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the target could pass by refusing every cursor.
    #[test]
    fn every_list_continues_at_its_cursor() {
        in_shop(async |shop| {
            for list in LISTS {
                let (mut cursor, mut pages, mut seen) = (String::new(), 0, Vec::new());
                loop {
                    let answer = page(shop, list, &cursor).await;
                    let body: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
                    assert_eq!(answer["statusCode"], 200, "{list}: {body}");
                    seen.extend(body["items"].as_array().unwrap().clone());
                    pages += 1;
                    let Some(next) = body["next_cursor"].as_str() else { break };
                    assert_eq!(Cursor::decode(next).unwrap().encode(), next);
                    cursor = format!("&cursor={next}");
                }
                let alone = list == "/orders" || list.ends_with("/ledger");
                assert!(pages > 1 || alone, "{list} has one page");
                let different = seen.iter().enumerate().all(|(n, item)| !seen[..n].contains(item));
                assert!(different && !seen.is_empty(), "{list}: {seen:?}");
            }
        });
    }
}

//! The API's description, and the page that shows it.

use holdfast_local::openapi;
use reqwest::Method;
use reqwest::redirect::Policy;

use crate::api::{Answer, Api, Who};

pub(crate) async fn the_docs_page_loads_from_the_api_only(api: Api) {
    let description = api.get("/openapi.json", Who::Nobody).await;
    description.is(200, "");
    let written: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(openapi::path()).unwrap()).unwrap();
    assert!(description.body == written, "not what cargo local openapi wrote");

    let page = api.get("/docs", Who::Nobody).await;
    page.is(200, "");
    let html = page.body.as_str().unwrap();
    let mut parts = vec!["openapi.json".to_owned()];
    parts.extend(html.split('"').filter(|text| text.starts_with("docs/")).map(str::to_owned));
    assert_eq!(parts.len(), 5, "{html}");
    for part in parts.iter().chain(["docs".to_owned()].iter()) {
        is_served(&api, &format!("/{part}")).await;
    }
    api.get("/docs/other.js", Who::Nobody).await.is(404, "route_not_found");
}

/// Checks that a page's file is public, revalidated, and restricted to this API; the answer.
pub(crate) async fn is_served(api: &Api, path: &str) -> Answer {
    let first = api.get(path, Who::Nobody).await;
    first.is(200, "");
    let policy = first.headers["content-security-policy"].to_str().unwrap();
    for rule in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|one| one == rule), "{path}: {policy}");
    }
    assert!(!policy.contains("http") && !policy.contains('*') && !policy.contains("unsafe"), "{policy}");
    assert_eq!(first.headers["x-content-type-options"], "nosniff", "{path}");
    assert_eq!(first.headers["referrer-policy"], "no-referrer", "{path}");
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    let again = api.raw(Method::GET, path, Who::Nobody, &[("if-none-match", &tag)], None).await;
    again.is(304, "");
    assert_eq!(again.headers["etag"].to_str().unwrap(), tag, "{path}");
    first
}

pub(crate) async fn what_people_type_leads_to_the_docs_and_head_is_get_without_a_body(api: Api) {
    let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let to = |path: &str| format!("{}{path}", api.stack.api_url());
    for (path, page) in [("/", "/docs"), ("/docs/", "/docs"), ("/admin/", "/admin")] {
        let answer = http.get(to(path)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (307, &page.parse().unwrap()), "{path}");
    }
    for path in ["/products", "/openapi.json", "/docs"] {
        let (get, head) = (http.get(to(path)).send().await.unwrap(), http.head(to(path)).send().await.unwrap());
        assert_eq!((get.status().as_u16(), head.status().as_u16()), (200, 200), "{path}");
        assert_eq!(get.headers()["content-type"], head.headers()["content-type"], "{path}");
        assert!(head.headers().contains_key("x-request-id"), "{path}");
        assert_eq!(head.text().await.unwrap(), "", "{path}");
    }
    let refused = http.delete(to("/products")).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["allow"]), (405, &"GET,HEAD".parse().unwrap()));
}

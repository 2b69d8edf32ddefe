//! The API's description, and the page that shows it.

use holdfast_local::openapi;
use reqwest::Method;

use crate::api::{Api, Who};

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
        let path = format!("/{part}");
        let first = api.get(&path, Who::Nobody).await;
        first.is(200, "");
        let policy = first.headers["content-security-policy"].to_str().unwrap();
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.split("; ").any(|one| one == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("http") && !policy.contains('*') && !policy.contains("unsafe"), "{policy}");
        assert_eq!(first.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(first.headers["referrer-policy"], "no-referrer", "{path}");
        let tag = first.headers["etag"].to_str().unwrap().to_owned();
        let again = api.raw(Method::GET, &path, Who::Nobody, &[("if-none-match", &tag)], None).await;
        again.is(304, "");
        assert_eq!(again.headers["etag"].to_str().unwrap(), tag, "{path}");
    }
    api.get("/docs/other.js", Who::Nobody).await.is(404, "route_not_found");
}

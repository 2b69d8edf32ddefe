//! The API's description, and a page that shows it and sends requests: Swagger UI, with nothing from any other host.
//!
//! All of it is part of the binary, and the same until the next deploy.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use holdfast_domain::digest_id;
use holdfast_http::{Problem, knows};

/// The description, as `cargo local openapi` wrote it.
const DESCRIPTION: &str = include_str!("../openapi.json");
const PAGE: &str = include_str!("../docs/index.html");
const SCRIPT: &str = include_str!("../docs/page.js");
const STYLE: &str = include_str!("../docs/page.css");
/// Packed, as everybody who shows the page can unpack them: see docs/swagger-ui.txt for what they are.
const SWAGGER_UI_SCRIPT: &[u8] = include_bytes!("../docs/swagger-ui.js.gz");
const SWAGGER_UI_STYLE: &[u8] = include_bytes!("../docs/swagger-ui.css.gz");

/// What the page may do: run and show what comes from here, and call the API. In particular nobody can frame it and
/// lend it a token, and no script that a text might smuggle in runs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/openapi.json", get(description)).route("/docs", get(page)).route("/docs/{file}", get(file))
}

/// Get the description
///
/// This very description, as OpenAPI 3.1.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getDescription", tag = "This description",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of a copy.")),
    responses(
        (status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for."))),
        (status = 304, description = "The copy is as it should be.", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for.")))),
    extensions(("x-static" = json!(true)))
)]
async fn description(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| tag(DESCRIPTION));
    serve(&headers, "application/json", None, &TAG, DESCRIPTION)
}

/// Read it, and try it out
///
/// Shows this description, and sends requests with a token that is pasted into it.
#[utoipa::path(
    get, path = "/docs", operation_id = "getDocs", tag = "This description",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of a copy.")),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for."))),
        (status = 304, description = "The copy is as it should be.", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for.")))),
    extensions(("x-static" = json!(true)))
)]
async fn page(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| tag(PAGE));
    serve(&headers, "text/html; charset=utf-8", None, &TAG, PAGE)
}

/// Get a part of the page
///
/// What the page is made of.
#[utoipa::path(
    get, path = "/docs/{file}", operation_id = "getDocsFile", tag = "This description",
    params(
        ("file" = String, Path, description = "Named in the page.",
            pattern = r"^(swagger-ui\.js|swagger-ui\.css|page\.js|page\.css)$"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of a copy.")),
    responses(
        (status = 200, description = "The part.", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for.")),
            content((String = "text/javascript"), (String = "text/css"))),
        (status = 304, description = "The copy is as it should be.", headers(
            ("ETag" = String, description = "Names this version of it."),
            ("Cache-Control" = String, description = "How long a copy is good for.")))),
    extensions(("x-static" = json!(true)), ("x-problems" = json!(["route_not_found"])))
)]
async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    static TAG: LazyLock<String> =
        LazyLock::new(|| tag(&[SCRIPT, STYLE, include_str!("../docs/swagger-ui.txt")].concat()));
    let (script, style) = ("text/javascript; charset=utf-8", "text/css; charset=utf-8");
    match name.as_str() {
        "swagger-ui.js" => Ok(serve(&headers, script, Some("gzip"), &TAG, SWAGGER_UI_SCRIPT)),
        "swagger-ui.css" => Ok(serve(&headers, style, Some("gzip"), &TAG, SWAGGER_UI_STYLE)),
        "page.js" => Ok(serve(&headers, script, None, &TAG, SCRIPT)),
        "page.css" => Ok(serve(&headers, style, None, &TAG, STYLE)),
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "route_not_found", "there is nothing at this path")),
    }
}

fn tag(text: &str) -> String {
    format!("\"{}\"", digest_id("", &[text]))
}

/// The answer, or that the reader has it already.
fn serve(
    asked: &HeaderMap,
    content_type: &'static str,
    encoding: Option<&'static str>,
    tag: &'static str,
    body: impl Into<Body>,
) -> Response {
    let known = knows(asked, tag);
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { Response::new(body.into()) };
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    if !known {
        set(header::CONTENT_TYPE, content_type);
    }
    if let Some(encoding) = encoding.filter(|_| !known) {
        set(header::CONTENT_ENCODING, encoding);
    }
    set(header::ETAG, tag);
    // Kept, but asked about each time: a deploy shows at once.
    set(header::CACHE_CONTROL, "public, no-cache");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Nobody reads what is packed and made small: that it is what was published is all that can be known of it.
    #[test]
    fn swagger_ui_is_what_was_published() {
        let packed = [("swagger-ui.js.gz", SWAGGER_UI_SCRIPT), ("swagger-ui.css.gz", SWAGGER_UI_STYLE)];
        for (name, packed) in packed {
            let mut unpacked = Vec::new();
            GzDecoder::new(packed).read_to_end(&mut unpacked).unwrap();
            let sum: String = Sha256::digest(&unpacked).iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(include_str!("../docs/swagger-ui.txt").contains(&format!("{sum}  {name}")), "{name}: {sum}");
        }
    }

    #[test]
    fn the_page_names_its_own_parts_and_no_other_host() {
        for own in ["docs/swagger-ui.css", "docs/page.css", "docs/swagger-ui.js", "docs/page.js"] {
            assert!(PAGE.contains(&format!("\"{own}\"")), "{own}");
        }
        for text in [PAGE, SCRIPT, STYLE] {
            assert!(!text.contains("://"), "{text}");
        }
    }

    #[test]
    fn who_has_it_already_is_told_so() {
        let ask = |tags: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(tags));
            serve(&headers, "text/css", Some("gzip"), "\"a\"", "body")
        };
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\""] {
            let answer = ask(tags);
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert!(!answer.headers().contains_key(header::CONTENT_ENCODING));
        }
        assert_eq!(ask("\"b\"").status(), StatusCode::OK);
        assert_eq!(ask("\"b\"").headers()[header::CONTENT_ENCODING], "gzip");
    }
}

//! The API description, and a page that shows it and sends requests: Swagger UI, with nothing from any other host.
//!
//! Everything is compiled into the binary.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use holdfast_domain::digest_id;
use holdfast_http::{Problem, etag_matches};

/// Written by `cargo local openapi`.
const DESCRIPTION: &str = include_str!("../openapi.json");
const PAGE: &str = include_str!("../docs/index.html");
const SCRIPT: &str = include_str!("../docs/page.js");
const STYLE: &str = include_str!("../docs/page.css");
/// Compressed: every browser can decompress them. docs/swagger-ui.txt says where they come from.
const SWAGGER_UI_SCRIPT: &[u8] = include_bytes!("../docs/swagger-ui.js.gz");
const SWAGGER_UI_STYLE: &[u8] = include_bytes!("../docs/swagger-ui.css.gz");

/// The page may load its own files and call the API. It cannot be framed (clickjacking), and injected scripts do not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let to_the_page = || get(async || Redirect::temporary("/docs"));
    Router::new()
        .route("/openapi.json", get(description))
        .route("/docs", get(page))
        .route("/docs/{file}", get(file))
        // What people type. Not part of the API.
        .route("/", to_the_page())
        .route("/docs/", to_the_page())
}

/// Get the API description
///
/// Returns this description, as an OpenAPI 3.1 document.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getDescription", tag = "API description",
    responses((status = 200, description = "The OpenAPI document.", body = Object, content_type = "application/json")),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)))
)]
async fn description(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| tag(DESCRIPTION));
    serve(&headers, "application/json", None, &TAG, DESCRIPTION)
}

/// Get the documentation page
///
/// A page that shows this description and can send requests with a token.
#[utoipa::path(
    get, path = "/docs", operation_id = "getDocs", tag = "API description",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)))
)]
async fn page(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| tag(PAGE));
    serve(&headers, "text/html; charset=utf-8", None, &TAG, PAGE)
}

/// Get a file of the documentation page
///
/// The scripts and style sheets of the page.
#[utoipa::path(
    get, path = "/docs/{file}", operation_id = "getDocsFile", tag = "API description",
    params(("file" = String, Path, description = "The file's name, as in the page.",
        pattern = r"^(swagger-ui\.js|swagger-ui\.css|page\.js|page\.css)$")),
    responses((status = 200, description = "The file.",
        content((String = "text/javascript"), (String = "text/css")))),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)), ("x-problems" = json!(["route_not_found"])))
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
        _ => Err(Problem::route_not_found()),
    }
}

fn tag(text: &str) -> String {
    format!("\"{}\"", digest_id("", &[text]))
}

/// The file, or 304 if the caller has it already.
fn serve(
    request_headers: &HeaderMap,
    content_type: &'static str,
    encoding: Option<&'static str>,
    tag: &'static str,
    body: impl Into<Body>,
) -> Response {
    let not_modified = etag_matches(request_headers, tag);
    let mut response = if not_modified { StatusCode::NOT_MODIFIED.into_response() } else { Response::new(body.into()) };
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    if !not_modified {
        set(header::CONTENT_TYPE, content_type);
    }
    if let Some(encoding) = encoding.filter(|_| !not_modified) {
        set(header::CONTENT_ENCODING, encoding);
    }
    set(header::ETAG, tag);
    // Cached, but revalidated each time, so that a deployment shows at once.
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

    /// Nobody reviews minified code; this checks that it is what was published.
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
    fn the_page_loads_its_own_files_and_no_other_host() {
        for own in ["docs/swagger-ui.css", "docs/page.css", "docs/swagger-ui.js", "docs/page.js"] {
            assert!(PAGE.contains(&format!("\"{own}\"")), "{own}");
        }
        for text in [PAGE, SCRIPT, STYLE] {
            assert!(!text.contains("://"), "{text}");
        }
    }

    #[test]
    fn a_matching_etag_is_answered_with_304() {
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

//! The API description, and a page that shows it and sends requests: Swagger UI, with nothing from any other host.
//!
//! Everything is compiled into the binary.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::{Redirect, Response};
use axum::routing::get;
use holdfast_http::{Files, Problem};

/// Written by `cargo local openapi`.
const DESCRIPTION: &str = include_str!("../openapi.json");
const PAGE: &str = include_str!("../docs/index.html");
const SCRIPT: &str = include_str!("../docs/page.js");
const STYLE: &str = include_str!("../docs/page.css");
/// Compressed: every browser can decompress them. docs/swagger-ui.txt says where they come from.
const SWAGGER_UI_SCRIPT: &[u8] = include_bytes!("../docs/swagger-ui.js.gz");
const SWAGGER_UI_STYLE: &[u8] = include_bytes!("../docs/swagger-ui.css.gz");

/// All of it.
static FILES: LazyLock<Files> =
    LazyLock::new(|| Files::new(&[DESCRIPTION, PAGE, SCRIPT, STYLE, include_str!("../docs/swagger-ui.txt")], ""));

/// The routes.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let to_page = |page| get(async move || Redirect::temporary(page));
    Router::new()
        .route("/openapi.json", get(description))
        .route("/docs", get(page))
        .route("/docs/{file}", get(file))
        // What people type. Not part of the API.
        .route("/", to_page("/docs"))
        .route("/docs/", to_page("/docs"))
        .route("/admin/", to_page("/admin"))
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
    FILES.serve(&headers, "application/json", None, DESCRIPTION)
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
    FILES.serve(&headers, "text/html; charset=utf-8", None, PAGE)
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
    let (script, style) = ("text/javascript; charset=utf-8", "text/css; charset=utf-8");
    match name.as_str() {
        "swagger-ui.js" => Ok(FILES.serve(&headers, script, Some("gzip"), SWAGGER_UI_SCRIPT)),
        "swagger-ui.css" => Ok(FILES.serve(&headers, style, Some("gzip"), SWAGGER_UI_STYLE)),
        "page.js" => Ok(FILES.serve(&headers, script, None, SCRIPT)),
        "page.css" => Ok(FILES.serve(&headers, style, None, STYLE)),
        _ => Err(Problem::route_not_found()),
    }
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
}

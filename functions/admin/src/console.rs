//! The console: a page for those who run a sale. It calls the admin API with the token of whoever looks at it.
//!
//! Everything is compiled into the binary, and public: the page has no data of its own.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use holdfast_aws::config::{ConfigError, SignIn, local_sign_in, roles_claim, sign_in};
use holdfast_http::{Files, Problem};
use serde::Serialize;
use utoipa::ToSchema;

/// The name of each file, and its text. `vendor/LICENSES.md` says where what is not ours comes from.
const FILES: [(&str, &str); 11] = [
    ("index.html", include_str!("../console/index.html")),
    ("console.css", include_str!("../console/console.css")),
    ("console.js", include_str!("../console/console.js")),
    ("api.js", include_str!("../console/api.js")),
    ("books.js", include_str!("../console/books.js")),
    ("chart.js", include_str!("../console/chart.js")),
    ("failed.js", include_str!("../console/failed.js")),
    ("reservations.js", include_str!("../console/reservations.js")),
    ("sale.js", include_str!("../console/sale.js")),
    ("ui.js", include_str!("../console/ui.js")),
    ("preact-htm.js", include_str!("../console/vendor/preact-htm.js")),
];

/// How the page lets people sign in.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ConsoleConfig {
    /// The issuer's sign-in page (authorization code with PKCE); null if there is none: then a token is pasted.
    sign_in: Option<ConsoleSignIn>,
    /// Whether this is a local stack, whose gateway gives tokens to whoever asks.
    local: bool,
    /// The claim with a token's roles.
    roles_claim: String,
}

/// A client of an OpenID Connect issuer, without a secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ConsoleSignIn {
    authorize_url: String,
    token_url: String,
    client_id: String,
    scope: &'static str,
    /// The issuer's page that ends its own session: it gets `client_id` and `logout_uri`. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    logout_url: Option<String>,
}

impl ConsoleConfig {
    /// As the function's environment says.
    ///
    /// # Errors
    /// A variable is missing or invalid.
    pub fn from_environment() -> Result<Self, ConfigError> {
        Ok(Self::new(sign_in()?, local_sign_in(), roles_claim()?))
    }

    /// These settings.
    pub fn new(sign_in: Option<SignIn>, local: bool, roles_claim: String) -> Self {
        let sign_in = sign_in.map(|SignIn { authorize_url, token_url, client_id, logout_url }| ConsoleSignIn {
            authorize_url,
            token_url,
            client_id,
            // Cognito's access tokens have the groups with it.
            scope: "openid",
            logout_url,
        });
        Self { sign_in, local, roles_claim }
    }

    /// The origin that the page gets tokens from; empty without one. (It goes to the issuer's page, and does not call it.)
    fn token_origin(&self) -> &str {
        let url = self.sign_in.as_ref().map_or("", |sign_in| &sign_in.token_url);
        // The third slash ends it.
        url.match_indices('/').nth(2).map_or(url, |(end, _)| &url[..end])
    }
}

/// The page, as it is served.
pub(crate) struct Console {
    files: Files,
    config: String,
}

/// The routes.
pub fn router(config: &ConsoleConfig) -> Router {
    let text = serde_json::json!(config).to_string();
    let contents: Vec<&str> = FILES.iter().map(|(_, text)| *text).chain([text.as_str()]).collect();
    let console = Console { files: Files::new(&contents, config.token_origin()), config: text };
    Router::new()
        .route("/admin", get(page))
        .route("/admin/console/config.json", get(config_file))
        .route("/admin/console/{file}", get(file))
        .with_state(Arc::new(console))
}

/// Get the console
///
/// A page for administrators. What it shows, it reads from this API with their token.
#[utoipa::path(
    get, path = "/admin", operation_id = "getConsole", tag = "Console",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)))
)]
pub(crate) async fn page(console: State<Arc<Console>>, headers: HeaderMap) -> Result<Response, Problem> {
    file(console, Path("index.html".to_owned()), headers).await
}

/// Get a file of the console
///
/// Its scripts and style sheet.
#[utoipa::path(
    get, path = "/admin/console/{file}", operation_id = "getConsoleFile", tag = "Console",
    params(("file" = String, Path, description = "The file's name, as in the page.",
        pattern = r"^[a-z-]+\.(js|css)$", example = "console.js")),
    responses((status = 200, description = "The file.",
        content((String = "text/javascript"), (String = "text/css")))),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)), ("x-problems" = json!(["route_not_found"])))
)]
pub(crate) async fn file(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (name, text) = FILES.iter().find(|(known, _)| *known == name).ok_or_else(Problem::route_not_found)?;
    let content_type = match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        _ => "text/javascript; charset=utf-8",
    };
    Ok(console.files.serve(&headers, content_type, None, *text))
}

/// Get the settings of the console
///
/// How the page lets people sign in.
#[utoipa::path(
    get, path = "/admin/console/config.json", operation_id = "getConsoleConfig", tag = "Console",
    responses((status = 200, description = "The settings.", body = ConsoleConfig)),
    extensions(("x-static" = json!(true)), ("x-cached" = json!(true)))
)]
pub(crate) async fn config_file(State(console): State<Arc<Console>>, headers: HeaderMap) -> Response {
    console.files.serve(&headers, "application/json", None, console.config.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use sha2::{Digest as _, Sha256};

    use super::*;

    /// The console's whole size: 120 KiB.
    const MAX_BYTES: usize = 122_880;
    const LICENSES: &str = include_str!("../console/vendor/LICENSES.md");

    fn text_of(name: &str) -> &'static str {
        FILES.iter().find(|(known, _)| *known == name).unwrap().1
    }

    #[test]
    fn it_is_small_and_whole() {
        let size: usize = FILES.iter().map(|(_, text)| text.len()).sum();
        assert!(size <= MAX_BYTES, "{size} bytes");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("console");
        let names = |folder: &Path| -> Vec<String> {
            let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
            let names = files.filter(|path| path.is_file() && path.extension().is_none_or(|kind| kind != "md"));
            names.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        let there: BTreeSet<String> = [names(&folder), names(&folder.join("vendor"))].concat().into_iter().collect();
        let served: BTreeSet<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there, served);
    }

    /// Nobody reviews minified code; this checks that it is what was published.
    #[test]
    fn what_is_vendored_is_what_was_published() {
        let vendored = ["preact-htm.js"];
        for name in vendored {
            let sum: String = Sha256::digest(text_of(name)).iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(LICENSES.lines().any(|line| line.contains(name) && line.contains(&sum)), "{name}: {sum}");
        }
    }

    #[test]
    fn it_loads_its_own_files_and_no_other_host_and_has_no_code_inline() {
        let page = text_of("index.html");
        for (name, text) in FILES.iter().filter(|(name, _)| *name != "preact-htm.js") {
            // The name of SVG's namespace is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{name} names a host");
            for banned in ["innerHTML", "dangerously", "eval(", "localStorage", "document.cookie"] {
                assert!(!text.contains(banned), "{name} has {banned}");
            }
        }
        for own in ["console.css", "console.js"] {
            assert!(page.contains(&format!("\"admin/console/{own}\"")), "{own}");
        }
        assert_eq!(page.matches("<script").count(), page.matches("<script src=").count());
        assert!(!page.contains("<style") && !page.contains("style="), "{page}");
        assert!(!page.contains(" on"), "an event's handler");
    }

    #[test]
    fn only_the_hosts_of_tokens_may_be_called() {
        let settings = |token_url: &str| {
            let sign_in = SignIn {
                authorize_url: "https://a.example/authorize".to_owned(),
                token_url: token_url.to_owned(),
                client_id: "c".to_owned(),
                logout_url: None,
            };
            ConsoleConfig::new(Some(sign_in), false, "roles".to_owned())
        };
        for (url, origin) in [
            (
                "https://shop.auth.eu-west-1.amazoncognito.com/oauth2/token",
                "https://shop.auth.eu-west-1.amazoncognito.com",
            ),
            ("https://issuer.example:8443/token?a=/b", "https://issuer.example:8443"),
            ("https://issuer.example", "https://issuer.example"),
        ] {
            assert_eq!(settings(url).token_origin(), origin);
        }
        assert_eq!(ConsoleConfig::new(None, true, String::new()).token_origin(), "");
    }
}

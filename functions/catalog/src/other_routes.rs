//! The routes of the other functions, to tell 405 from 404.
//!
//! Requests that match no route of API Gateway come to this function by the route `$default`: an unknown path, or a path
//! of another function with a method that it does not support.

use axum::Router;
use axum::http::header;
use axum::routing::any;
use holdfast_http::Problem;

/// Each path with its methods, written as axum writes them. The test compares them with the root Cargo.toml, and the local
/// stack compares that with template.yaml.
const PATHS: [(&str, &str); 27] = [
    ("/reservations", "GET,POST"),
    ("/reservations/{reservation_id}", "DELETE,GET"),
    ("/reservations/{reservation_id}/extend", "POST"),
    ("/reservations/{reservation_id}/lines", "PUT"),
    ("/reservations/{reservation_id}/transfer", "POST"),
    ("/reservations/{reservation_id}/confirm", "POST"),
    ("/orders", "GET"),
    ("/orders/{order_id}", "GET"),
    ("/orders/{order_id}/cancel", "POST"),
    ("/admin", "GET"),
    ("/admin/console/config.json", "GET"),
    ("/admin/console/{file}", "GET"),
    ("/admin/products", "GET,POST"),
    ("/admin/products/{product_id}", "PATCH"),
    ("/admin/products/{product_id}/stock", "POST"),
    ("/admin/products/{product_id}/ledger", "GET"),
    ("/admin/products/{product_id}/audit", "GET"),
    ("/admin/products/{product_id}/release-holds", "POST"),
    ("/admin/reservations", "GET"),
    ("/admin/reservations/{reservation_id}", "GET"),
    ("/admin/reservations/{reservation_id}/release", "POST"),
    ("/admin/orders/{order_id}/cancel", "POST"),
    ("/admin/actions", "GET"),
    ("/admin/failed-confirmations", "GET"),
    ("/admin/failed-confirmations/redrive", "POST"),
    ("/admin/failed-confirmations/{failed_confirmation_id}/retry", "POST"),
    ("/admin/failed-confirmations/{failed_confirmation_id}/resolve", "POST"),
];

/// Adds routes that answer 405 with the path's methods in `Allow`.
pub(crate) fn refuse<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    PATHS.iter().fold(router, |router, &(path, allow)| {
        router.route(path, any(async move || ([(header::ALLOW, allow)], Problem::method_not_allowed())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;
    use std::process::Command;

    #[test]
    fn the_paths_and_methods_are_those_of_cargo_toml() {
        let metadata = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .output()
            .unwrap();
        let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let router = metadata["metadata"]["lambda"]["watch"]["router"].as_object().unwrap();
        let mut wanted = BTreeMap::new();
        for (path, targets) in router {
            let targets = targets.as_array().unwrap();
            if targets.iter().all(|target| target["function"] != "catalog") {
                let mut methods: Vec<&str> = targets.iter().map(|t| t["method"].as_str().unwrap()).collect();
                methods.sort_unstable();
                wanted.insert(path.as_str(), methods.join(","));
            }
        }
        let listed: BTreeMap<&str, String> = PATHS.iter().map(|&(path, allow)| (path, allow.to_owned())).collect();
        assert_eq!(listed, wanted);
    }
}

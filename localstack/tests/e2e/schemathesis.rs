//! Schemathesis generates valid and invalid requests from the API description.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::process::Keeper;
use holdfast_local::stack::{Options, Stack};
use holdfast_local::token::Role;
use holdfast_local::{paths, tools};
use serde_json::json;
use tokio::process::Command;

use crate::api::Api;

/// A run takes well under a minute. One that hangs has failed.
const TIME: Duration = Duration::from_secs(300);

pub(crate) async fn the_api_matches_its_description(_: Api) {
    // Its own stack, because it changes anything, and with one token for all operations.
    let parameters = [("ConfirmedBy".to_owned(), "customer".to_owned())].into();
    let stack = Arc::new(
        Stack::start(Options { parameters, ..crate::options() }).await.unwrap_or_else(|error| panic!("{error}")),
    );
    // What schemathesis_hooks.py puts into its requests, so that they get beyond "no such product".
    let api = Api::new(&stack);
    api.product("many", 1_000_000, json!({"max_per_customer": 1_000_000})).await;
    api.product("few", 5, json!({"max_per_customer": 2})).await;
    let keeper = Keeper::start().unwrap();
    let program = tools::ensure(tools::SCHEMATHESIS, &keeper).await.unwrap_or_else(|error| panic!("{error}"));
    let settings = paths::workspace().join("localstack/tools");
    let mut command = Command::new(program);
    command
        .current_dir(paths::local("schemathesis").unwrap())
        .env("SCHEMATHESIS_HOOKS", settings.join("schemathesis_hooks.py"))
        .arg("--config-file")
        .arg(settings.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", stack.api_url()))
        // An admin is a customer, too. A good token for every operation, and what happens without it, is then seen.
        .args(["--header", &format!("Authorization: Bearer {}", stack.token("root", Role::Admin).unwrap())])
        // The same requests each time, as far as they do not follow from answers.
        .args(["--seed", "1", "--generation-database", "none", "--max-examples", "25", "--no-color"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TIME, command.output()).await.expect("in time").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // Each phase ran, and over all of the API.
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.lines().any(|line| line.contains('✅') && line.contains(phase)), "no {phase}:\n{said}");
    }
    // Some requests reserved, paid and cancelled.
    let book = api.book("many").await;
    assert!(book.sold > 0, "{book:?}, none sold:\n{said}");
    drop(api);
    if let Some(stack) = Arc::into_inner(stack) {
        stack.stop().await;
    }
}

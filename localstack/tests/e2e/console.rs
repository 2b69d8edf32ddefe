//! The console: how its files are served, and what it does in a browser.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::process::Keeper;
use holdfast_local::stack::{Options, Stack};
use holdfast_local::{paths, tools};
use libtest_mimic::{Completion, Trial};
use tokio::process::Command;
use tokio::runtime::Runtime;

use crate::api::{Api, Who};
use crate::docs;

/// A run takes three minutes. One that hangs has failed.
const TIME: Duration = Duration::from_secs(1_200);
/// Names of a Chromium on the `PATH`.
const CHROMIUM: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

pub(crate) async fn the_console_loads_from_the_api_only(api: Api) {
    let (mut seen, mut next) = (BTreeSet::new(), vec!["/admin".to_owned(), "/admin/console/config.json".to_owned()]);
    while let Some(path) = next.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let file = docs::is_served(&api, &path).await;
        let text = file.body.as_str().unwrap_or_default();
        // What the page names, and the modules that its modules import.
        let named = text.split(['"', '\'']).filter_map(|text| text.strip_prefix("admin/console/"));
        let imported = text.split(" from './").skip(1).filter_map(|rest| rest.split('\'').next());
        next.extend(named.chain(imported).map(|name| format!("/admin/console/{name}")));
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
    for unknown in ["other.js", "index.html.js", "LICENSES.md"] {
        api.get(&format!("/admin/console/{unknown}"), Who::Nobody).await.is(404, "route_not_found");
    }
    let config = api.get("/admin/console/config.json", Who::Nobody).await;
    assert_eq!((&config.body["local"], &config.body["sign_in"]), (&true.into(), &serde_json::Value::Null));
}

/// Everything that people do with it: localstack/tools/console_test.py. It needs a Chromium: the one that `CHROMIUM` names,
/// or one on the `PATH`. Without one it is left out, unless `BROWSER_REQUIRED` is set, as in `.ci/run`.
pub(crate) fn trial(runtime: &Arc<Runtime>) -> Trial {
    let runtime = runtime.clone();
    Trial::ignorable_test("console::it_works_in_a_browser", move || match browser()? {
        Some(browser) => runtime.block_on(works(browser)).map(|()| Completion::Completed).map_err(Into::into),
        None if std::env::var_os("BROWSER_REQUIRED").is_some() => Err("there is no Chromium".into()),
        None => Ok(Completion::ignored_with("left out, since there is no Chromium on the PATH, nor in CHROMIUM")),
    })
}

fn browser() -> Result<Option<PathBuf>, String> {
    if let Some(named) = std::env::var_os("CHROMIUM").filter(|named| !named.is_empty()).map(PathBuf::from) {
        let missing = format!("CHROMIUM names {}, which is no file", named.display());
        return if named.is_file() { Ok(Some(named)) } else { Err(missing) };
    }
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        CHROMIUM.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
    };
    Ok(on_path())
}

async fn works(browser: PathBuf) -> Result<(), String> {
    // Its own stack, because it settles whatever failed.
    let stack = Stack::start(Options { proxy: None, ..crate::options() }).await.map_err(|error| error.to_string())?;
    let keeper = Keeper::start().unwrap();
    let python = tools::ensure(tools::PLAYWRIGHT, &keeper).await.map_err(|error| error.to_string())?;
    let mut command = Command::new(python);
    command
        .arg(paths::workspace().join("localstack/tools/console_test.py"))
        .args(["--url", stack.api_url(), "--browser"])
        .arg(browser)
        .arg("--shots")
        .arg(paths::local("console").unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(TIME, command.output()).await;
    stack.stop().await;
    let output = ended.map_err(|_| "it took too long")?.map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(format!("pictures: target/local/console\n{said}")) }
}

//! The three parts of a bare `cargo lambda watch`: resources, functions and triggers, without `cargo local up`.
//!
//! `watch` starts each function with `cargo run`, whose features are not those of `cargo test`: it would compile all of
//! the AWS SDKs a second time. So this `watch` is given a `cargo` that runs the binaries of the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use holdfast_local::aws::Clients;
use holdfast_local::bare::{self, Record, Request};
use holdfast_local::demo::books_of;
use holdfast_local::emulator::Emulator;
use holdfast_local::env_file;
use holdfast_local::functions;
use holdfast_local::gateway::free_port;
use holdfast_local::process::{Group, Keeper};
use holdfast_local::runner::Event;
use holdfast_local::token::{Role, Signer};
use holdfast_local::{paths, tools};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::api::{Api, PATIENCE};

/// The parts, and where they write.
struct Bare {
    keeper: Arc<Keeper>,
    folder: PathBuf,
    env_file: PathBuf,
    cargo_lambda: PathBuf,
    port: u16,
}

pub(crate) async fn three_parts_make_the_stack(_: Api) {
    let bare = Bare::new().await;
    let port = free_port().unwrap();
    let emulator = crate::options().emulator;
    let emulator = Emulator::start(&emulator, false, port, &bare.folder.join("emulator.log"), &bare.keeper).await;
    let emulator = emulator.unwrap();
    // What is left at an emulator that others use is deleted even if the test fails.
    let told = AssertUnwindSafe(bare.tell(emulator.url())).catch_unwind().await;
    if bare.env_file.exists() {
        bare::delete(&bare.env_file).await.unwrap();
    }
    emulator.stop().await;
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(!bare.env_file.exists());
    fs::remove_dir_all(&bare.folder).unwrap();
}

impl Bare {
    async fn new() -> Self {
        let keeper = Keeper::start().unwrap();
        let folder = paths::local(&format!("bare-watch-{}", std::process::id())).unwrap();
        let cargo_lambda = tools::ensure(tools::CARGO_LAMBDA, &keeper).await.unwrap();
        let (env_file, port) = (folder.join("holdfast.env"), free_port().unwrap());
        Self { keeper, folder, env_file, cargo_lambda, port }
    }

    async fn tell(&self, endpoint: &str) {
        let record = self.resources(endpoint).await;
        let watch = self.watch().await;
        let runner = bare::triggers(&self.env_file, &format!("http://127.0.0.1:{}", self.port)).await.unwrap();
        self.every_event_is_invoked().await;
        self.a_hold_expires_by_itself(&record, runner.events()).await;
        runner.stop().await;
        // It ends its functions, which lead groups of their own.
        watch.signal(Signal::TERM);
        let mut watch = watch;
        tokio::time::timeout(PATIENCE, watch.ended()).await.expect("the end of watch");
    }

    /// Makes them, and again with the same file: they are the same.
    async fn resources(&self, endpoint: &str) -> Record {
        let request = |endpoint: Option<&str>, parameters: &[(&str, &str)]| Request {
            endpoint: endpoint.map(str::to_owned),
            env_file: self.env_file.clone(),
            parameters: parameters.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        let made = bare::create(request(Some(endpoint), &[("ExpirySlotSeconds", "5")])).await.unwrap();
        let variables = env_file::read(&self.env_file).unwrap().unwrap();
        assert_eq!(variables["EXPIRY_SLOT_SECONDS"], "5");
        assert!(made.next_steps(&self.env_file).contains("cargo lambda watch --env-file "));
        let again = bare::create(request(None, &[])).await.unwrap();
        assert_eq!(again, made);
        assert_eq!(env_file::read(&self.env_file).unwrap().unwrap(), variables);
        for (wrong, part) in [
            (request(None, &[("Slot", "5")]), "no parameter Slot"),
            (request(Some("http://127.0.0.1:1"), &[]), "--delete"),
        ] {
            let why = bare::create(wrong).await.unwrap_err().to_string();
            assert!(why.contains(part), "{why}");
        }
        made
    }

    async fn watch(&self) -> Group {
        let mut watch = Command::new(&self.cargo_lambda);
        watch.args(["lambda", "watch", "--ignore-changes", "--env-file"]).arg(&self.env_file);
        watch.args(["--invoke-address", "127.0.0.1", "--invoke-port", &self.port.to_string()]);
        watch.env("CARGO", self.cargo().await);
        let log = self.folder.join("watch.log");
        functions::watch(&mut watch, self.port, &log, &self.keeper).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A `cargo` whose `run --bin NAME` runs the binary that the tests were built with.
    async fn cargo(&self) -> PathBuf {
        let names = ["admin", "catalog", "confirm", "expire", "reserve"].map(str::to_owned);
        let built = functions::build(&names, &crate::options().build_arguments, &self.keeper).await.unwrap();
        let folder = built["reserve"].parent().unwrap();
        let script = format!(
            "#!/bin/sh\nfor word; do\n  [ \"$before\" = --bin ] && [ \"$1\" = run ] && exec '{}'/\"$word\"\n  \
             before=$word\ndone\nexec '{}' \"$@\"\n",
            folder.display(),
            std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()).display(),
        );
        let path = self.folder.join("cargo");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Over HTTP, at the routes of the root Cargo.toml: the schedule that `reserve` made fires and releases the units.
    async fn a_hold_expires_by_itself(&self, record: &Record, mut events: tokio::sync::broadcast::Receiver<Event>) {
        let product = json!({
            "product_id": "bare", "name": "Bare", "price_minor": 100, "currency": "EUR", "total": 3, "hold_seconds": 10,
        });
        let made = self.call(Method::POST, "/admin/products", ("root", Role::Admin), &product).await;
        assert_eq!(made.0, 201, "{made:?}");
        let lines = json!({ "lines": [{ "product_id": "bare", "quantity": 2 }] });
        let held = self.call(Method::POST, "/reservations", ("bare", Role::Customer), &lines).await;
        assert_eq!(held.0, 201, "{held:?}");

        let clients = Clients::in_region(&record.endpoint_url, record.region.clone());
        let table = &env_file::read(&self.env_file).unwrap().unwrap()["TABLE_NAME"];
        let released = async {
            loop {
                // The sweep is called after a minute; this schedule is the hold's own.
                let event = events.recv().await.unwrap();
                if matches!(&event, Event::Fired { schedule, .. } if schedule.starts_with("slot-"))
                    && books_of(&clients, table).await.unwrap()["bare"].available == 3
                {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, released).await.expect("the schedule released nothing");
        let id = held.1["reservation_id"].as_str().unwrap();
        let ended =
            self.call(Method::GET, &format!("/reservations/{id}"), ("bare", Role::Customer), &Value::Null).await;
        assert_eq!((ended.0, &ended.1["status"]), (200, &json!("expired")), "{ended:?}");
    }

    async fn call(&self, method: Method, path: &str, (who, role): (&str, Role), body: &Value) -> (u16, Value) {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let token = Signer::load().unwrap().token(who, role).unwrap();
        let request = http.request(method, format!("http://127.0.0.1:{}{path}", self.port)).bearer_auth(token);
        let request = request.header("idempotency-key", "bare-1");
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    /// With `cargo lambda invoke`, the product and the reservation first, which others are about.
    async fn every_event_is_invoked(&self) {
        let folder = paths::workspace().join("events");
        let mut files: Vec<PathBuf> = entries(&folder).iter().flat_map(|folder| entries(folder)).collect();
        files.sort_by_key(|file| (!file.file_name().unwrap().to_string_lossy().starts_with("create"), file.clone()));
        assert!(files.len() > 20, "{files:?}");
        for file in files {
            let function = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
            let answer = self.invoke(function, &file).await;
            let at = format!("{}: {answer}", file.display());
            match (function, file.file_stem().unwrap().to_str().unwrap()) {
                ("expire", _) => assert_eq!(answer["complete"], true, "{at}"),
                ("confirm", name) if name.starts_with("queue") => {
                    assert!(answer["batchItemFailures"].is_array(), "{at}");
                }
                (_, name) => {
                    let status = answer["statusCode"].as_u64().unwrap_or_else(|| panic!("{at}"));
                    // The claims of the event were believed, and the function knew what to do.
                    assert!(status < 500 && ![401, 403, 405].contains(&status), "{at}");
                    assert!(!name.starts_with("create") || status == 201, "{at}");
                }
            }
        }
    }

    async fn invoke(&self, function: &str, event: &Path) -> Value {
        let mut invoke = Command::new(&self.cargo_lambda);
        invoke.args(["lambda", "invoke", function, "--invoke-address", "127.0.0.1"]);
        invoke.args(["--invoke-port", &self.port.to_string(), "--data-file"]).arg(event);
        invoke.current_dir(paths::workspace()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, invoke.output()).await.expect("an answer").unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}{why}", event.display());
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{}: {error}: {said}", event.display()))
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

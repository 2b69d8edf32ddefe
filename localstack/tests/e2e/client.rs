//! A stranger's client: made from the description by a public generator, and nothing else.

use std::path::Path;
use std::process::Stdio;

use holdfast_local::process::Keeper;
use holdfast_local::token::Role;
use holdfast_local::{openapi, paths, tools};
use tokio::process::Command;

use crate::api::Api;

pub(crate) async fn a_generated_client_makes_an_order(api: Api) {
    let keeper = Keeper::start().unwrap();
    let generator = tools::ensure(tools::CLIENT_GENERATOR, &keeper).await.unwrap_or_else(|error| panic!("{error}"));
    let client = paths::local("client").unwrap();
    let here = paths::workspace().join("localstack/tests/e2e");
    let mut generate = Command::new(&generator);
    generate.current_dir(&client).arg("generate").arg("--path").arg(openapi::path());
    // A warning means that some of the API is missing from the client.
    generate.args(["--meta", "none", "--overwrite", "--fail-on-warning", "--output-path", "holdfast_client"]);
    generate.arg("--config").arg(here.join("client.yaml"));
    run(&mut generate).await;

    let token = |sub, role| api.stack.token(sub, role).unwrap();
    let mut use_it = Command::new(generator.parent().unwrap_or(Path::new("")).join("python"));
    use_it.env("PYTHONPATH", &client).env("PYTHONDONTWRITEBYTECODE", "1").arg(here.join("client.py"));
    use_it.arg(api.stack.api_url()).args([
        token("root", Role::Admin),
        token("client", Role::Customer),
        token("shop", Role::Service),
    ]);
    run(&mut use_it).await;

    let book = api.book("client").await;
    assert_eq!((book.available, book.held, book.sold), (3, 0, 2), "what the client says it did, it did");
}

async fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {said}");
}

//! Every variable that a function reads is given to it, and none that it does not read.
//!
//! The test starts the functions: without a variable, a function exits and names it; with all, it asks the Lambda runtime
//! for its first event.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::functions;
use holdfast_local::process::Keeper;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::rules::Expanded;

/// What Lambda itself gives to every function
/// (<https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html>), as far as the functions could read it.
pub(crate) const OF_LAMBDA: [(&str, &str); 7] = [
    ("AWS_REGION", "us-east-1"),
    ("AWS_ACCESS_KEY_ID", "id"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_SESSION_TOKEN", "token"),
    ("AWS_LAMBDA_FUNCTION_NAME", "name"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
];
/// How long a function may take to start, or to say why it does not.
const START: Duration = Duration::from_secs(30);

/// Variables that may be left out. The first one brings others with it.
const OPTIONAL: [&str; 2] = ["SIGN_IN_CLIENT_ID", "SIGN_IN_LOGOUT_URL"];

/// A value to start with: "1" is a name, a URL's worth of text, and a number.
fn value_of(name: &str) -> &'static str {
    match name {
        "CONFIRMED_BY" => "service",
        "SIGN_IN_AUTHORIZE_URL" | "SIGN_IN_TOKEN_URL" | "SIGN_IN_LOGOUT_URL" => "https://login.example/1",
        _ => "1",
    }
}

/// The variables without which a function does not start, beside those that it is `given`; with these.
async fn needed(binary: &Path, mut given: BTreeSet<String>) -> BTreeSet<String> {
    loop {
        let runtime = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut command = Command::new(binary);
        command
            .env_clear()
            .envs(OF_LAMBDA)
            .envs(given.iter().map(|name: &String| (name, value_of(name))))
            .env("AWS_LAMBDA_RUNTIME_API", runtime.local_addr().unwrap().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().unwrap();
        let started = async { runtime.accept().await.map(|_| ()) };
        let outcome = tokio::time::timeout(START, async {
            tokio::select! {
                accepted = started => { accepted.unwrap(); None }
                ended = child.wait_with_output() => Some(ended.unwrap()),
            }
        });
        let Some(ended) = outcome.await.unwrap_or_else(|_| panic!("{} neither starts nor ends", binary.display()))
        else {
            return given;
        };
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let name = said.split_once("name: \"").and_then(|(_, rest)| rest.split_once('"'));
        let (name, _) = name.unwrap_or_else(|| panic!("{} names no variable: {said}", binary.display()));
        assert!(given.insert(name.to_owned()), "{} wants {name}, which it has: {said}", binary.display());
    }
}

/// The differences between the template's variables and those that the functions read.
pub(crate) async fn differences(template: &Expanded, keeper: &Arc<Keeper>) -> Vec<String> {
    let functions = template.root["Resources"].as_object().into_iter().flatten();
    let functions: Vec<(String, &Value)> = functions
        .filter(|(_, resource)| resource["Type"] == "AWS::Lambda::Function")
        .map(|(_, function)| {
            let binary = function["Metadata"]["BuildProperties"]["Binary"].as_str().expect("a binary");
            (binary.to_owned(), &function["Properties"]["Environment"]["Variables"])
        })
        .collect();
    let names: Vec<String> = functions.iter().map(|(name, _)| name.clone()).collect();
    let binaries = functions::build(&names, &["--test".to_owned(), "deploy".to_owned()], keeper).await.unwrap();
    let mut differences = Vec::new();
    for (name, variables) in functions {
        // Only an emulator's endpoint may be left out, and is left out by its parameter's default.
        let given = variables.as_object().into_iter().flatten().map(|(name, _)| name.clone());
        let given: BTreeSet<String> = given.filter(|name| name != "AWS_ENDPOINT_URL").collect();
        let optional = given.iter().filter(|name| OPTIONAL.contains(&name.as_str())).cloned().collect();
        let needed = needed(&binaries[&name], optional).await;
        differences.extend(
            needed
                .difference(&given)
                .map(|variable| format!("{name} reads {variable}, which the template does not give it")),
        );
        differences.extend(
            given.difference(&needed).map(|variable| format!("{name} is given {variable}, which it does not read")),
        );
    }
    differences
}

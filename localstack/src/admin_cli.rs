//! `cargo local admin`: the admin API from a terminal, of the local stack or any deployed one.
//!
//! Its commands are made from the API's description: one for each operation below `/admin`, with the path's parameters as
//! arguments, and the query's parameters and the body's fields as options. So a new route is a new command. Only what takes
//! many requests is written here: retrying and resolving all failed confirmations that match.

use crate::error::{Context as _, Error, Result};
use crate::openapi;
use crate::progress::Step;
use crate::running::Running;
use crate::token::{Role, Signer};
use axum::body::Bytes;
use axum::http::{Method, Request, Uri, header};
use clap::{Arg, ArgAction, ArgMatches};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// The variable with the token.
const TOKEN: &str = "HOLDFAST_TOKEN";
/// API Gateway's own limit is 30 s.
const TIMEOUT: Duration = Duration::from_secs(35);
/// The longest answer: a page of a hundred reservations is far below.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// How often a request that had no clear answer (503) is repeated; each is safe to repeat.
const REPEATS: u32 = 5;
/// Time before that, and between two looks at what became of a retry.
const PAUSE: Duration = Duration::from_secs(1);

const RETRY_ALL: &str = "retryAllFailed";
const RESOLVE_ALL: &str = "resolveAllFailed";

/// One operation of the API.
struct Operation {
    id: String,
    method: Method,
    path: String,
    summary: String,
    description: String,
    parameters: Vec<Parameter>,
}

/// One thing that an operation takes.
#[derive(Clone)]
struct Parameter {
    name: String,
    place: Place,
    required: bool,
    help: String,
    /// The JSON types that it may have.
    types: BTreeSet<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Query,
    Header,
    Body,
}

/// Runs a command with these arguments, writes the answer to `out`, and returns whether it succeeded.
///
/// # Errors
/// The API does not answer, or the command cannot be sent.
pub async fn run(arguments: &[String], out: &mut impl Write) -> Result<bool> {
    let operations = operations(&openapi::document()?);
    let words = std::iter::once("cargo local admin".to_owned()).chain(arguments.iter().cloned());
    let matches = match command(&operations).try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            return Err(Error::new(text.trim_start_matches("error: ").trim()));
        }
        Err(help) => {
            write(out, &help.render().to_string())?;
            return Ok(true);
        }
    };
    let Some((name, given)) = matches.subcommand() else { return Err(Error::new("name an operation")) };
    let text = |name: &str| given.get_one::<String>(name).cloned();
    let api = Api::find(text("api"), text("token-file").map(PathBuf::from))?;
    match operations.iter().find(|operation| operation.id == name) {
        Some(operation) => call(&api, operation, given, out).await,
        None => all_failed(&api, name, given, out).await,
    }
}

/// The operations for an admin.
fn operations(document: &Value) -> Vec<Operation> {
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        if !path.starts_with("/admin/") {
            continue;
        }
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let text = |name: &str| operation[name].as_str().unwrap_or_default().to_owned();
            let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
            found.push(Operation {
                id: text("operationId"),
                method,
                path: path.clone(),
                summary: text("summary"),
                description: text("description"),
                parameters: parameters(document, operation),
            });
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    found
}

fn parameters(document: &Value, operation: &Value) -> Vec<Parameter> {
    let listed = operation["parameters"].as_array().into_iter().flatten().filter_map(|listed| {
        let place = match listed["in"].as_str()? {
            "path" => Place::Path,
            "query" => Place::Query,
            "header" => Place::Header,
            _ => return None,
        };
        let name = listed["name"].as_str()?.to_owned();
        // A key is made where none is given.
        let required = listed["required"] == true && place != Place::Header;
        let mut help = listed["description"].as_str().unwrap_or_default().to_owned();
        if help.is_empty() {
            help = description(document, &listed["schema"]);
        }
        Some(Parameter { name, place, required, help, types: types(document, &listed["schema"]) })
    });
    let body = resolved(document, &operation["requestBody"]["content"]["application/json"]["schema"]);
    let required = |name: &str| body["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    let fields = body["properties"].as_object().into_iter().flatten().map(|(name, schema)| Parameter {
        name: name.clone(),
        place: Place::Body,
        required: required(name),
        help: description(document, schema),
        types: types(document, schema),
    });
    listed.chain(fields).collect()
}

/// A schema, or the one that it refers to.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    reference.and_then(|pointer| document.pointer(pointer)).unwrap_or(schema)
}

fn description(document: &Value, schema: &Value) -> String {
    let own = [schema, &schema["oneOf"][0], resolved(document, schema), resolved(document, &schema["oneOf"][0])];
    let text = own.into_iter().find_map(|schema| schema["description"].as_str());
    text.unwrap_or_default().to_owned()
}

fn types(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolved(document, schema);
    let named = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(name) => BTreeSet::from([name.clone()]),
        _ => BTreeSet::new(),
    };
    let parts = ["oneOf", "anyOf", "allOf"].into_iter().flat_map(|name| schema[name].as_array().into_iter().flatten());
    named.into_iter().chain(parts.flat_map(|part| types(document, part))).collect()
}

impl Parameter {
    /// Its option: `payment_reference` and `Idempotency-Key` are `--payment-reference` and `--idempotency-key`.
    fn option(&self) -> String {
        self.name.replace('_', "-").to_lowercase()
    }

    /// The JSON value of what was written.
    fn value(&self, text: &str) -> Result<Value> {
        let is = |name: &str| self.types.contains(name);
        let parsed: Option<Value> = serde_json::from_str(text).ok();
        let fits = |value: &Value| match value {
            Value::Null => is("null"),
            Value::Bool(_) => is("boolean"),
            Value::Number(number) => is("number") || is("integer") && (number.is_i64() || number.is_u64()),
            Value::Array(_) => is("array"),
            Value::Object(_) => is("object"),
            Value::String(_) => false,
        };
        if let Some(value) = parsed.filter(fits) {
            return Ok(value);
        }
        if is("string") || self.types.is_empty() {
            return Ok(text.into());
        }
        let types: Vec<&str> = self.types.iter().map(String::as_str).collect();
        Err(Error::new(format!("--{}: {text:?} is no {}", self.option(), types.join(" or "))))
    }
}

/// clap keeps names for as long as the program runs.
fn forever(text: String) -> &'static str {
    text.leak()
}

fn command(operations: &[Operation]) -> clap::Command {
    let common = [
        option("api", "URL", "The API [default: that of the running `cargo local up`]"),
        option(
            "token-file",
            "FILE",
            "A file with an admin's token [default: $HOLDFAST_TOKEN; locally an admin's of its own]",
        ),
        flag("table", "Print a table instead of JSON lines"),
        flag("all", "All pages of a list"),
    ];
    let mut command = clap::Command::new("admin")
        .bin_name("cargo local admin")
        .about("Calls the admin API of any stack")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(common.map(|arg| arg.global(true)));
    for operation in operations {
        let mut one = clap::Command::new(forever(operation.id.clone())).about(forever(operation.summary.clone()));
        one = one.long_about(forever(format!("{}\n\n{}", operation.summary, operation.description)));
        for parameter in &operation.parameters {
            let arg = Arg::new(forever(parameter.name.clone())).help(forever(parameter.help.clone()));
            let arg = match parameter.place {
                Place::Path => arg,
                // Deltas may be negative.
                _ => arg.long(forever(parameter.option())).allow_hyphen_values(true),
            };
            one = one.arg(arg.required(parameter.required).value_name(forever(parameter.name.to_uppercase())));
        }
        command = command.subcommand(one);
    }
    let bulk = |name: &'static str, about: &'static str| {
        clap::Command::new(name).about(about).args([
            option("reason", "CODE", "Only those that failed for this reason"),
            option("reservation-id", "ID", "Only those of this reservation"),
            option("payment-reference", "PAYMENT", "Only those of this payment"),
        ])
    };
    let seconds = option("wait", "SECONDS", "How long to wait for the outcomes").default_value("120");
    let note = option("note", "TEXT", "What will be done about them").required(true);
    command
        .subcommand(
            bulk(RETRY_ALL, "Retry all open failed confirmations that match, and tell what became of each")
                .arg(seconds),
        )
        .subcommand(bulk(RESOLVE_ALL, "Resolve all open failed confirmations that match").arg(note))
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

/// One operation, and all pages of it if that is wanted.
async fn call(api: &Api, operation: &Operation, given: &ArgMatches, out: &mut impl Write) -> Result<bool> {
    let (mut path, mut query, mut body) = (operation.path.clone(), Vec::new(), Map::new());
    let mut key = None;
    for parameter in &operation.parameters {
        let Some(text) = given.get_one::<String>(&parameter.name) else { continue };
        match parameter.place {
            Place::Path => path = path.replace(&format!("{{{}}}", parameter.name), &encoded(text)),
            Place::Query => query.push((parameter.name.clone(), text.clone())),
            Place::Header => key = Some(text.clone()),
            Place::Body => drop(body.insert(parameter.name.clone(), parameter.value(text)?)),
        }
    }
    let takes = |place| operation.parameters.iter().any(|parameter| parameter.place == place);
    if takes(Place::Header) && key.is_none() {
        let made = format!("{:032x}", fastrand::u128(..));
        eprintln!("--idempotency-key {made}   (to repeat this very request)");
        key = Some(made);
    }
    let body = takes(Place::Body).then_some(Value::Object(body));
    let (table, all) = (given.get_flag("table"), given.get_flag("all"));
    let mut rows = Vec::new();
    loop {
        let answer = api.ask(&operation.method, &path, &query, key.as_deref(), body.as_ref()).await?;
        if answer.status >= 400 {
            eprintln!("{}", answer.problem());
            return Ok(false);
        }
        let next = answer.body["next_cursor"].as_str().map(str::to_owned);
        match answer.body {
            Value::Object(mut list) if list.contains_key("items") => {
                if let Some(Value::Array(items)) = list.remove("items") {
                    rows.extend(items);
                }
            }
            Value::Null => {}
            one => rows.push(one),
        }
        if !table {
            for row in rows.drain(..) {
                write(out, &format!("{row}\n"))?;
            }
        }
        match next {
            Some(next) if all => {
                query.retain(|(name, _)| name != "cursor");
                query.push(("cursor".to_owned(), next));
            }
            Some(next) => {
                eprintln!("there are more: --cursor {}, or --all", printable(&next));
                break;
            }
            None => break,
        }
    }
    if table {
        write(out, &as_table(&rows))?;
    }
    Ok(true)
}

/// Retries or resolves each failed confirmation that matches. Returns whether nothing of them is left to do.
async fn all_failed(api: &Api, name: &str, given: &ArgMatches, out: &mut impl Write) -> Result<bool> {
    let mut found = api.failed("open").await?;
    for field in ["reason", "reservation-id", "payment-reference"] {
        if let Some(wanted) = given.get_one::<String>(field) {
            found.retain(|failed| failed[field.replace('-', "_")] == wanted.as_str());
        }
    }
    let note = (name == RESOLVE_ALL).then(|| given.get_one::<String>("note").cloned().unwrap_or_default());
    let mut outcomes: BTreeMap<String, Value> = BTreeMap::new();
    let step = Step::start(if note.is_some() { "resolving" } else { "retrying" });
    for (n, failed) in found.iter().enumerate() {
        step.detail(&format!("{} of {}", n + 1, found.len()));
        let id = failed["failed_confirmation_id"].as_str().unwrap_or_default();
        let (action, body) = match &note {
            Some(note) => ("resolve", Some(json!({ "note": note }))),
            None => ("retry", None),
        };
        let path = format!("/admin/failed-confirmations/{}/{action}", encoded(id));
        let answer = api.ask(&Method::POST, &path, &[], None, body.as_ref()).await?;
        let outcome = if answer.status < 400 { &answer.body["state"] } else { &answer.body["code"] };
        outcomes.insert(id.to_owned(), outcome.clone());
    }
    if note.is_none() {
        let seconds = given.get_one::<String>("wait").and_then(|text| text.parse().ok());
        let seconds = seconds.ok_or_else(|| Error::new("--wait: a number of seconds"))?;
        api.settle(&mut outcomes, Duration::from_secs(seconds), &step).await?;
    }
    let settled = |outcome: &&Value| *outcome == "confirmed" || *outcome == "resolved";
    let done = outcomes.values().filter(settled).count();
    step.done(&format!("{done} of {} settled", outcomes.len()));
    let mut rows = found;
    for row in &mut rows {
        let id = row["failed_confirmation_id"].as_str().unwrap_or_default();
        row["outcome"] = outcomes.get(id).cloned().unwrap_or_default();
    }
    if given.get_flag("table") {
        write(out, &as_table(&rows))?;
    } else {
        for row in &rows {
            write(out, &format!("{row}\n"))?;
        }
    }
    Ok(done == outcomes.len())
}

/// An API, and who asks.
struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    token: String,
}

struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    /// The problem, for a person.
    fn problem(&self) -> String {
        let text = |name: &str| self.body[name].as_str();
        match (text("code"), text("detail")) {
            (Some(code), Some(detail)) => {
                let (code, detail) = (printable(code), printable(detail));
                format!("error: {} {code}: {detail}\n{}", self.status, printable(&self.body.to_string()))
            }
            _ => format!("error: {} {}", self.status, printable(&self.body.to_string())),
        }
    }
}

impl Api {
    fn find(url: Option<String>, token_file: Option<PathBuf>) -> Result<Self> {
        let running = Running::read()?;
        let url = url.or_else(|| running.as_ref().map(|running| running.api_url.clone()));
        let url = url.ok_or_else(|| Error::new("no `cargo local up` is running: name the API with --api"))?;
        check_scheme(&url)?;
        let is_local = running.is_some_and(|running| running.api_url == url);
        // The variable's token is of a deployed API: the local stack does not get it.
        let token = match token_file.as_deref().map(read_token).transpose()? {
            Some(token) => token,
            None if is_local => Signer::load()?.token("root", Role::Admin)?,
            None => {
                let missing = || Error::new(format!("{url} needs an admin's token: --token-file FILE, or {TOKEN}"));
                token_variable().ok_or_else(missing)?
            }
        };
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .context(|| "cannot read the system's certificates".into())?
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token })
    }

    /// Sends a request until it has a clear answer.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
        query: &[(String, String)],
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{path}{mark}{}", self.url, query.join("&"));
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut repeats = 0;
        loop {
            let answer = self.once(method, &url, key, &body).await?;
            if answer.status != 503 || repeats == REPEATS {
                return Ok(answer);
            }
            repeats += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(&self, method: &Method, url: &str, key: Option<&str>, body: &str) -> Result<Answer> {
        let cannot = || format!("{method} {url}");
        let mut request =
            Request::builder().method(method).uri(url).header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).context(cannot)?;
        let answer = async {
            let answer = self.client.request(request).await.context(cannot)?;
            let status = answer.status().as_u16();
            let bytes = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let bytes = bytes.map_err(|why| Error::new(format!("{}: {why}", cannot())))?.to_bytes();
            let text = || String::from_utf8_lossy(&bytes).into_owned().into();
            let body =
                if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) };
            Ok(Answer { status, body })
        };
        tokio::time::timeout(TIMEOUT, answer).await.context(cannot)?
    }

    /// All failed confirmations of a state.
    async fn failed(&self, state: &str) -> Result<Vec<Value>> {
        let mut query = vec![("state".to_owned(), state.to_owned()), ("limit".to_owned(), "100".to_owned())];
        let mut found = Vec::new();
        loop {
            let mut answer = self.ask(&Method::GET, "/admin/failed-confirmations", &query, None, None).await?;
            if answer.status >= 400 {
                return Err(Error::new(answer.problem()));
            }
            if let Value::Array(items) = answer.body["items"].take() {
                found.extend(items);
            }
            let Some(next) = answer.body["next_cursor"].as_str() else { return Ok(found) };
            query.retain(|(name, _)| name != "cursor");
            query.push(("cursor".to_owned(), next.to_owned()));
        }
    }

    /// Looks until what was retried has become an order, or has failed again.
    async fn settle(&self, outcomes: &mut BTreeMap<String, Value>, wait: Duration, step: &Step) -> Result<()> {
        let until = Instant::now() + wait;
        loop {
            let waiting = outcomes.values().filter(|outcome| *outcome == "retrying").count();
            if waiting == 0 || Instant::now() >= until {
                return Ok(());
            }
            step.detail(&format!("waiting for {waiting} outcomes"));
            tokio::time::sleep(PAUSE).await;
            let by_id = |failed: Vec<Value>| {
                let id = |one: Value| Some((one["failed_confirmation_id"].as_str()?.to_owned(), one));
                failed.into_iter().filter_map(id).collect::<BTreeMap<_, _>>()
            };
            // In this order: one that fails again in between is still seen as retrying.
            let again = by_id(self.failed("open").await?);
            let retrying = by_id(self.failed("retrying").await?);
            let mut settled = None;
            for (id, outcome) in outcomes.iter_mut().filter(|(_, outcome)| *outcome == "retrying") {
                if let Some(failed) = again.get(id) {
                    *outcome = format!("failed again: {}", failed["reason"].as_str().unwrap_or_default()).into();
                } else if !retrying.contains_key(id) {
                    if settled.is_none() {
                        let mut all = by_id(self.failed("confirmed").await?);
                        all.extend(by_id(self.failed("resolved").await?));
                        settled = Some(all);
                    }
                    // One that is in no list is between two of them: the next look tells.
                    if let Some(found) = settled.as_ref().and_then(|settled| settled.get(id)) {
                        *outcome = found["state"].clone();
                    }
                }
            }
        }
    }
}

/// A token is sent encrypted, or stays on this machine.
fn check_scheme(url: &str) -> Result<()> {
    let uri: Uri = url.parse().context(|| format!("--api {url}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), _) | (Some("http"), Some("127.0.0.1" | "localhost" | "[::1]")) => Ok(()),
        _ => Err(Error::new(format!(
            "--api {url}: must be an https URL, since a token goes there; http is only for 127.0.0.1, localhost and [::1]"
        ))),
    }
}

fn read_token(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "the ban keeps functions to one reader; this is an operator's tool")]
fn token_variable() -> Option<String> {
    std::env::var(TOKEN).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// A part of a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A text without control characters: a terminal would obey them.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Objects as rows, with a column for each field that is no list or object.
fn as_table(rows: &[Value]) -> String {
    let cell = |value: &Value| match value {
        Value::String(text) => printable(text),
        Value::Null => "-".to_owned(),
        Value::Array(_) | Value::Object(_) => String::new(),
        other => other.to_string(),
    };
    let mut columns: Vec<&String> = Vec::new();
    for (name, value) in rows.iter().filter_map(Value::as_object).flatten() {
        if !columns.contains(&name) && !value.is_array() && !value.is_object() {
            columns.push(name);
        }
    }
    let heads = columns.iter().map(|name| printable(name)).collect::<Vec<_>>();
    let body = rows.iter().map(|row| columns.iter().map(|name| cell(&row[name.as_str()])).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(body).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| lines.iter().map(|line| line[n].chars().count()).max().unwrap_or_default())
        .collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

fn write(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).context(|| "cannot write the answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Operation> {
        operations(&openapi::document().unwrap())
    }

    #[test]
    fn every_operation_of_an_admin_is_a_command() {
        let operations = all();
        let command = command(&operations);
        command.clone().debug_assert();
        for id in
            ["listProductsAsAdmin", "adjustStock", "auditProduct", "listAllReservations", "cancelAnyOrder", RETRY_ALL]
        {
            assert!(command.find_subcommand(id).is_some(), "{id}");
        }
        let paths: BTreeSet<&str> = operations.iter().map(|operation| operation.path.as_str()).collect();
        assert!(paths.iter().all(|path| path.starts_with("/admin/")), "{paths:?}");
    }

    #[test]
    fn parameters_have_the_types_of_the_description() {
        let operations = all();
        let parameter = |id: &str, name: &str| {
            let operation = operations.iter().find(|operation| operation.id == id).unwrap();
            operation.parameters.iter().find(|parameter| parameter.name == name).unwrap().clone()
        };
        for (id, name, text, value) in [
            ("adjustStock", "delta", "-3", json!(-3)),
            ("adjustStock", "reason", "12", json!("12")),
            ("changeProduct", "max_per_customer", "null", json!(null)),
            ("changeProduct", "max_per_customer", "4", json!(4)),
            ("changeProduct", "status", "paused", json!("paused")),
            ("changeProduct", "name", "null", json!(null)),
            ("cancelAnyOrder", "restock", "true", json!(true)),
        ] {
            assert_eq!(parameter(id, name).value(text).unwrap(), value, "{id} {name}");
        }
        let why = parameter("adjustStock", "delta").value("1.5").unwrap_err().to_string();
        assert!(why.contains("--delta") && why.contains("integer"), "{why}");
        let key = parameter("adjustStock", "Idempotency-Key");
        assert_eq!((key.option().as_str(), key.required), ("idempotency-key", false));
        assert!(parameter("adjustStock", "reason").required && !parameter("adjustStock", "reference").required);
    }

    #[test]
    fn options_are_parsed_before_and_after_the_operation() {
        let parse = |line: &str| {
            let words = std::iter::once("admin").chain(line.split(' '));
            command(&all()).try_get_matches_from(words).map_err(|error| error.to_string())
        };
        let matches = parse("--api http://x adjustStock tee --delta -3 --reason lost --table").unwrap();
        let (name, given) = matches.subcommand().unwrap();
        assert_eq!(name, "adjustStock");
        let text = |name: &str| given.get_one::<String>(name).map(String::as_str);
        assert_eq!((text("api"), text("product_id"), text("delta")), (Some("http://x"), Some("tee"), Some("-3")));
        assert!(given.get_flag("table"));
        assert!(parse("adjustStock tee --delta 3").unwrap_err().contains("--reason"));
        assert!(parse("resolveAllFailed").unwrap_err().contains("--note"));
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear() {
        for url in ["https://api.example", "http://127.0.0.1:3000", "http://localhost:3000/", "http://[::1]:3000"] {
            assert!(check_scheme(url).is_ok(), "{url}");
        }
        for url in [
            "http://api.example",
            "http://127.0.0.1.example:3000",
            "http://127.0.0.1@api.example",
            "http://10.0.0.1",
            "ftp://localhost",
            "localhost:3000",
            "",
        ] {
            assert!(check_scheme(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let rows = [json!({"a\u{7}": "\u{1b}[2J\nü\u{9b}1m"})];
        assert_eq!(as_table(&rows), "a\\u{7}\n\\u{1b}[2J\\nü\\u{9b}1m\n");
        let body = json!({"code": "c", "detail": "\u{1b}]0;x\u{7}", "more": "\u{9b}"});
        let said = Answer { status: 400, body }.problem();
        assert!(said.starts_with("error: 400 c: \\u{1b}]0;x\\u{7}\n"), "{said}");
        assert_eq!(said.chars().filter(|c| c.is_control()).count(), 1, "{said}");
    }

    #[test]
    fn rows_are_aligned_and_lists_are_left_out() {
        let rows = [json!({"id": "a", "n": 12, "lines": []}), json!({"id": "long", "n": null, "lines": [1]})];
        assert_eq!(as_table(&rows), "id    n\na     12\nlong  -\n");
        assert_eq!(encoded("a/ü b"), "a%2F%C3%BC%20b");
    }
}

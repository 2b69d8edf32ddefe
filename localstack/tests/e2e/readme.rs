//! The requests of README.md, and the walk-through of docs/api.md that continues them, command by command, with their
//! output.
//!
//! What changes from run to run (times, and ids that are not digests of what was asked) is compared by its shape;
//! `...` in an answer matches anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_local::paths;
use holdfast_local::stack::Stack;
use holdfast_local::token::Role;
use regex_lite::Regex;

use crate::api::Api;

/// The pages with requests, and the section of each, in the order in which a reader sends them.
const WALKS: [(&str, &str); 2] = [("README.md", "Six requests"), ("docs/api.md", "Walk-through")];

/// A command of a page, and its output.
struct Step {
    page: &'static str,
    command: String,
    expected: String,
}

/// The commands of the `console` blocks of a page's section.
fn steps(page: &'static str, heading: &str) -> Vec<Step> {
    let text = std::fs::read_to_string(paths::workspace().join(page)).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the section");
    let section = section.split_once("\n## ").expect("a next section").0;
    let mut steps: Vec<Step> = Vec::new();
    for block in section.split("```console\n").skip(1) {
        let block = block.split_once("```").expect("the block's end").0;
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { page, command: command.to_owned(), expected: String::new() });
                continue;
            }
            let step = steps.last_mut().expect("a command before an answer");
            if let Some(before) = step.command.strip_suffix('\\') {
                step.command = format!("{before}{}", line.trim_start());
            } else {
                step.expected.push_str(line);
                step.expected.push('\n');
            }
        }
    }
    steps
}

/// A command's words, as a shell makes them: quotes of both kinds, and variables where they are not in single quotes.
fn words(command: &str, variables: &BTreeMap<String, String>) -> Vec<String> {
    let mut words = vec![];
    let (mut word, mut quote, mut within) = (String::new(), None, false);
    let mut rest = command.chars().peekable();
    while let Some(next) = rest.next() {
        match (next, quote) {
            ('\'' | '"', None) => (quote, within) = (Some(next), true),
            (_, Some(open)) if next == open => quote = None,
            (' ', None) => {
                if within || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                within = false;
            }
            ('$', None | Some('"')) => {
                let mut name = String::new();
                while let Some(letter) = rest.next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
                    name.push(letter);
                }
                word.push_str(variables.get(&name).unwrap_or_else(|| panic!("${name} is not set: {command}")));
            }
            _ => word.push(next),
        }
    }
    assert_eq!(quote, None, "a quote is left open: {command}");
    if within || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Runs a documented `curl` command, and returns its output.
async fn curl(words: &[String], http: &reqwest::Client) -> String {
    let (mut method, mut url, mut body, mut headers, mut with_headers) = (None, None, None, Vec::new(), false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} has no value")).clone();
        match word.as_str() {
            "-s" => {}
            "-si" => with_headers = true,
            "-X" => method = Some(value()),
            "-d" => body = Some(value()),
            "-H" => headers.push(value()),
            other if other.starts_with("http://") => url = Some(other.to_owned()),
            other => panic!("the walk's test does not know curl's {other}"),
        }
    }
    let method = method.unwrap_or_else(|| if body.is_some() { "POST" } else { "GET" }.to_owned());
    let mut request = http.request(method.parse().unwrap(), url.expect("a URL"));
    for header in headers {
        let (name, value) = header.split_once(": ").expect("a header");
        request = request.header(name, value);
    }
    let response = request.body(body.unwrap_or_default()).send().await.unwrap();
    let mut printed = String::new();
    if with_headers {
        printed.push_str(&format!("HTTP/1.1 {}\n", response.status()));
        for (name, value) in response.headers() {
            printed.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        printed.push('\n');
    }
    printed.push_str(&response.text().await.unwrap());
    printed
}

/// Status line, headers and body of what a command prints; without `-i` only the body.
fn parts(printed: &str) -> (Option<&str>, Vec<&str>, &str) {
    if !printed.starts_with("HTTP/") {
        return (None, Vec::new(), printed);
    }
    let (head, body) = printed.split_once("\n\n").unwrap_or((printed, ""));
    let mut lines = head.lines();
    (lines.next(), lines.collect(), body)
}

/// Replaces what differs between runs.
fn steady(text: &str) -> String {
    let shapes = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<request>"),
        (r#""[0-9A-HJKMNP-TV-Z]{26}""#, "\"<ulid>\""),
        // A countdown that has begun.
        (r#""expires_in_seconds":[1-9]\d*"#, "\"expires_in_seconds\":<seconds>"),
    ];
    shapes
        .iter()
        .fold(text.to_owned(), |text, (shape, name)| Regex::new(shape).unwrap().replace_all(&text, *name).into_owned())
}

/// Whether `actual` is what the page shows.
fn same(expected: &str, actual: &str) -> Result<(), String> {
    let (expected_status, expected_headers, expected_body) = parts(expected);
    let (status, headers, body) = parts(actual);
    if expected_status != status {
        return Err(format!("the status is {status:?}"));
    }
    for header in expected_headers {
        if !headers.contains(&header) {
            return Err(format!("there is no header {header:?}"));
        }
    }
    // Line breaks were added for the reader.
    let joined: String = expected_body.lines().map(str::trim_start).collect();
    let (joined, body) = (steady(joined.trim()), steady(body.trim()));
    let mut rest = body.as_str();
    let segments: Vec<&str> = joined.split("...").map(str::trim).collect();
    let (last, before) = segments.split_last().expect("one at least");
    for (index, segment) in before.iter().enumerate() {
        let at = rest.find(segment).ok_or_else(|| format!("{segment:?} is not in {rest:?}"))?;
        if index == 0 && at != 0 {
            return Err(format!("it does not begin with {segment:?}"));
        }
        rest = &rest[at + segment.len()..];
    }
    // Without any `...` it is all there is; after one, it is the end.
    if if before.is_empty() { rest != *last } else { !rest.ends_with(last) } {
        return Err(format!("it does not end with {last:?}: {rest:?}"));
    }
    Ok(())
}

/// With its own stack, because the walk-through lists all products.
pub(crate) async fn the_documented_requests_get_the_documented_responses(_: Api) {
    let stack = Arc::new(Stack::start(crate::options()).await.unwrap());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    // As the lines of README.md before the first request set them.
    let mut variables = BTreeMap::from([
        ("API".to_owned(), stack.api_url().to_owned()),
        ("JSON".to_owned(), "Content-Type: application/json".to_owned()),
        ("ADMIN".to_owned(), stack.token("root", Role::Admin).unwrap()),
        ("SHOP".to_owned(), stack.token("shop", Role::Service).unwrap()),
        ("ALICE".to_owned(), stack.token("alice", Role::Customer).unwrap()),
        ("BOB".to_owned(), stack.token("bob", Role::Customer).unwrap()),
    ]);
    let steps: Vec<Step> = WALKS.into_iter().flat_map(|(page, heading)| steps(page, heading)).collect();
    assert!(steps.len() > 15, "the pages have only {} commands", steps.len());
    for Step { page, command, expected } in steps {
        let words = words(&command, &variables);
        match words.first().map(String::as_str) {
            Some("export") => {
                let (name, value) = words[1].split_once('=').expect("a value");
                variables.insert(name.to_owned(), value.to_owned());
            }
            Some("curl") => {
                let actual = curl(&words[1..], &http).await;
                if let Err(why) = same(&expected, &actual) {
                    panic!("{page} says of\n$ {command}\n{expected}\nbut {why}. The answer:\n{actual}");
                }
            }
            other => panic!("the walk's test does not know {other:?}"),
        }
    }
    Arc::into_inner(stack).expect("nobody else has it").stop().await;
}

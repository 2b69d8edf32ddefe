//! README.md and the pages of docs/: every relative link, every anchor, and every path that they name exists; and
//! docs/logs.md lists what is logged, docs/operations.md every alarm and metric, and the dashboard shows the metrics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use holdfast_aws::metrics;
use holdfast_local::paths;
use holdfast_store::measure::{self, Kind, Metric};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Folders whose files the pages name by their paths from the workspace's root.
const FOLDERS: [&str; 7] = [".ci/", ".cargo/", "docs/", "events/", "functions/", "localstack/", "shared/"];

/// Every page, by its path from the workspace's root.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = paths::workspace();
    let mut names = vec![PathBuf::from("README.md")];
    for file in std::fs::read_dir(root.join("docs")).unwrap() {
        let name = Path::new("docs").join(file.unwrap().file_name());
        if name.extension().is_some_and(|extension| extension == "md") {
            names.push(name);
        }
    }
    names.into_iter().map(|name| (name.clone(), std::fs::read_to_string(root.join(name)).unwrap())).collect()
}

/// The lines of a page that are not in a fenced block, nor code by their indentation.
fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            lines.push(line);
        }
    }
    lines
}

/// The anchors that GitHub gives to a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        assert!(found.insert(anchor.clone()), "two headings have the anchor {anchor}");
    }
    found
}

/// The targets of a page's links.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        for rest in line.split("](").skip(1) {
            found.push(rest.split_once(')').expect("the link's end").0.to_owned());
        }
    }
    found
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(normal.pop(), "{} leaves the workspace", path.display()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[test]
fn every_link_and_anchor_exists() {
    let pages = pages();
    let mut seen = 0;
    for (page, text) in &pages {
        for link in links(text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(path, at)| (path, Some(at)));
            let target = match path {
                "" => page.clone(),
                path => normal(&page.parent().expect("a folder").join(path)),
            };
            assert!(paths::workspace().join(&target).exists(), "{}: {link}: no such file", page.display());
            if let Some(anchor) = anchor {
                let text = pages.get(&target).unwrap_or_else(|| panic!("{}: {link}: not a page", page.display()));
                assert!(anchors(text).contains(anchor), "{}: {link}: no such heading", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn every_path_in_the_pages_exists() {
    let mut seen = 0;
    for (page, text) in pages() {
        for line in prose(&text) {
            // Every second part is code.
            for code in line.split('`').skip(1).step_by(2) {
                let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_'));
                if plain && FOLDERS.iter().any(|folder| code.starts_with(folder)) {
                    assert!(paths::workspace().join(code).exists(), "{}: {code} does not exist", page.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

fn read(path: &str) -> String {
    std::fs::read_to_string(paths::workspace().join(path)).unwrap()
}

/// The logical ids of the template's alarms.
fn alarms(template: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = template.lines().collect();
    let alarms = lines.windows(2).filter(|pair| pair[1].trim() == "Type: AWS::CloudWatch::Alarm");
    alarms.map(|pair| pair[0].trim().trim_end_matches(':').to_owned()).collect()
}

#[test]
fn every_alarm_has_its_section() {
    let (alarms, operations) = (alarms(&read("template.yaml")), read("docs/operations.md"));
    let mut sections = BTreeSet::new();
    for heading in operations.lines().filter_map(|line| line.strip_prefix("### ")) {
        for name in heading.split(", ") {
            assert!(sections.insert(name.to_owned()), "docs/operations.md has two sections on {name}");
        }
    }
    assert_eq!(sections, alarms, "the sections of docs/operations.md, and the alarms of template.yaml");
    assert!(alarms.len() > 10, "{alarms:?}");
}

/// The names of the metrics of Holdfast that the dashboard shows, each with the label that it is searched by.
fn shown(template: &str) -> BTreeSet<(String, Option<String>)> {
    let (_, rest) = template.split_once("DashboardBody: !Sub |\n").expect("a dashboard");
    let body: Vec<&str> = rest.lines().take_while(|line| line.starts_with("        ")).collect();
    let body: Value = serde_json::from_str(&body.join("\n")).expect("the dashboard is JSON");
    let mut found = BTreeSet::new();
    for widget in body["widgets"].as_array().unwrap() {
        for metric in widget["properties"]["metrics"].as_array().into_iter().flatten() {
            if metric[0] == metrics::NAMESPACE {
                assert_eq!((&metric[2], &metric[3]), (&metrics::STACK.into(), &"${AWS::StackName}".into()), "{metric}");
                found.insert((metric[1].as_str().unwrap().to_owned(), None));
            }
            let Some(search) = metric[0]["expression"].as_str() else { continue };
            let (_, dimensions) = search.split_once(&format!("{{{},{},", metrics::NAMESPACE, metrics::STACK)).unwrap();
            let (_, name) = search.split_once("MetricName=\"").unwrap();
            let label = dimensions.split_once('}').unwrap().0.to_owned();
            assert!(search.contains(&format!("{}=\"${{AWS::StackName}}\"", metrics::STACK)), "{search}");
            found.insert((name.split_once('"').unwrap().0.to_owned(), Some(label)));
        }
    }
    found
}

#[test]
fn every_metric_is_noted_documented_and_shown() {
    let named = |metric: &Metric| (metric.name.to_owned(), metric.label.map(str::to_owned));
    let all: BTreeSet<_> = measure::ALL.iter().map(named).collect();
    let template = read("template.yaml");
    assert_eq!(shown(&template), all, "the dashboard of template.yaml, and shared/store/src/measure.rs");

    let operations = read("docs/operations.md");
    let (_, table) = operations.split_once("| metric | unit | label | meaning |\n").expect("the table of metrics");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<_> = rows.map(|row| row.split('|').map(str::trim).take(4).collect::<Vec<_>>()).collect();
    let row = |metric: &Metric| {
        let unit = if metric.kind == Kind::Count { "count" } else { "ms" };
        [
            "".to_owned(),
            format!("`{}`", metric.name),
            unit.to_owned(),
            metric.label.map(|l| format!("`{l}`")).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = measure::ALL.iter().map(row).collect();
    let expected: BTreeSet<_> = rows.iter().map(|row| row.iter().map(String::as_str).collect::<Vec<_>>()).collect();
    assert_eq!(documented, expected, "docs/operations.md, and shared/store/src/measure.rs");

    let alarms: Vec<&str> =
        template.split("Namespace: Holdfast\n").skip(1).map(|rest| rest.lines().next().unwrap()).collect();
    for alarm in &alarms {
        let name = alarm.trim().strip_prefix("MetricName: ").expect("a metric");
        assert!(all.contains(&(name.to_owned(), None)), "an alarm watches {name}, which nothing writes");
    }
    assert!(alarms.len() > 4, "{alarms:?}");

    let sources: String = sources()
        .iter()
        .filter(|path| !path.ends_with("measure.rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for metric in measure::ALL {
        let constant = format!("measure::{}", metric.name.to_uppercase());
        let noted = sources.contains(&constant) || measure::of_outcome(metric.name).is_some();
        assert!(noted, "nothing notes {}", metric.name);
    }
}

/// The source files of the functions and of the layers that log.
fn sources() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["aws", "http", "store"].iter().map(|name| Path::new("shared").join(name)).collect();
    let functions = std::fs::read_dir(paths::workspace().join("functions")).unwrap();
    folders.extend(functions.map(|function| function.unwrap().path()));
    let files = folders.into_iter().flat_map(|folder| {
        std::fs::read_dir(paths::workspace().join(folder).join("src")).unwrap().map(|file| file.unwrap().path())
    });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The messages that a source file logs: the last text of each call.
fn messages(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for level in ["error", "warn", "info"] {
        for call in source.split(&format!("tracing::{level}!(")).skip(1) {
            let (mut depth, mut quoted) = (1, false);
            let end = call.find(|c| {
                quoted ^= c == '"';
                depth += i32::from(c == '(' && !quoted) - i32::from(c == ')' && !quoted);
                depth == 0
            });
            let end = end.expect("the call's end");
            // Rust's own formatting puts the message last.
            let texts: Vec<&str> = call[..end].split('"').skip(1).step_by(2).collect();
            found.push((*texts.last().expect("a message")).to_owned());
        }
    }
    found
}

#[test]
fn every_logged_message_is_documented() {
    let documented = std::fs::read_to_string(paths::workspace().join("docs/logs.md")).unwrap();
    let files = sources().into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    let seen: BTreeSet<String> = files.flat_map(|source| messages(&source)).collect();
    for message in &seen {
        assert!(documented.contains(&format!("| `{message}` |")), "docs/logs.md does not list `{message}`");
    }
    let listed =
        documented.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name);
    let after = listed.skip_while(|name| *name != "answered");
    for message in after {
        assert!(seen.contains(message), "docs/logs.md lists `{message}`, which nothing logs");
    }
    assert!(seen.len() > 15, "{seen:?}");
}

//! README.md and the pages of docs/: every relative link, every anchor, and every path that they name exists; and
//! docs/logs.md lists what is logged, docs/deploy.md every alarm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use holdfast_local::paths;
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

#[test]
fn every_alarm_is_documented() {
    let template = std::fs::read_to_string(paths::workspace().join("template.yaml")).unwrap();
    let documented = std::fs::read_to_string(paths::workspace().join("docs/deploy.md")).unwrap();
    let lines: Vec<&str> = template.lines().collect();
    let alarms = lines.windows(2).filter(|pair| pair[1].trim() == "Type: AWS::CloudWatch::Alarm");
    let names: Vec<&str> = alarms.map(|pair| pair[0].trim().trim_end_matches(':')).collect();
    for name in &names {
        assert!(documented.contains(&format!("`{name}`")), "docs/deploy.md does not say what to do on {name}");
    }
    assert!(names.len() > 10, "{names:?}");
}

/// The messages that a source file logs: the last text of each call.
fn messages(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for level in ["error", "warn", "info"] {
        for call in source.split(&format!("tracing::{level}!(")).skip(1) {
            let end = call.find(");").or_else(|| call.find("),")).unwrap_or(call.len());
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
    let mut folders: Vec<PathBuf> =
        ["aws", "http", "store"].iter().map(|name| Path::new("shared").join(name)).collect();
    let functions = std::fs::read_dir(paths::workspace().join("functions")).unwrap();
    folders.extend(functions.map(|function| function.unwrap().path()));
    let mut seen = BTreeSet::new();
    for folder in folders {
        for file in std::fs::read_dir(paths::workspace().join(folder).join("src")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                seen.extend(messages(&std::fs::read_to_string(path).unwrap()));
            }
        }
    }
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

//! The committed corpus: inputs that a fuzzer found worth keeping, and every input that ever broke a promise.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use holdfast_fuzz::TARGETS;

#[test]
fn no_input_of_the_corpus_breaks_a_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folders: BTreeSet<String> =
        fs::read_dir(&corpus).unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(folders, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect(), "a folder for each target");
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            let input = fs::read(&file).unwrap();
            if catch_unwind(|| target(&input)).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "see above for what these break: {broken:#?}");
}

/// cargo-fuzz finds a target by its program.
#[test]
fn every_target_has_its_program() {
    let manifest = include_str!("../Cargo.toml");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        let program = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("targets/{name}.rs")));
        assert!(program.unwrap().contains(&format!("holdfast_fuzz::{name}(")), "{name}");
    }
}

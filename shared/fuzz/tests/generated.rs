//! A little fuzzing with every `cargo test`: arbitrary bytes, and inputs of the corpus with a few mutations.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::fs;
use std::ops::Range;
use std::path::Path;

use holdfast_fuzz::TARGETS;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// Replacement values, at or just beyond a limit or rule of a parser.
fn odd() -> impl Strategy<Value = Vec<u8>> {
    let texts = [
        "",
        "null",
        "true",
        "0",
        "-0",
        "-1",
        "1",
        "1.0",
        "1.5",
        "1e999",
        "10",
        "9",
        "1000",
        "1001",
        "3600",
        "3601",
        "65",
        "4294967295",
        "4294967296",
        "1000000001",
        "100000000001",
        "9007199254740993",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551616",
        "123456789012345678901234567890",
        "[]",
        "{}",
        "[null]",
        "\"\"",
        "\" \"",
        "\"\u{200b}\"",
        "\"\u{3000}\"",
        "\"a \"",
        "\"XYZ\"",
        "\"XAU\"",
        "\"HRK\"",
        "\"JPY\"",
        "\"guest:a\"",
        "guest:a",
        "[[x admin y]]",
        "[\"x\",[\"admin\"]]",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\ud83d\\udca5\"",
        "\"é\"",
        "\"e\u{301}\"",
        "\"\u{202e}x\"",
        "\"💥\"",
        "\"\u{feff}\"",
        "\"a/../b\"",
        "\"a#b\"",
        "\"0000-01-01T00:00:00Z\"",
        "\"9999-12-31T23:59:59.999999999Z\"",
        "\"2026-02-30T00:00:00Z\"",
        "\"-9999-01-01T00:00:00Z\"",
        "%00",
        "%2f",
        "%ff",
        "%",
        "+",
        "&",
        "=",
        "?",
        "#",
        "\\",
        ",",
        "\"",
        "'",
        ";",
        ":",
        "@",
        "*",
        "W/",
        "\t",
        "\r",
        "\n",
        "\n\n",
        "\u{7f}",
        "\u{80}",
        "é",
        "💥",
        "..",
        "//",
        "held",
        "limit=0&",
        "limit=101&",
        "cursor=&",
        "utm_source=x&",
        "customer_id=a&",
        "@cognito:groups [service]\n",
        "@sub \n",
    ];
    let long = (select(vec![63, 64, 65, 199, 200, 201, 255, 256, 1_000, 1_001]), select(vec!["k", "é", "💥"]));
    let deep = (select(vec![10, 127, 128, 2_000]), select(vec![("[", "]"), ("{\"a\":", "}")]));
    prop_oneof![
        6 => select(texts.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        2 => (long, any::<bool>()).prop_map(|((length, unit), quoted)| {
            let text = unit.repeat(length);
            if quoted { format!("\"{text}\"").into_bytes() } else { text.into_bytes() }
        }),
        1 => deep.prop_map(|(depth, (open, close))| {
            format!("{}0{}", open.repeat(depth), close.repeat(depth)).into_bytes()
        }),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

/// One mutation of an input.
#[derive(Debug, Clone)]
enum Wrong {
    /// A word, a number or a quoted text is replaced.
    Replaced(Index, Vec<u8>),
    /// A value is inserted.
    Inserted(Index, Vec<u8>),
    /// A field is repeated with another value.
    Doubled(Index, Vec<u8>),
    /// A piece is removed.
    Cut(Index, Index),
    /// A bit is flipped.
    Flipped(Index, u8),
}

fn wrong() -> impl Strategy<Value = Wrong> {
    prop_oneof![
        5 => (any::<Index>(), odd()).prop_map(|(at, odd)| Wrong::Replaced(at, odd)),
        2 => (any::<Index>(), odd()).prop_map(|(at, odd)| Wrong::Inserted(at, odd)),
        1 => (any::<Index>(), odd()).prop_map(|(at, odd)| Wrong::Doubled(at, odd)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Wrong::Cut(from, to)),
        1 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Wrong::Flipped(at, bit)),
    ]
}

/// The positions of words, and of quoted texts with their quotes.
fn tokens(input: &[u8]) -> Vec<Range<usize>> {
    let (mut tokens, mut at) = (Vec::new(), 0);
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    while at < input.len() {
        let from = at;
        at += 1;
        if input[from] == b'"' {
            while at < input.len() && input[at] != b'"' {
                at += if input[at] == b'\\' { 2 } else { 1 };
            }
            at = (at + 1).min(input.len());
        } else if word(input[from]) {
            while at < input.len() && word(input[at]) {
                at += 1;
            }
        } else {
            continue;
        }
        tokens.push(from..at);
    }
    tokens
}

impl Wrong {
    fn with(&self, mut input: Vec<u8>) -> Vec<u8> {
        let tokens = tokens(&input);
        let pick = |at: &Index| (!tokens.is_empty()).then(|| at.get(&tokens).clone());
        match self {
            Self::Replaced(at, odd) => {
                if let Some(token) = pick(at) {
                    input.splice(token, odd.iter().copied());
                }
            }
            Self::Inserted(at, odd) => {
                let at = at.index(input.len() + 1);
                input.splice(at..at, odd.iter().copied());
            }
            Self::Doubled(at, odd) => {
                if let Some(token) = pick(at) {
                    let again = [b",", &input[token.clone()], b":", odd].concat();
                    input.splice(token.end..token.end, again);
                }
            }
            Self::Cut(from, to) => {
                let (from, to) = (from.index(input.len() + 1), to.index(input.len() + 1));
                input.drain(from.min(to)..from.max(to));
            }
            Self::Flipped(at, bit) => {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] ^= 1 << bit;
                }
            }
        }
        input
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Plays `cases` inputs at a target. The smallest input that breaks a promise is printed.
fn play(cases: u32, target: fn(&[u8]), inputs: impl Strategy<Value = Vec<u8>>) {
    // A failing input is added to the corpus, which is replayed: no second list of seeds is needed.
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let played = TestRunner::new(config).run(&inputs.prop_map(Input), |Input(input)| {
        target(&input);
        Ok(())
    });
    if let Err(failure) = played {
        panic!("{failure}");
    }
}

/// Printed as text, which most inputs are.
#[derive(Clone)]
struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn target(name: &str) -> fn(&[u8]) {
    TARGETS.iter().find(|(known, _)| *known == name).unwrap().1
}

/// A test for each target, so that they run in parallel and a failure has the target's name.
macro_rules! targets {
    ($($name:ident $cases:literal)*) => {
        $(mod $name {
            use super::*;

            const NAME: &str = stringify!($name);

            #[test]
            fn arbitrary_bytes() {
                play($cases, target(NAME), prop::collection::vec(any::<u8>(), 0..256));
            }

            #[test]
            fn almost_right() {
                let inputs = (select(corpus(NAME)), prop::collection::vec(wrong(), 1..4));
                let inputs = inputs.prop_map(|(input, wrong)| wrong.iter().fold(input, |input, wrong| wrong.with(input)));
                play($cases, target(NAME), inputs);
            }
        })*

        #[test]
        fn no_target_is_left_out() {
            assert_eq!([$(stringify!($name)),*], TARGETS.map(|(name, _)| name));
        }
    };
}

// As many as take seconds in all. Each run has other inputs: what one misses, a later one may find.
targets! {
    callers 128
    cursors 1024
    events 48
    letters 8
    lists 48
    messages 24
    requests 96
    values 1024
}

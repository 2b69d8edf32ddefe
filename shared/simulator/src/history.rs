//! What happened, line by line, and a digest of all of it.

use std::{fmt, io};

use serde_json::Value;

/// The history of one run.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) lines: Vec<String>,
    pub(crate) digest: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new(), digest: 0xcbf2_9ce4_8422_2325 }
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, at_ms: i64, what: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {what}", at_ms.div_euclid(1_000), at_ms.rem_euclid(1_000));
        self.digest(line.as_bytes());
        self.lines.push(line);
    }

    /// Adds data to the digest that would be too long for a line.
    pub(crate) fn digest(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        for &byte in rest {
            self.mix(u64::from(byte));
        }
    }

    /// The same for JSON, without storing its text.
    pub(crate) fn digest_json(&mut self, value: &Value) {
        // Writing into the digest cannot fail.
        _ = serde_json::to_writer(self, value);
    }

    fn mix(&mut self, word: u64) {
        // As rustc's own hash does: it only has to differ if two histories differ anywhere.
        self.digest = (self.digest.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl io::Write for &mut History {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.digest(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

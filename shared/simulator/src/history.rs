//! What happened, line by line, and a digest of it all.

use std::fmt;

/// The history of one run.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) lines: Vec<String>,
    pub(crate) digest: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        // FNV-1a: all that is asked of it is that two histories that differ anywhere differ here.
        Self { lines: Vec::new(), digest: 0xcbf2_9ce4_8422_2325 }
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, at_ms: i64, what: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {what}", at_ms.div_euclid(1_000), at_ms.rem_euclid(1_000));
        self.digest(line.as_bytes());
        self.lines.push(line);
    }

    /// Adds to the digest what would be too long for a line.
    pub(crate) fn digest(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

//! What the functions log and measure.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_aws::{log, metrics};
use serde_json::Value;

/// All that is logged in this process.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Starts capturing, in the format of the functions. It captures the whole process, since tracing decides once for
    /// all threads whether there is a subscriber. So call it once; it includes the lines of other tests.
    pub fn capture() -> Self {
        let log = Self::default();
        let writer = log.clone();
        log::init_for_test(move || writer.clone());
        let writer = log.clone();
        metrics::init_with("test".to_owned(), move |line| writer.append(format!("{line}\n").as_bytes()));
        log
    }

    fn append(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }

    /// The log as it was written.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The log line by line, as JSON.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect()
    }

    /// Checks that none of these was logged.
    ///
    /// # Panics
    /// If one was.
    #[track_caller]
    pub fn is_free_of(&self, secrets: &[&str]) {
        let log = self.text();
        assert!(!log.is_empty(), "nothing was logged at all");
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
        }
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

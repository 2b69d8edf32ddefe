//! Progress on stderr: a spinner with the elapsed time on a terminal, plain lines otherwise.
//!
//! stdout is for a command's result (a token, the demo).

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// One step that takes a while. Dropped without [`Step::done`], it leaves no line: the error that follows says it.
pub struct Step {
    bar: ProgressBar,
    title: String,
    since: Instant,
}

impl Step {
    /// Starts to show `title`.
    pub fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = ProgressBar::new_spinner();
        if bar.is_hidden() {
            eprintln!("{title} ...");
        } else {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}") {
                bar.set_style(style);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bar, title, since: Instant::now() }
    }

    /// What is going on within the step. Shown only on a terminal: elsewhere it would be noise.
    pub fn detail(&self, text: &str) {
        self.bar.set_message(text.trim().to_owned());
    }

    /// A line that stays, above the spinner.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Ends the step with what came of it.
    pub fn done(self, outcome: &str) {
        self.bar.finish_and_clear();
        eprintln!("{}: {outcome} ({:.1} s)", self.title, self.since.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

//! One error for a tool that a person runs: a sentence that says what could not be done, then why.
//!
//! Nothing here is matched on by a caller, so there are no variants; the whole chain of causes is kept as text.

use std::error::Error as StdError;
use std::fmt;

/// What could not be done, and why.
#[derive(Debug)]
pub struct Error(String);

/// The result of anything the local stack does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that is a whole sentence by itself.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Error {}

/// Puts what was being tried in front of why it failed.
pub trait Context<T> {
    /// `what` is evaluated only on failure.
    ///
    /// # Errors
    /// The same failure, with `what` in front.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: StdError> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error(format!("{}: {}", what(), chain(&error))))
    }
}

/// An error with all its causes. The AWS SDK's errors say only "service error" without theirs.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let part = inner.to_string();
        // Some errors already print their cause: once is enough.
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = inner.source();
    }
    text
}

/// The innermost cause of an error: what a person can act upon, without the layers of the libraries above it.
pub fn root(error: &dyn StdError) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

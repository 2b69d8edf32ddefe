//! The record of the running `cargo local up`, for the commands that use it from another terminal.
//!
//! Of two that run at once, it is the one that started last. A record whose stack was killed names an API that does not
//! answer.

use crate::env_file::{self, Variables};
use crate::error::{Error, Result};
use crate::paths;
use crate::stack::Stack;
use std::path::PathBuf;

const API: &str = "HOLDFAST_API";
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
const TABLE: &str = "TABLE_NAME";
const COMMENTS: [&str; 1] = ["The running `cargo local up`, for `cargo local audit` and `cargo local admin`."];

/// Where a running stack is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its API.
    pub api_url: String,
    /// Its emulator.
    pub endpoint_url: String,
    /// Its table.
    pub table: String,
}

impl Running {
    /// Where this stack is.
    ///
    /// # Errors
    /// It has no table.
    pub fn of(stack: &Stack) -> Result<Self> {
        let (api_url, endpoint_url) = (stack.api_url().to_owned(), stack.endpoint_url().to_owned());
        Ok(Self { api_url, endpoint_url, table: stack.table()?.to_owned() })
    }

    /// Writes it down.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&self) -> Result<()> {
        let Self { api_url, endpoint_url, table } = self;
        let own = [(API, api_url), (ENDPOINT, endpoint_url), (TABLE, table)];
        let variables: Variables = own.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        env_file::write(&path()?, &COMMENTS, &variables)
    }

    /// The one that is written down, if any.
    ///
    /// # Errors
    /// The file cannot be read, or is another one.
    pub fn read() -> Result<Option<Self>> {
        let Some(mut variables) = env_file::read(&path()?)? else { return Ok(None) };
        let mut part = |name: &str| {
            let missing = || Error::new(format!("{name} is missing in the record of the running stack"));
            variables.remove(name).ok_or_else(missing)
        };
        Ok(Some(Self { api_url: part(API)?, endpoint_url: part(ENDPOINT)?, table: part(TABLE)? }))
    }

    /// Removes the record, unless it is of another stack.
    pub fn forget(&self) {
        if Self::read().is_ok_and(|found| found.as_ref() == Some(self)) {
            // If it cannot be removed, it names an API that does not answer.
            let _ = path().map(std::fs::remove_file);
        }
    }
}

fn path() -> Result<PathBuf> {
    Ok(paths::local("")?.join("up.env"))
}

//! The only place that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_domain::Timestamp;

pub use holdfast_domain::Clock;

/// The system's clock.
pub fn system() -> Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    };
    Clock::new(now)
}

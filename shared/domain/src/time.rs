//! Points in time and lengths of holds.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// The source of "now" for caches, which must know how old their entries are: the system's clock in production, any other in
/// a test. The rules never read it: `now` is an argument to them.
///
/// It is a wall clock, and may step backwards. A monotonic clock alone is not enough: it stops while Lambda freezes an
/// environment, so minutes would go unnoticed.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock whose time is what `now` returns.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now().as_millis())
    }
}

/// A point in time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// This many seconds later. Saturates.
    #[must_use]
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000)))
    }

    /// Whether this is less than `millis` milliseconds before `now`, and not after it. A clock that steps backwards makes a
    /// cached value too old to be used, never younger.
    pub const fn within(self, millis: i64, now: Self) -> bool {
        let age = now.0.saturating_sub(self.0);
        0 <= age && age < millis
    }

    /// Whole seconds from `earlier` until this, rounded up, never negative: what a countdown shows.
    pub const fn seconds_since(self, earlier: Self) -> i64 {
        let millis = self.0.saturating_sub(earlier.0);
        if millis <= 0 { 0 } else { millis.saturating_add(999) / 1_000 }
    }
}

/// The length of a hold, in seconds: 10 to 3,600.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct HoldSeconds(u32);

impl HoldSeconds {
    /// The shortest hold.
    pub const MIN: Self = Self(10);
    /// The longest hold.
    pub const MAX: Self = Self(3_600);
    /// The default of a product.
    pub const DEFAULT: Self = Self(600);

    /// The length in seconds.
    pub const fn get(self) -> i64 {
        self.0 as i64
    }
}

impl TryFrom<u32> for HoldSeconds {
    type Error = Invalid;

    fn try_from(seconds: u32) -> Result<Self, Invalid> {
        let hold = Self(seconds);
        if (Self::MIN..=Self::MAX).contains(&hold) {
            Ok(hold)
        } else {
            Err(Invalid::new("hold_seconds", "must be a whole number from 10 to 3600"))
        }
    }
}

impl From<HoldSeconds> for u32 {
    fn from(hold: HoldSeconds) -> u32 {
        hold.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_in_the_future_is_too_old_to_be_used() {
        let now = Timestamp::from_millis(1_000);
        for (dated, within) in [(0, false), (1, true), (1_000, true), (1_001, false), (i64::MAX, false)] {
            assert_eq!(Timestamp::from_millis(dated).within(1_000, now), within, "{dated}");
        }
    }

    #[test]
    fn a_countdown_rounds_up_and_never_goes_below_zero() {
        let now = Timestamp::from_millis(1_000);
        assert_eq!(Timestamp::from_millis(2_001).seconds_since(now), 2);
        assert_eq!(Timestamp::from_millis(2_000).seconds_since(now), 1);
        assert_eq!(Timestamp::from_millis(1_000).seconds_since(now), 0);
        assert_eq!(Timestamp::from_millis(-5_000).seconds_since(now), 0);
    }

    #[test]
    fn whole_seconds_are_rounded_down_also_before_the_epoch() {
        for (millis, seconds) in [(1_763_700_000_999, 1_763_700_000), (1_000, 1), (999, 0), (-1, -1), (-1_000, -1)] {
            assert_eq!(Timestamp::from_millis(millis).as_seconds(), seconds, "{millis}");
        }
    }

    #[test]
    fn hold_seconds_are_refused_past_their_limits() {
        for (seconds, valid) in [(0, false), (9, false), (10, true), (3_600, true), (3_601, false), (u32::MAX, false)] {
            let back = HoldSeconds::try_from(seconds).map(u32::from).ok();
            assert_eq!(back, valid.then_some(seconds));
        }
    }
}

//! The kinds of faults, how often they occur, and how often they did.

use std::fmt;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Fault {
    /// A call answered with "internal error", and not executed.
    Refused,
    /// A call executed, and answered with "internal error".
    ErrorAfter,
    /// A call whose connection broke before it arrived.
    LostBefore,
    /// A call executed, whose connection broke before the answer.
    LostAfter,
    /// A call that never arrives, on a connection that stays silent.
    Hang,
    /// A call executed, on a connection that stays silent.
    HangAfter,
    /// A call executed long after its caller timed out.
    Slow,
    /// A write that arrives again later, when its ClientRequestToken is forgotten.
    LateCopy,
    /// A throttled call.
    Throttled,
    /// A write that meets another transaction.
    Conflict,
    /// A cancelled transaction with further reasons besides the failed condition.
    Reasons,
    /// A transaction whose items become visible one after another.
    Partly,
    /// A BatchGetItem that leaves keys unprocessed.
    Unprocessed,
    /// A page of a query or a scan that ends before its limit.
    ShortPage,
    /// An index that shows a reservation as it was up to half a minute ago.
    StaleIndex,
    /// An environment killed before one of its calls is sent.
    KilledBefore,
    /// An environment killed when the answer to one of its calls arrives.
    KilledAfter,
    /// An environment killed at any other moment.
    KilledAnytime,
    /// An environment frozen before or after one of its calls, and thawed seconds later.
    Frozen,
    /// A new environment although another is idle.
    ColdStart,
    /// A schedule that fires twice.
    EventTwice,
    /// A schedule that fires minutes late.
    EventLate,
    /// A schedule that never fires.
    EventLost,
    /// A sweep that does not run.
    SweepLost,
    /// A message of a queue that is delivered twice.
    MessageTwice,
    /// A receive without long polling, which asks only some of the queue's servers.
    ShortPoll,
    /// An environment whose clock is set, possibly backwards, while it is idle.
    ClockSet,
    /// An unreadable message in the queue.
    Poison,
    /// An outage of a service.
    Away,
    /// An ended reservation that DynamoDB's TTL deletes.
    Ttl,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::Refused,
        Self::ErrorAfter,
        Self::LostBefore,
        Self::LostAfter,
        Self::Hang,
        Self::HangAfter,
        Self::Slow,
        Self::LateCopy,
        Self::Throttled,
        Self::Conflict,
        Self::Reasons,
        Self::Partly,
        Self::Unprocessed,
        Self::ShortPage,
        Self::StaleIndex,
        Self::KilledBefore,
        Self::KilledAfter,
        Self::KilledAnytime,
        Self::Frozen,
        Self::ColdStart,
        Self::EventTwice,
        Self::EventLate,
        Self::EventLost,
        Self::SweepLost,
        Self::MessageTwice,
        Self::ShortPoll,
        Self::ClockSet,
        Self::Poison,
        Self::Away,
        Self::Ttl,
    ];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ErrorAfter => "error-after",
            Self::LostBefore => "lost-before",
            Self::LostAfter => "lost-after",
            Self::Hang => "hang",
            Self::HangAfter => "hang-after",
            Self::Slow => "slow",
            Self::LateCopy => "late-copy",
            Self::Throttled => "throttled",
            Self::Conflict => "conflict",
            Self::Reasons => "reasons",
            Self::Partly => "partly",
            Self::Unprocessed => "unprocessed",
            Self::ShortPage => "short-page",
            Self::StaleIndex => "stale-index",
            Self::KilledBefore => "killed-before",
            Self::KilledAfter => "killed-after",
            Self::KilledAnytime => "killed-anytime",
            Self::Frozen => "frozen",
            Self::ColdStart => "cold-start",
            Self::EventTwice => "event-twice",
            Self::EventLate => "event-late",
            Self::EventLost => "event-lost",
            Self::SweepLost => "sweep-lost",
            Self::MessageTwice => "message-twice",
            Self::ShortPoll => "short-poll",
            Self::ClockSet => "clock-set",
            Self::Poison => "poison",
            Self::Away => "away",
            Self::Ttl => "ttl",
        }
    }

    /// The fault of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Rates per thousand, for a history that has this fault at all: low, high, and very high.
    pub(crate) const fn rates(self) -> [u32; 3] {
        match self {
            Self::Conflict | Self::Unprocessed | Self::ShortPage | Self::Reasons => [30, 100, 300],
            Self::StaleIndex | Self::Partly | Self::ShortPoll | Self::ClockSet => [100, 300, 700],
            Self::KilledBefore | Self::KilledAfter | Self::KilledAnytime | Self::Frozen => [10, 50, 150],
            Self::ColdStart => [50, 200, 1_000],
            Self::EventTwice | Self::EventLate | Self::EventLost | Self::SweepLost | Self::MessageTwice => {
                [100, 300, 700]
            }
            Self::Poison | Self::Away => [1_000, 1_000, 1_000],
            Self::Ttl => [300, 700, 1_000],
            Self::Refused
            | Self::ErrorAfter
            | Self::LostBefore
            | Self::LostAfter
            | Self::Hang
            | Self::HangAfter
            | Self::Slow
            | Self::LateCopy
            | Self::Throttled => [5, 30, 120],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number for each kind of fault.
pub type PerFault = [u64; Fault::ALL.len()];

/// The faults of one history.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    /// The rate per thousand of each kind.
    pub(crate) per_mille: [u32; Fault::ALL.len()],
    /// Whether faults are injected now.
    pub(crate) on: bool,
    /// Number of injected faults of each kind.
    pub(crate) injected: PerFault,
}

impl Faults {
    /// Whether this fault occurs now; if so, it is counted.
    pub(crate) fn strikes(&mut self, random: &mut fastrand::Rng, fault: Fault) -> bool {
        let rate = self.per_mille[fault as usize];
        // Drawn even when faults are off, so that removing one kind does not change the random numbers of the others.
        let drawn = random.u32(0..1_000);
        let strikes = self.on && drawn < rate;
        self.injected[fault as usize] += u64::from(strikes);
        strikes
    }
}

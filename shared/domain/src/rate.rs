//! How many requests a customer may send.
//!
//! The rule is the generic cell rate algorithm in the form that ITU-T Recommendation I.371 (annex A) calls virtual
//! scheduling: a token bucket whose whole state is one number, the theoretical arrival time (TAT). Requests at the
//! permitted rate arrive at their TAT or later; a request may arrive earlier by at most the length of a burst. A refused
//! request changes nothing.
//!
//! What must always hold: of a customer's requests, at most `burst + per_second * t` are admitted in any `t` seconds.

use std::time::Duration;

/// Microseconds since the epoch. In milliseconds, the interval of 300 requests per second would be that of 333.
pub type Micros = i64;

/// A limit on the average number of requests per second, and on the number at once (the burst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    interval: Micros,
    burst: u32,
}

/// Whether a request is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Admitted. Earlier requests no longer count: the next TAT is one interval from now.
    Idle,
    /// Admitted, within the burst. The next TAT is one interval after the last.
    Within,
    /// Refused. No request will be admitted before this time has passed.
    Refused(Duration),
}

impl RateLimit {
    /// `None` if either is 0: there is no limit.
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        (per_second > 0 && burst > 0).then(|| Self { interval: 1_000_000 / Micros::from(per_second), burst })
    }

    /// What one request adds to the TAT.
    pub const fn interval(self) -> Micros {
        self.interval
    }

    /// The latest TAT at which a request is admitted at `now`.
    pub fn latest(self, now: Micros) -> Micros {
        now + Micros::from(self.burst - 1) * self.interval
    }

    /// Decides a request at `now`, given the TAT that earlier requests left, if any.
    pub fn decide(self, tat: Option<Micros>, now: Micros) -> Admission {
        match tat {
            Some(tat) if tat > self.latest(now) => {
                Admission::Refused(Duration::from_micros(u64::try_from(tat - self.latest(now)).unwrap_or_default()))
            }
            Some(tat) if tat > now => Admission::Within,
            _ => Admission::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times at which a request is admitted, with the TAT updated as the store does.
    fn admitted(limit: RateLimit, times: impl IntoIterator<Item = Micros>) -> Vec<Micros> {
        let mut tat = None;
        let mut admitted = Vec::new();
        for now in times {
            match limit.decide(tat, now) {
                Admission::Idle => tat = Some(now + limit.interval()),
                Admission::Within => tat = tat.map(|tat| tat + limit.interval()),
                Admission::Refused(_) => continue,
            }
            admitted.push(now);
        }
        admitted
    }

    #[test]
    fn a_burst_is_admitted_at_once_and_then_the_rate() {
        let limit = RateLimit::new(10, 5).unwrap();
        assert_eq!(admitted(limit, [7; 20]).len(), 5);
        // A request each millisecond for ten seconds.
        assert_eq!(admitted(limit, (0..10_000).map(|ms| ms * 1_000)).len(), 5 + 99);
    }

    #[test]
    fn no_window_admits_more_than_the_limit() {
        let mut random = fastrand::Rng::with_seed(1);
        for (per_second, burst) in [(1, 1), (3, 2), (300, 1), (1_000, 50)] {
            let limit = RateLimit::new(per_second, burst).unwrap();
            let mut now = 0;
            let times: Vec<Micros> = std::iter::repeat_with(|| {
                now += random.i64(0..1_500_000 / i64::from(per_second));
                now
            })
            .take(2_000)
            .collect();
            let admitted = admitted(limit, times);
            assert!(admitted.len() > 200, "{limit:?}: {}", admitted.len());
            for (first, &start) in admitted.iter().enumerate() {
                for (count, &end) in admitted[first..].iter().enumerate().take(200) {
                    let most = Micros::from(burst) + (end - start) / limit.interval();
                    assert!(i64::try_from(count).unwrap() < most, "{limit:?}: {count} and one in {}", end - start);
                }
            }
        }
    }

    #[test]
    fn a_refused_customer_is_admitted_at_the_time_they_were_told_and_not_before() {
        let limit = RateLimit::new(4, 3).unwrap();
        let tat = Some(1_000_000 + 3 * limit.interval());
        let Admission::Refused(wait) = limit.decide(tat, 1_000_000) else { panic!("admitted") };
        assert_eq!(wait, Duration::from_micros(250_000));
        assert!(matches!(limit.decide(tat, 1_249_999), Admission::Refused(_)));
        assert_eq!(limit.decide(tat, 1_250_000), Admission::Within);
        // At its TAT or later nothing is left of the burst, and no more was saved up than one.
        assert_eq!(limit.decide(tat, 1_749_999), Admission::Within);
        assert_eq!(limit.decide(tat, 1_750_000), Admission::Idle);
        assert_eq!(limit.decide(tat, 9_000_000), Admission::Idle);
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(RateLimit::new(0, 5), None);
        assert_eq!(RateLimit::new(5, 0), None);
    }
}

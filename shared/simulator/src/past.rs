//! Earlier states of the table: which item each key had until which write, for as long as an answer may be based on it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::books::SKEW_MS;
use crate::dynamo::Place;

/// How long an environment may refuse by what it has cached, in milliseconds.
pub(crate) const MEMORY_MS: i64 = 1_000;
/// How old what the catalogue shows may be, in milliseconds, by the clock of the environment that shows it.
pub(crate) const VIEW_MS: i64 = 2_000;
/// How old that may be by any clock: the environment that has read it may have had another one.
pub(crate) const SHOWN_MS: i64 = VIEW_MS + 2 * SKEW_MS + 100;
/// How long after it was sent a write may still be executed, counting the wire and the function that sends it, in
/// milliseconds: what a write is based on was true within this time before it.
pub(crate) const IN_FLIGHT_MS: i64 = 45_000;

/// A moment: after this many writes, and before the next. Two moments without a write between them are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(usize);

/// The time between a request and its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// When it was sent, in milliseconds since the epoch.
    pub(crate) sent_ms: i64,
    /// When it was answered.
    pub(crate) answered_ms: i64,
    /// The same as moments.
    pub(crate) sent: Moment,
    pub(crate) answered: Moment,
    /// The oldest state that an environment may have cached when the request arrives.
    pub(crate) remembered: Moment,
    /// The oldest state that the catalogue may show.
    pub(crate) shown: Moment,
}

/// Every state that is not current any more.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// The time of each write.
    times: Vec<i64>,
    /// The items that each key had, each until a write, which is given by its number.
    gone: BTreeMap<Place, Vec<(usize, Option<Value>)>>,
    /// The moments at which the windows began that are still open, and the number of windows for each.
    open: BTreeMap<Moment, usize>,
}

impl Past {
    /// Counts a write.
    pub(crate) fn written(&mut self, now: i64) {
        self.times.push(now);
    }

    /// Records the item that a key had until the latest write.
    pub(crate) fn was(&mut self, place: Place, before: Option<Value>) {
        let now = self.times.last().copied().unwrap_or_default();
        let oldest = self.at(now - IN_FLIGHT_MS).min(self.open.keys().next().copied().unwrap_or(self.now()));
        let gone = self.gone.entry(place).or_default();
        // Drop what ended before the oldest moment that may still be needed.
        gone.retain(|(until, _)| *until > oldest.0);
        gone.push((self.times.len(), before));
    }

    /// The present.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.times.len())
    }

    /// The moment at the end of this millisecond.
    pub(crate) fn at(&self, at_ms: i64) -> Moment {
        Moment(self.times.partition_point(|time| *time <= at_ms))
    }

    /// A request is sent. If a transaction at `unseen_since` is not visible to all reads yet, the request may see the
    /// table as it was before.
    pub(crate) fn ask(&mut self, now: i64, unseen_since: Option<i64>) -> Window {
        let sent = unseen_since.map_or(self.now(), |at| self.at(at - 1)).min(self.now());
        let remembered = self.at(now - MEMORY_MS).min(sent);
        let shown = self.at(now - SHOWN_MS).min(remembered);
        *self.open.entry(shown).or_default() += 1;
        Window { sent_ms: now, answered_ms: now, sent, answered: sent, remembered, shown }
    }

    /// The request is answered.
    pub(crate) fn answer(&self, window: &mut Window, now: i64) {
        (window.answered_ms, window.answered) = (now, self.now());
    }

    /// The answer has been judged.
    pub(crate) fn close(&mut self, window: &Window) {
        if let Some(count) = self.open.get_mut(&window.shown) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&window.shown);
            }
        }
    }

    /// What a key had at a moment, if that has changed since. The outer `None`: it is the current item.
    pub(crate) fn lay(&self, place: &Place, at: Moment) -> Option<Option<&Value>> {
        let gone = self.gone.get(place)?;
        let until = gone.partition_point(|(until, _)| *until <= at.0);
        gone.get(until).map(|(_, item)| item.as_ref())
    }

    /// The moments of `from..=to` at which these items may differ: the first, and each at which one of them changed.
    pub(crate) fn moments<'a>(
        &self,
        places: impl IntoIterator<Item = &'a Place>,
        from: Moment,
        to: Moment,
    ) -> Vec<Moment> {
        let mut moments = vec![from];
        for place in places {
            let gone = self.gone.get(place).map(Vec::as_slice).unwrap_or_default();
            let first = gone.partition_point(|(until, _)| *until <= from.0);
            moments.extend(gone[first..].iter().map(|(at, _)| Moment(*at)).take_while(|at| *at <= to));
        }
        moments.sort_unstable();
        moments.dedup();
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_lay_at_a_place_is_known_for_as_long_as_a_window_is_open() {
        let place = ("pk".to_owned(), "sk".to_owned());
        let mut past = Past::default();
        let write = |past: &mut Past, at: i64, before: Option<Value>| {
            past.written(at);
            past.was(place.clone(), before);
        };
        let before = past.now();
        write(&mut past, 10, None);
        let window = past.ask(20, None);
        for at in 1..=3 {
            write(&mut past, at * 1_000_000, Some(json!(at)));
        }
        let moments = past.moments([&place], before, past.now());
        let lay: Vec<_> = moments.iter().map(|&at| past.lay(&place, at)).collect();
        let (one, two, three) = (json!(1), json!(2), json!(3));
        assert_eq!(lay[lay.len() - 4..], [Some(Some(&one)), Some(Some(&two)), Some(Some(&three)), None]);
        assert_eq!(past.moments([&place], window.sent, window.sent), [window.sent]);
        past.close(&window);
        write(&mut past, 4_000_000, Some(json!(4)));
        // No window needs such an old state.
        assert_eq!(past.gone[&place].len(), 1);
    }
}

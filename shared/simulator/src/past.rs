//! The table as it was: what lay at each place until which write, for as long as an answer may rest on it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::dynamo::Place;

/// How long an environment may go on refusing for what it remembers, in milliseconds.
pub(crate) const MEMORY_MS: i64 = 1_000;
/// How long after it was sent a write may still be carried out, by the wire and by the function that sends it: what a
/// write rests on was so within this time before it.
pub(crate) const IN_FLIGHT_MS: i64 = 45_000;

/// A moment: after this many writes, and before the next. Two moments with no write between them are the same one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(usize);

/// The time between a question and its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// When it was asked, in milliseconds since the epoch.
    pub(crate) sent_ms: i64,
    /// When it was answered.
    pub(crate) answered_ms: i64,
    /// The same as moments.
    pub(crate) sent: Moment,
    pub(crate) answered: Moment,
    /// What an environment may remember when the question arrives.
    pub(crate) remembered: Moment,
}

/// Everything that is not so any more.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// When each write was made.
    times: Vec<i64>,
    /// What lay at a place until a write, which is named by its number.
    gone: BTreeMap<Place, Vec<(usize, Option<Value>)>>,
    /// The moments at which the windows began that are still open, and how many of each.
    open: BTreeMap<Moment, usize>,
}

impl Past {
    /// Counts a write.
    pub(crate) fn written(&mut self, now: i64) {
        self.times.push(now);
    }

    /// What lay at a place until the latest write.
    pub(crate) fn was(&mut self, place: Place, before: Option<Value>) {
        let now = self.times.last().copied().unwrap_or_default();
        let oldest = self.at(now - IN_FLIGHT_MS).min(self.open.keys().next().copied().unwrap_or(self.now()));
        let gone = self.gone.entry(place).or_default();
        // What ended before the oldest moment that anybody may ask about.
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

    /// Somebody asks. Where not everybody sees a transaction yet that happened at `unseen_since`, they may see the table
    /// as it was before.
    pub(crate) fn ask(&mut self, now: i64, unseen_since: Option<i64>) -> Window {
        let sent = unseen_since.map_or(self.now(), |at| self.at(at - 1)).min(self.now());
        let remembered = self.at(now - MEMORY_MS).min(sent);
        *self.open.entry(remembered).or_default() += 1;
        Window { sent_ms: now, answered_ms: now, sent, answered: sent, remembered }
    }

    /// And is answered.
    pub(crate) fn answer(&self, window: &mut Window, now: i64) {
        (window.answered_ms, window.answered) = (now, self.now());
    }

    /// The answer has been judged.
    pub(crate) fn close(&mut self, window: &Window) {
        if let Some(count) = self.open.get_mut(&window.remembered) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&window.remembered);
            }
        }
    }

    /// What lay at a place at a moment, if that has gone since. The outer `None`: it is what lies there now.
    pub(crate) fn lay(&self, place: &Place, at: Moment) -> Option<Option<&Value>> {
        let gone = self.gone.get(place)?;
        let until = gone.partition_point(|(until, _)| *until <= at.0);
        gone.get(until).map(|(_, item)| item.as_ref())
    }

    /// The moments of `from..=to` at which these places may differ: the first, and each that one of them changed at.
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
        // Nobody asks about what was so long ago.
        assert_eq!(past.gone[&place].len(), 1);
    }
}

//! Which shards of a product's stock a reservation takes its units from.
//!
//! A shard is one item, and an item takes about a thousand writes a second and one transaction at a time. So a product's
//! stock is divided into several. The choice is made with data that may be stale: the condition on the write decides, and
//! a wrong choice costs a round trip and never a unit.

use crate::Take;

/// Takes `quantity` units from one shard if possible: the first at or after `home` (wrapping around) that has enough or
/// whose units are unknown; else from the fullest shards together.
///
/// `known` has an entry for each shard: its units, or `None` if unknown.
///
/// Returns `None` if all shards together are known to have too few. The takes are from distinct shards, each of at least one
/// unit and at most what is known, in total exactly `quantity`.
pub fn choose(quantity: u32, known: &[Option<u64>], home: u32) -> Option<Vec<Take>> {
    let shards = u32::try_from(known.len()).ok()?;
    let enough = |&shard: &u32| known[shard as usize].is_none_or(|units| units >= u64::from(quantity));
    if let Some(shard) = (0..shards).map(|step| (home % shards + step) % shards).find(enough) {
        return Some(vec![Take { shard, units: quantity }]);
    }
    spread(u64::from(quantity), known.iter().map(|units| units.unwrap_or(0)))
}

/// Takes `units` from the fullest shards first, so that as few shards as possible take part.
fn spread(units: u64, available: impl Iterator<Item = u64>) -> Option<Vec<Take>> {
    let mut fullest: Vec<(u32, u64)> = (0..).zip(available).collect();
    fullest.sort_by_key(|&(shard, units)| (std::cmp::Reverse(units), shard));
    let mut left = units;
    let mut takes = Vec::new();
    for (shard, available) in fullest {
        if left == 0 {
            break;
        }
        let taken = u32::try_from(left.min(available)).unwrap_or(u32::MAX);
        takes.push(Take { shard, units: taken });
        left -= u64::from(taken);
    }
    (left == 0).then_some(takes)
}

/// Takes `units` from shards that have `available`; `None` if these are too few.
pub fn withdraw(units: u64, available: &[u64]) -> Option<Vec<Take>> {
    spread(units, available.iter().copied())
}

/// Distributes `units` evenly over `shards`, starting at `first`. Shards that would get none are left out.
pub fn distribute(units: u64, shards: u32, first: u32) -> Vec<Take> {
    let count = u64::from(shards.max(1));
    let (each, rest) = (units / count, units % count);
    (0..count)
        .map(|step| Take {
            shard: u32::try_from((u64::from(first) + step) % count).unwrap_or(0),
            units: u32::try_from(each + u64::from(step < rest)).unwrap_or(u32::MAX),
        })
        .filter(|take| take.units > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(shard: u32, units: u32) -> Take {
        Take { shard, units }
    }

    #[test]
    fn one_shard_is_preferred_from_home_on() {
        let full = [Some(5), Some(5), Some(5)];
        assert_eq!(choose(2, &full, 1), Some(vec![take(1, 2)]));
        assert_eq!(choose(2, &[Some(5), Some(1), Some(5)], 1), Some(vec![take(2, 2)]));
        assert_eq!(choose(2, &[Some(5), Some(1), Some(1)], 1), Some(vec![take(0, 2)]));
        assert_eq!(choose(2, &[Some(0), None, Some(9)], 0), Some(vec![take(1, 2)]));
        assert_eq!(choose(2, &full, 7), Some(vec![take(1, 2)]));
        assert_eq!(choose(2, &full, u32::MAX), Some(vec![take(0, 2)]));
    }

    #[test]
    fn several_shards_serve_one_line_the_fullest_first() {
        assert_eq!(choose(7, &[Some(3), Some(1), Some(4)], 0), Some(vec![take(2, 4), take(0, 3)]));
        assert_eq!(choose(8, &[Some(3), Some(1), Some(4)], 0), Some(vec![take(2, 4), take(0, 3), take(1, 1)]));
        assert_eq!(choose(9, &[Some(3), Some(1), Some(4)], 0), None);
        assert_eq!(choose(1, &[], 0), None);
    }

    #[test]
    fn an_admin_withdraws_from_the_fullest_and_no_more_than_there_is() {
        assert_eq!(withdraw(6, &[3, 0, 4]), Some(vec![take(2, 4), take(0, 2)]));
        assert_eq!(withdraw(7, &[3, 0, 4]), Some(vec![take(2, 4), take(0, 3)]));
        assert_eq!(withdraw(8, &[3, 0, 4]), None);
    }

    #[test]
    fn units_are_distributed_evenly() {
        assert_eq!(distribute(5, 3, 0), vec![take(0, 2), take(1, 2), take(2, 1)]);
        assert_eq!(distribute(2, 4, 3), vec![take(3, 1), take(0, 1)]);
        assert_eq!(distribute(0, 4, 0), vec![]);
    }

    proptest! {
        #[test]
        fn takes_are_exact_distinct_and_within_what_is_known(
            quantity in 1u32..=1_000,
            known in prop::collection::vec(prop::option::of(0u64..600), 1..64),
            home in any::<u32>(),
        ) {
            let takes = choose(quantity, &known, home);
            let sum: u64 = known.iter().map(|units| units.unwrap_or(0)).sum();
            let unknown = known.iter().any(Option::is_none);
            prop_assert_eq!(takes.is_some(), unknown || sum >= u64::from(quantity));
            if let Some(takes) = takes {
                prop_assert_eq!(takes.iter().map(|take| take.units).sum::<u32>(), quantity);
                let mut seen = std::collections::BTreeSet::new();
                for Take { shard, units } in takes {
                    prop_assert!(seen.insert(shard));
                    prop_assert!(units >= 1);
                    prop_assert!(known[shard as usize].is_none_or(|available| u64::from(units) <= available));
                }
            }
        }

        #[test]
        fn distributing_loses_nothing(units in 0u64..1_000_000_000, shards in 1u32..=64, first in 0u32..64) {
            let takes = distribute(units, shards, first);
            prop_assert_eq!(takes.iter().map(|take| u64::from(take.units)).sum::<u64>(), units);
            let most = takes.iter().map(|take| take.units).max().unwrap_or(0);
            let least = takes.iter().map(|take| take.units).min().unwrap_or(0);
            prop_assert!(most - least <= 1);
        }
    }
}

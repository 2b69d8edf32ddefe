//! Changes of a live hold: what it holds, and for whom.

use holdfast_domain::{Line, ProductStatus, Reservation, Status};

use super::{Books, SKEW_MS, quantities};
use crate::past::IN_FLIGHT_MS;

impl Books {
    /// Checks a change of a hold's lines or of its owner: it is one that was asked for, as a whole, and nothing else.
    pub(super) fn revised(&mut self, now: i64, id: &str, old: &Reservation) {
        let Some(new) = self.reservations.get(id).cloned() else { return };
        let became = || format!("{old:?} became {new:?}");
        let next = old.revision() + 1;
        let counts = new.lines.iter().all(|line| line.revision == next);
        self.check(now, counts, "a_change_of_lines_is_whole", became);
        // Its key, its times and what is noted on it stay.
        let rest = Reservation {
            lines: old.lines.clone(),
            customer: old.customer.clone(),
            formerly: old.formerly.clone(),
            late_payment_seconds: old.late_payment_seconds,
            ..new.clone()
        };
        self.check(now, rest == *old, "a_change_of_lines_is_whole", became);
        let (from, to) = (old.customer.to_string(), new.customer.to_string());
        if from != to {
            let asked = self.asked.hand_over.contains(&(id.to_owned(), from, to));
            self.check(now, asked, "only_the_owner", became);
            let mut formerly = old.formerly.clone();
            formerly.insert(old.customer.clone());
            let lines: Vec<Line> = old.lines.iter().map(|line| Line { revision: next, ..line.clone() }).collect();
            let same =
                new.formerly == formerly && new.lines == lines && new.late_payment_seconds == old.late_payment_seconds;
            self.check(now, same, "one_key_one_reservation", became);
            let allowed = new.lines.iter().all(|line| self.within_limit(line, &new, now));
            self.check(now, allowed, "limits_count_what_customers_have", became);
            return;
        }
        let asked = self.asked.lines.contains(&(id.to_owned(), to, quantities(&new)));
        let formerly = new.formerly == old.formerly;
        self.check(now, asked && formerly, "a_change_of_lines_is_whole", became);
        let shorter = new.late_payment_seconds <= old.late_payment_seconds;
        let late = new.late_payment_seconds == old.late_payment_seconds
            || new.lines.iter().any(|line| {
                let mut versions = self.products.get(line.product_id.as_str()).into_iter().flatten();
                versions.any(|(_, product)| product.late_payment_seconds == new.late_payment_seconds)
            });
        self.check(now, shorter && late, "a_change_of_lines_is_whole", became);
        for line in &new.lines {
            let before = old.lines.iter().find(|before| before.product_id == line.product_id);
            let limited = before.is_none_or(|before| before.limited == line.limited);
            match before.filter(|before| before.quantity >= line.quantity) {
                // What stays or shrinks is as it was promised.
                Some(before) => {
                    let same = before.name == line.name && before.unit_price_minor == line.unit_price_minor;
                    self.check(now, same && limited, "a_change_of_lines_is_whole", became);
                }
                None => {
                    let right = limited && self.may_be_sold(line, before, &new, now);
                    self.check(now, right, "one_version_of_each_product", || format!("{line:?}: {}", became()));
                }
            }
        }
    }

    /// Whether a line that is new or has grown is made of one version of its product, and the shards that its units came
    /// from knew no newer one.
    fn may_be_sold(&self, line: &Line, before: Option<&Line>, new: &Reservation, now: i64) -> bool {
        let product = line.product_id.as_str();
        // What it had before is on its first shard now.
        let kept = |shard: u32| {
            let first = before.and_then(|before| Some((before.takes.first()?.shard, before.quantity)));
            first.filter(|(first, _)| *first == shard).map_or(0, |(_, units)| units)
        };
        let taken = line.takes.iter().filter(|take| take.units > kept(take.shard));
        let known = taken.filter_map(|take| self.shards.get(&(product.to_owned(), take.shard)));
        let newest = known.map(|shard| shard.version).max().unwrap_or(u64::MAX);
        let counted = self.limits.get(&(product.to_owned(), new.customer.to_string())).copied().unwrap_or_default();
        let counts = self.counts.get(product).copied();
        let versions = self.products.get(product).map(Vec::as_slice).unwrap_or_default();
        versions.iter().any(|(_, product)| {
            // By whichever clock, and however long ago it was decided.
            let begun = product.sale_starts_at.is_none_or(|at| at.as_millis() <= now + SKEW_MS);
            let open = product.sale_ends_at.is_none_or(|at| at.as_millis() > now - IN_FLIGHT_MS - SKEW_MS);
            product.version >= newest
                && product.name == line.name
                && product.price_minor == line.unit_price_minor
                && product.currency == new.currency
                && product.status == ProductStatus::OnSale
                && begun
                && open
                && counts.unwrap_or(product.max_per_customer.is_some()) == line.limited
                && product.max_per_customer.is_none_or(|limit| counted <= i64::from(limit))
        })
    }

    /// Whether a customer who was handed this line has no more than a limit that its product had while the request may have
    /// been on its way.
    fn within_limit(&self, line: &Line, new: &Reservation, now: i64) -> bool {
        let product = line.product_id.as_str();
        let counted = self.limits.get(&(product.to_owned(), new.customer.to_string())).copied().unwrap_or_default();
        let versions = self.products.get(product).map(Vec::as_slice).unwrap_or_default();
        let until = |at: usize| versions.get(at + 1).map(|(since, _)| *since);
        let recent = versions.iter().enumerate().filter(|(at, _)| until(*at).is_none_or(|at| at > now - IN_FLIGHT_MS));
        let mut limits = recent.map(|(_, (_, product))| product.max_per_customer);
        !line.limited || limits.any(|limit| limit.is_none_or(|limit| counted <= i64::from(limit)))
    }
}

/// Whether the lines or the owner of a hold have changed.
pub(super) fn is_revision(old: &Reservation, new: &Reservation) -> bool {
    old.status == Status::Held && new.status == Status::Held && old.revision() != new.revision()
}

//! Whether the books of a product agree, judged by what was read of a table in use.
//!
//! An audit alternates between *passes* over the reservations of a product and *looks* at everything else: total, shards,
//! ledger and the customers' limits. Each look lies between two passes. While customers reserve and pay, nothing of this
//! is read at one instant, so a difference alone proves nothing. These facts make it one, without any clock:
//!
//! - **A reservation never returns to what it was.** Its status only goes forward, and each change of its lines raises their
//!   revision. So one that is the same in the passes before and after a look was the same during the look. Any other is
//!   *moving*: for that look its units are only known to be between none and the most that it can have had.
//! - **A difference stays.** Every transaction moves units from one place to another, so what is missing at one instant is
//!   missing at every instant. Each look bounds the same number, and the bounds of several looks may be intersected: a
//!   difference that is smaller than what moved during one look shows in a quieter one.
//! - **An index lags.** A reservation that a pass was not shown looks like units that are lost. But each look is judged by
//!   what all later passes were shown too, and only what two looks in a row say by themselves is called drift. So the first
//!   of them knows what the index shows after the second. What the audit is not certain of is `in_progress`: never an
//!   alarm, and never called consistent either.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::{
    CustomerId, Invalid, Line, MAX_QUANTITY, MAX_TOTAL, ProductId, Reservation, ReservationId, Status, Timestamp,
};

/// The reason of a ledger entry that makes up for drift. An audit lets it explain a gap in the ledger, wherever that is.
pub const COMPENSATION_REASON: &str = "audit: compensates drift";

/// Nobody else may give that reason.
pub(crate) fn check_reason(reason: &str) -> Result<(), Invalid> {
    if reason == COMPENSATION_REASON {
        return Err(Invalid::new("reason", "must not be that of an audit's compensation"));
    }
    Ok(())
}

/// What kind of thing is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Available, held and sold units do not add up to the total. Which shard has lost them cannot be known: units move
    /// between shards. If the product counts each customer's units, a limit that is off as well names the customer.
    Units,
    /// The ledger does not explain the total, or an entry does not continue the one before it.
    Ledger,
    /// What is counted for a customer is not what the customer holds and owns.
    Limit,
    /// A shard is missing, negative, or of no product.
    Shard,
    /// A reservation contradicts itself, or an index does not have it as it should.
    Reservation,
}

impl Kind {
    /// The name that is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Units => "units",
            Self::Ledger => "ledger",
            Self::Limit => "limit",
            Self::Shard => "shard",
            Self::Reservation => "reservation",
        }
    }
}

/// Something that is off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// Which one: the product, the number of the shard, or the id of the entry, customer or reservation.
    pub place: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// One thing that an item itself says wrongly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// A reservation, as far as it is about one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    created_at: Timestamp,
    status: Status,
    revision: u32,
    confirmed_late: bool,
    customer: CustomerId,
    formerly: BTreeSet<CustomerId>,
    /// Units of its lines, whatever its status.
    units: i64,
    /// Those that count against the customer's limit.
    counted: i64,
    /// The shards that its units go back to.
    shards: BTreeSet<u32>,
    faults: Vec<Fault>,
}

impl Seen {
    /// What a reservation says about a product. `faults` are those of its keys.
    pub fn new(reservation: &Reservation, product: &ProductId, mut faults: Vec<Fault>) -> Self {
        let lines: Vec<&Line> = reservation.lines.iter().filter(|line| line.product_id == *product).collect();
        for line in &lines {
            let taken: u64 = line.takes.iter().map(|take| u64::from(take.units)).sum();
            if taken != u64::from(line.quantity) {
                let (expected, found) = (format!("{} units on shards", line.quantity), taken.to_string());
                faults.push(Fault { expected, found });
            }
        }
        let units = |counts: fn(&Line) -> bool| {
            lines.iter().filter(|line| counts(line)).map(|line| i64::from(line.quantity)).sum()
        };
        Self {
            created_at: reservation.created_at,
            status: reservation.status,
            revision: reservation.revision(),
            confirmed_late: reservation.confirmed_late,
            customer: reservation.customer.clone(),
            formerly: reservation.formerly.clone(),
            units: units(|_| true),
            counted: units(|line| line.limited),
            shards: lines.iter().flat_map(|line| &line.takes).map(|take| take.shard).collect(),
            faults,
        }
    }

    /// Whether its units are held or sold, and so on no shard.
    fn occupies(&self) -> bool {
        matches!(self.status, Status::Held | Status::Confirmed)
    }

    /// Whether nothing happened between `self` and the later `other` that moves units.
    fn unmoved(&self, other: &Self) -> bool {
        // A hold that was released before it became an order says so.
        let paid_in_time = self.status == Status::Held && other.status == Status::Confirmed && !other.confirmed_late;
        (self.status == other.status || paid_in_time)
            && self.confirmed_late == other.confirmed_late
            && (self.created_at, self.revision, self.units, self.counted, &self.customer)
                == (other.created_at, other.revision, other.units, other.counted, &other.customer)
    }
}

/// How often a reservation was changed, whatever its lines are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    created_at: Timestamp,
    revision: u32,
    /// Its owner and the former ones, if it was changed.
    customers: BTreeSet<CustomerId>,
}

impl Version {
    /// That of a reservation.
    pub fn of(reservation: &Reservation) -> Self {
        let Reservation { created_at, customer, formerly, .. } = reservation;
        let revision = reservation.revision();
        let changed = revision > 0;
        let customers = formerly.iter().chain([customer]).filter(|_| changed).cloned().collect();
        Self { created_at: *created_at, revision, customers }
    }
}

/// A reservation that may have had any lines between two passes, whatever lines it had in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    customers: BTreeSet<CustomerId>,
    /// Whether the pass before did not show it. Nor may those before that, since an index lags.
    is_new: bool,
}

/// The reservations of a pass that were changed so often since the pass before that they may have had any lines in between.
pub fn swaps(before: &BTreeMap<ReservationId, Version>, now: &BTreeMap<ReservationId, Version>) -> Vec<Swap> {
    let swap = |(id, now): (&ReservationId, &Version)| {
        let before = before.get(id).filter(|before| before.created_at == now.created_at);
        let steps = now.revision.saturating_sub(before.map_or(0, |before| before.revision));
        // One change leads from the lines of one pass to those of the other.
        let certain = steps <= u32::from(before.is_some());
        (!certain).then(|| Swap { customers: now.customers.clone(), is_new: before.is_none() })
    };
    now.iter().filter_map(swap).collect()
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub entry_id: String,
    /// Units added.
    pub delta: i64,
    /// The total that it says was then.
    pub total_after: i64,
    /// Whether it makes up for drift: see [`COMPENSATION_REASON`].
    pub compensates: bool,
}

/// What was read of a product between two passes over its reservations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The product's total, read at one instant with the shards. 0 if there is no such product.
    pub total: i64,
    /// The number of shards that it should have.
    pub shards: u32,
    /// The units of the shards that exist.
    pub stock: BTreeMap<u32, i64>,
    /// The ledger at that instant, in the order of its ids. `None` if it changed while it was read.
    pub ledger: Option<Vec<Entry>>,
    /// What is counted for each customer that was asked for: 0 without an item.
    pub limits: BTreeMap<CustomerId, i64>,
}

/// What an audit has come to. Its numbers are those of one instant: of the last look at a ledger during which nothing moved.
/// If there is none, it is in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The product's total.
    pub total: i64,
    /// Units on shards. Those of holds that are overdue, but not released yet, are held.
    pub available: i64,
    /// Units in holds.
    pub held: i64,
    /// Units in orders.
    pub sold: i64,
    /// All entries of the ledger together.
    pub ledger_total: i64,
    /// Reservations that had units of the product in the last pass, whatever their status.
    pub reservations: usize,
    /// What is off.
    pub findings: Vec<Finding>,
    /// Whether something was moving, so that a difference up to what moved cannot be excluded; or what the last look found is
    /// yet to be seen by another.
    pub in_progress: bool,
    /// Whether the last look found something that is yet to be seen by another: maybe drift, and never consistent.
    pub suspected: bool,
}

impl Verdict {
    /// Whether nothing is off, nor was at the last look. While it is not final, a difference smaller than what moved cannot be
    /// excluded.
    pub fn is_consistent(&self) -> bool {
        self.findings.is_empty() && !self.suspected
    }

    /// Whether another look could say more.
    pub fn is_final(&self) -> bool {
        !self.in_progress
    }
}

/// What makes the books right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compensation {
    /// The total that it was decided on: if it is another meanwhile, look again.
    pub total_seen: u64,
    /// The number of entries that the ledger had.
    pub entries_seen: usize,
    /// What they added up to.
    pub ledger_seen: i64,
    /// The total, and what the ledger's entries add up to, afterwards.
    pub total_after: u64,
    /// The units of its entry in the ledger.
    pub delta: i64,
}

/// Bounds of a number, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    low: i64,
    high: i64,
}

impl Range {
    const ZERO: Self = Self::exactly(0);
    /// Nothing is known. Sums of it do not overflow.
    const ANY: Self = Self { low: i64::MIN / 4, high: i64::MAX / 4 };

    const fn exactly(number: i64) -> Self {
        Self { low: number, high: number }
    }

    fn plus(self, other: Self) -> Self {
        Self { low: self.low.saturating_add(other.low), high: self.high.saturating_add(other.high) }
    }

    fn minus(self, other: Self) -> Self {
        Self { low: self.low.saturating_sub(other.high), high: self.high.saturating_sub(other.low) }
    }

    fn has_zero(self) -> bool {
        self.low <= 0 && 0 <= self.high
    }

    fn and(self, other: Self) -> Option<Self> {
        let both = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        (both.low <= both.high).then_some(both)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{} to {}", self.low, self.high) }
    }
}

/// A place, and which of its faults.
type Place = (Kind, String, usize);

/// By how much a place is off, by one look.
#[derive(Debug, Clone)]
struct Deviation {
    by: Range,
    expected: String,
    found: String,
}

/// A look, and what the passes around it and later say about it.
struct Judged<'a> {
    after: usize,
    look: &'a Look,
    /// Units that were held or sold during it.
    occupied: Range,
    off: BTreeMap<Place, Deviation>,
}

impl Judged<'_> {
    /// Whether its numbers are of one instant: no units moved, and the ledger was read.
    fn is_exact(&self) -> bool {
        self.occupied.low == self.occupied.high && self.look.ledger.is_some()
    }
}

/// One reservation during the audit: what each pass saw that differs from the pass before.
type History = Vec<(usize, Option<Seen>)>;

/// The audit of one product.
#[derive(Debug, Clone)]
pub struct Audit {
    product: ProductId,
    passes: usize,
    histories: BTreeMap<ReservationId, History>,
    /// For each pass, the reservations that may have had any lines before it.
    swaps: Vec<Arc<[Swap]>>,
    /// Reservations that could not be read, by their key, in the last pass.
    unreadable: BTreeMap<String, String>,
    /// Each with the number of passes before it.
    looks: Vec<(usize, Look)>,
}

impl Audit {
    /// An audit that has seen nothing yet.
    pub fn new(product: ProductId) -> Self {
        let (histories, unreadable) = (BTreeMap::new(), BTreeMap::new());
        Self { product, passes: 0, histories, swaps: Vec::new(), unreadable, looks: Vec::new() }
    }

    /// The product.
    pub fn product(&self) -> &ProductId {
        &self.product
    }

    /// The customers whose units are counted, or were: their limits belong to a look.
    pub fn customers(&self) -> BTreeSet<CustomerId> {
        let counts = |history: &&History| {
            // What was changed may have counted in between.
            let mut seen = history.iter().filter_map(|(_, seen)| seen.as_ref());
            history.len() > 1 || seen.any(|seen| seen.counted > 0 || seen.revision > 0)
        };
        let owners = self.histories.values().filter(counts).flatten().filter_map(|(_, seen)| seen.as_ref());
        let owners = owners.flat_map(|seen| seen.formerly.iter().chain([&seen.customer]));
        // Nothing is looked at before the first pass.
        let swaps = self.swaps.iter().skip(1).flat_map(|swaps| swaps.iter());
        owners.chain(swaps.flat_map(|swap| &swap.customers)).cloned().collect()
    }

    /// The number of looks so far.
    pub fn looks(&self) -> usize {
        self.looks.len()
    }

    /// Adds a pass: every reservation with units of the product, the [`swaps`] of all reservations since the pass before, and
    /// those that could not be read, with the reason.
    pub fn add_pass(
        &mut self,
        seen: impl IntoIterator<Item = (ReservationId, Seen)>,
        swaps: Arc<[Swap]>,
        unreadable: BTreeMap<String, String>,
    ) {
        let pass = self.passes;
        let mut gone: BTreeSet<ReservationId> = self.histories.keys().cloned().collect();
        for (id, seen) in seen {
            gone.remove(&id);
            let history = self.histories.entry(id).or_default();
            if history.last().is_none_or(|(_, before)| before.as_ref() != Some(&seen)) {
                history.push((pass, Some(seen)));
            }
        }
        for id in gone {
            let history = self.histories.entry(id).or_default();
            if history.last().is_some_and(|(_, before)| before.is_some()) {
                history.push((pass, None));
            }
        }
        self.swaps.push(swaps);
        self.unreadable = unreadable;
        self.passes += 1;
    }

    /// Adds a look. A pass must follow it.
    pub fn add_look(&mut self, look: Look) {
        self.looks.push((self.passes, look));
    }

    /// What all passes and looks together say. `None` before there is a look between two passes.
    pub fn verdict(&self) -> Option<Verdict> {
        let judged: Vec<_> = self.judged().collect();
        let places: BTreeSet<&Place> = judged.iter().flat_map(|judged| judged.off.keys()).collect();
        let shown = Self::shown(&judged)?;
        let (mut findings, mut in_progress, mut suspected) = (Vec::new(), !shown.is_exact(), false);
        for place in places {
            let (mut agreed, mut in_a_row, mut off) = (Range::ANY, 0, None);
            // What could not be read says neither that it is right nor that it is wrong.
            for judged in judged.iter().filter(|judged| !judged.look.lacks(place)) {
                off = judged.off.get(place);
                let by = off.map_or(Range::ZERO, |off| off.by);
                // What cannot be true together with the looks before began after them.
                (agreed, in_a_row) = agreed.and(by).map_or((by, 0), |both| (both, in_a_row));
                in_a_row = if by.has_zero() { 0 } else { in_a_row + 1 };
            }
            match off {
                Some(off) if in_a_row >= 2 => findings.push(Finding {
                    kind: place.0,
                    place: place.1.clone(),
                    expected: off.expected.clone(),
                    found: off.found.clone(),
                }),
                _ => {
                    // All looks together may say what the last one alone does not.
                    suspected |= in_a_row > 0 || !agreed.has_zero();
                    in_progress |= agreed != Range::ZERO;
                }
            }
        }
        let then = || self.histories.values().filter_map(|history| at(history, shown.after));
        let units = |status: Status| then().filter(|seen| seen.status == status).map(|seen| seen.units).sum();
        let latest = self.histories.values().filter_map(|history| history.last()?.1.as_ref());
        Some(Verdict {
            total: shown.look.total,
            available: shown.look.available(),
            held: units(Status::Held),
            sold: units(Status::Confirmed),
            ledger_total: shown.look.ledger.as_deref().map(sum).unwrap_or_default(),
            reservations: latest.filter(|seen| seen.units > 0).count(),
            findings,
            in_progress,
            suspected,
        })
    }

    /// Each look between two passes.
    fn judged(&self) -> impl Iterator<Item = Judged<'_>> {
        let between = self.looks.iter().filter(|(passes, _)| (1..self.passes).contains(passes));
        between.map(|(after, look)| self.judge(*after, look))
    }

    /// The look whose numbers are told.
    fn shown<'a>(judged: &'a [Judged<'a>]) -> Option<&'a Judged<'a>> {
        let ledger = || judged.iter().rev().filter(|judged| judged.look.ledger.is_some());
        ledger().find(|judged| judged.is_exact()).or_else(|| ledger().next()).or(judged.last())
    }

    /// What makes ledger, total and units agree again. `None` if nothing is off.
    ///
    /// # Errors
    /// Why an entry of the ledger cannot make them right, in words.
    pub fn compensation(&self) -> Result<Option<Compensation>, String> {
        let verdict = self.verdict().ok_or("the audit is not complete")?;
        if verdict.in_progress {
            return Err(
                "units are moving, so how many are missing is not certain; try again at a quieter time".to_owned()
            );
        }
        if verdict.findings.is_empty() {
            return Ok(None);
        }
        let units = verdict.available + verdict.held + verdict.sold;
        let (Ok(total_seen), Some(total_after)) =
            (u64::try_from(verdict.total), u64::try_from(units).ok().filter(|&units| units <= MAX_TOTAL))
        else {
            return Err(format!("{units} units cannot be a product's total"));
        };
        let judged: Vec<_> = self.judged().collect();
        let look = Self::shown(&judged).map(|shown| shown.look).ok_or("the audit is not complete")?;
        if look.shards == 0 {
            return Err("there is no such product".to_owned());
        }
        let entries_seen = look.ledger.as_ref().map_or(0, Vec::len);
        let ledger_seen = verdict.ledger_total;
        let delta = units - ledger_seen;
        // The books as they would be, by the same rules.
        let mut compensated = self.clone();
        for (_, look) in &mut compensated.looks {
            look.total = units;
            if let Some(ledger) = &mut look.ledger {
                let entry_id = String::new();
                ledger.push(Entry { entry_id, delta, total_after: units, compensates: true });
            }
        }
        let compensated = compensated.verdict().ok_or("the audit is not complete")?;
        if compensated.findings.is_empty() && !compensated.in_progress {
            return Ok(Some(Compensation { total_seen, entries_seen, ledger_seen, total_after, delta }));
        }
        let left = compensated.findings;
        let left: Vec<String> = left.iter().map(|left| format!("{} {}", left.kind.as_str(), left.place)).collect();
        Err(format!("an entry of the ledger would not make these right, so repair them first: {}", left.join(", ")))
    }

    /// Where a look before the pass `after` may be off, and by how much. What is right is left out.
    fn judge<'a>(&self, after: usize, look: &'a Look) -> Judged<'a> {
        let mut found = BTreeMap::new();
        let mut note = |kind, place: String, n, by, expected: String, is: String| {
            found.insert((kind, place, n), Deviation { by, expected, found: is });
        };
        let (mut occupied, mut counted) = (Range::ZERO, BTreeMap::<&CustomerId, Range>::new());
        for (id, history) in &self.histories {
            let span = Span::of(history, after);
            occupied = occupied.plus(span.units);
            for customer in span.customers {
                let sum = counted.entry(customer).or_insert(Range::ZERO);
                *sum = sum.plus(span.counted);
            }
            let Some(seen) = at(history, after) else { continue };
            let mut faults = seen.faults.clone();
            let lost = seen.shards.iter().find(|&&shard| shard >= look.shards);
            if let Some(shard) = lost.filter(|_| seen.occupies() && look.shards > 0) {
                faults
                    .push(Fault { expected: format!("shards below {}", look.shards), found: format!("shard {shard}") });
            }
            for (n, fault) in faults.into_iter().enumerate() {
                note(Kind::Reservation, id.to_string(), n, Range::exactly(1), fault.expected, fault.found);
            }
        }
        let swaps = self.swaps.iter().enumerate().skip(after);
        let swaps = swaps.flat_map(|(pass, swaps)| swaps.iter().filter(move |swap| pass == after || swap.is_new));
        for swap in swaps {
            let any = Range { low: 0, high: i64::from(MAX_QUANTITY) };
            occupied = occupied.plus(any);
            for customer in &swap.customers {
                let sum = counted.entry(customer).or_insert(Range::ZERO);
                *sum = sum.plus(any);
            }
        }
        for (key, why) in &self.unreadable {
            let expected = "a reservation".to_owned();
            note(Kind::Reservation, key.clone(), 0, Range::exactly(1), expected, why.clone());
        }

        let id = self.product.to_string();
        let units = occupied.plus(Range::exactly(look.available()));
        let by = units.minus(Range::exactly(look.total));
        if by != Range::ZERO {
            note(Kind::Units, id.clone(), 0, by, look.total.to_string(), units.to_string());
        }
        for shard in 0..look.shards {
            let (by, is) = match look.stock.get(&shard) {
                None => (-1, "missing".to_owned()),
                Some(units) if *units < 0 => (-1, units.to_string()),
                Some(_) => continue,
            };
            note(Kind::Shard, shard.to_string(), 0, Range::exactly(by), "at least 0 units".to_owned(), is);
        }
        for (shard, units) in look.stock.range(look.shards..) {
            let expected = format!("shards below {}", look.shards);
            note(Kind::Shard, shard.to_string(), 0, Range::exactly(1), expected, format!("{units} units"));
        }
        match &look.ledger {
            None => note(Kind::Ledger, id, 0, Range::ANY, look.total.to_string(), "changing".to_owned()),
            Some(ledger) => {
                if sum(ledger) != look.total {
                    let by = Range::exactly(sum(ledger) - look.total);
                    note(Kind::Ledger, id, 0, by, look.total.to_string(), sum(ledger).to_string());
                }
                for (entry, expected, is) in breaks(ledger) {
                    note(Kind::Ledger, entry, 0, Range::exactly(is - expected), expected.to_string(), is.to_string());
                }
            }
        }
        for customer in look.limits.keys().chain(counted.keys().copied()).collect::<BTreeSet<_>>() {
            let expected = counted.get(customer).copied().unwrap_or(Range::ZERO);
            // Of somebody who was not known at this look, nothing was read.
            let is = look.limits.get(customer).map_or(Range::ANY, |&units| Range::exactly(units));
            let by = is.minus(expected);
            if by != Range::ZERO && (is != Range::ANY || expected != Range::ZERO) {
                note(Kind::Limit, customer.to_string(), 0, by, expected.to_string(), is.to_string());
            }
        }
        Judged { after, look, occupied, off: found }
    }
}

impl Look {
    /// The units of all shards that the product has. Nothing is sold from another.
    fn available(&self) -> i64 {
        self.stock.range(..self.shards).map(|(_, units)| units).sum()
    }

    /// Whether it has not read what a place is about.
    fn lacks(&self, (kind, place, _): &Place) -> bool {
        match kind {
            Kind::Ledger => self.ledger.is_none(),
            Kind::Limit => {
                CustomerId::try_from(place.as_str()).is_ok_and(|customer| !self.limits.contains_key(&customer))
            }
            Kind::Units | Kind::Shard | Kind::Reservation => false,
        }
    }
}

/// What a pass saw; a later pass than it says saw the same.
fn at(history: &History, pass: usize) -> Option<&Seen> {
    history.iter().rev().find(|(at, _)| *at <= pass)?.1.as_ref()
}

/// What a reservation can have had during a look.
struct Span<'a> {
    units: Range,
    counted: Range,
    customers: BTreeSet<&'a CustomerId>,
}

impl<'a> Span<'a> {
    /// During the look before the pass `after`.
    fn of(history: &'a History, after: usize) -> Self {
        let (first, second) = (at(history, after - 1), at(history, after));
        let nobody = Self { units: Range::ZERO, counted: Range::ZERO, customers: BTreeSet::new() };
        let (seen, certain) = match (first, second) {
            (Some(first), Some(second)) if first.unmoved(second) => {
                if !second.occupies() {
                    return nobody;
                }
                let (units, counted) = (Range::exactly(second.units), Range::exactly(second.counted));
                return Self { units, counted, customers: [&second.customer].into() };
            }
            // Not there: unless a later pass shows it for the first time, since an index lags.
            (None, None) => match history.first() {
                Some((pass, Some(later))) if *pass > after => (vec![later], later.revision == 0),
                _ => return nobody,
            },
            (None, Some(second)) => (vec![second], second.revision == 0),
            (Some(first), None) => (vec![first], first.status != Status::Held),
            (Some(first), Some(second)) => {
                let same = first.created_at == second.created_at;
                let steps = second.revision.saturating_sub(if same { first.revision } else { 0 });
                (vec![first, second], steps <= u32::from(same))
            }
        };
        // With several changes in between, the lines may have been any.
        let most = |units: fn(&Seen) -> i64| {
            let known = seen.iter().map(|seen| units(seen)).max().unwrap_or_default();
            Range { low: 0, high: if certain { known } else { known.max(i64::from(MAX_QUANTITY)) } }
        };
        let (units, counted) = (most(|seen| seen.units), most(|seen| seen.counted));
        let customers = seen.iter().flat_map(|seen| seen.formerly.iter().chain([&seen.customer])).collect();
        Self { units, counted, customers }
    }
}

/// What all entries add up to.
fn sum(ledger: &[Entry]) -> i64 {
    ledger.iter().map(|entry| entry.delta).fold(0, i64::saturating_add)
}

/// The entries that do not continue one before them: the total that each should state, and the one that it states.
///
/// Environments date entries by clocks that differ, so the order of the ids may not be that in which they were applied. So the
/// entries are right if there is an order in which each begins with the total that another has left, from 0 to the sum.
/// Only if there is none, the order of the ids tells where to look.
fn breaks(ledger: &[Entry]) -> Vec<(String, i64, i64)> {
    // How many entries end at a total, less those that begin there: none are left over.
    let mut open = BTreeMap::<i64, i64>::from([(0, 1)]);
    *open.entry(sum(ledger)).or_default() -= 1;
    for entry in ledger.iter().filter(|entry| !entry.compensates) {
        *open.entry(entry.total_after).or_default() += 1;
        *open.entry(entry.total_after.saturating_sub(entry.delta)).or_default() -= 1;
    }
    for entry in ledger.iter().filter(|entry| entry.compensates && entry.delta != 0) {
        let fits = |&(total, ends): &(&i64, &i64)| {
            *ends > 0 && open.get(&total.saturating_add(entry.delta)).is_some_and(|ends| *ends < 0)
        };
        if let Some(from) = open.iter().find(fits).map(|(total, _)| *total) {
            *open.entry(from).or_default() -= 1;
            *open.entry(from.saturating_add(entry.delta)).or_default() += 1;
        }
    }
    if open.values().all(|ends| *ends == 0) {
        return Vec::new();
    }
    let (mut left, mut broken, mut total) = (ledger.iter().collect::<VecDeque<_>>(), Vec::new(), 0_i64);
    let begins = |entry: &Entry, at: i64| entry.total_after.saturating_sub(entry.delta) == at;
    while !left.is_empty() {
        let follows = |entry: &&Entry| !entry.compensates && begins(entry, total);
        let explains = |entry: &&Entry| {
            let next = total.saturating_add(entry.delta);
            entry.compensates && left.iter().any(|other| !other.compensates && begins(other, next))
        };
        let place = left.iter().position(follows).or_else(|| left.iter().position(explains));
        let Some(entry) = left.remove(place.unwrap_or(0)) else { break };
        let expected = total.saturating_add(entry.delta);
        if place.is_some() || entry.total_after == expected {
            total = expected;
            continue;
        }
        broken.push((entry.entry_id.clone(), expected, entry.total_after));
        // Either this entry states a wrong total, and another continues the right one; or one is missing before it.
        let states_it_wrongly =
            left.iter().any(|next| begins(next, expected)) || left.is_empty() && expected == sum(ledger);
        total = if states_it_wrongly { expected } else { entry.total_after };
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HoldSeconds, IdempotencyKey, Take};

    const SHARDS: u32 = 2;

    fn tee() -> ProductId {
        ProductId::try_from("tee").unwrap()
    }

    /// A table with one product, of which every transaction is applied at once.
    #[derive(Clone, Default)]
    struct World {
        total: i64,
        stock: BTreeMap<u32, i64>,
        reservations: BTreeMap<ReservationId, Reservation>,
        faults: BTreeMap<ReservationId, Vec<Fault>>,
        limits: BTreeMap<CustomerId, i64>,
        ledger: Vec<Entry>,
        /// The pass that an index first shows a reservation in.
        shown: BTreeMap<ReservationId, usize>,
        made: u32,
        /// Whether the product's item is gone.
        gone: bool,
        /// The most passes that an index lags.
        lag: usize,
    }

    impl World {
        fn new(total: i64) -> Self {
            let mut world = Self { stock: [(0, 0), (1, 0)].into(), ..Self::default() };
            world.adjust(total);
            world
        }

        fn adjust(&mut self, delta: i64) {
            self.total += delta;
            *self.stock.get_mut(&0).unwrap() += delta;
            self.enter(delta);
        }

        fn enter(&mut self, delta: i64) {
            let entry_id = format!("entry-{:04}", self.ledger.len());
            self.ledger.push(Entry { entry_id, delta, total_after: self.total, compensates: false });
        }

        fn hold(&mut self, who: &str, units: u32, shard: u32) -> ReservationId {
            self.made += 1;
            let customer = CustomerId::try_from(who).unwrap();
            let id = ReservationId::derive(&customer, &IdempotencyKey::try_from(format!("k{}", self.made)).unwrap());
            let line = Line {
                product_id: tee(),
                quantity: units,
                name: "Tee".to_owned(),
                unit_price_minor: 1,
                limited: true,
                takes: vec![Take { shard, units }],
                revision: 0,
            };
            let (currency, now) = ("EUR".to_owned().try_into().unwrap(), Timestamp::from_millis(self.made.into()));
            let held = Reservation::held(id.clone(), customer.clone(), vec![line], currency, HoldSeconds::DEFAULT, now);
            self.reservations.insert(id.clone(), held);
            *self.stock.get_mut(&shard).unwrap() -= i64::from(units);
            *self.limits.entry(customer).or_default() += i64::from(units);
            id
        }

        fn order(&mut self, who: &str, units: u32) -> ReservationId {
            let id = self.hold(who, units, 0);
            self.reservations.get_mut(&id).unwrap().status = Status::Confirmed;
            id
        }

        /// Moves a reservation's units: from its shard to its customer, or back.
        fn give(&mut self, id: &ReservationId, back: bool, restock: bool) {
            let reservation = &self.reservations[id];
            let units = i64::from(reservation.lines[0].quantity) * if back { 1 } else { -1 };
            if restock {
                *self.stock.get_mut(&reservation.lines[0].takes[0].shard).unwrap() += units;
            }
            *self.limits.entry(reservation.customer.clone()).or_default() -= units;
        }

        /// Anything that may happen.
        fn step(&mut self, random: &mut fastrand::Rng, pass: usize) {
            let who = ["alice", "bob", "carol"][random.usize(..3)];
            let (units, shard) = (random.u32(1..=4), random.u32(..SHARDS));
            if random.u8(..3) == 0 || self.reservations.is_empty() {
                if self.stock[&shard] >= i64::from(units) {
                    let id = self.hold(who, units, shard);
                    self.shown.insert(id, pass + self.lag.min(random.usize(1..=2)));
                }
                return;
            }
            let ids: Vec<_> = self.reservations.keys().cloned().collect();
            let id = &ids[random.usize(..ids.len())];
            let change = |world: &mut Self, change: &dyn Fn(&mut Reservation)| {
                change(world.reservations.get_mut(id).unwrap());
            };
            match (self.reservations[id].status, random.u8(..5)) {
                (Status::Held, 0) => change(self, &|held| held.status = Status::Confirmed),
                (Status::Held, end @ (1 | 2)) => {
                    self.give(id, true, true);
                    change(self, &|held| held.status = if end == 1 { Status::Cancelled } else { Status::Expired });
                }
                (Status::Held, 3) if self.stock[&shard] >= 4 => {
                    self.give(id, true, true);
                    change(self, &|held| {
                        held.lines[0].quantity = units;
                        held.lines[0].takes = vec![Take { shard, units }];
                        held.lines[0].revision += 1;
                    });
                    self.give(id, false, true);
                }
                (Status::Held, 4) => {
                    self.give(id, true, true);
                    let to = CustomerId::try_from(who).unwrap();
                    change(self, &|held| *held = held.transferred(&to));
                    self.give(id, false, true);
                }
                (Status::Expired, 0..=2) => {
                    let line = &self.reservations[id].lines[0];
                    if self.stock[&line.takes[0].shard] >= i64::from(line.quantity) {
                        self.give(id, false, true);
                        change(self, &|late| (late.status, late.confirmed_late) = (Status::Confirmed, true));
                    }
                }
                (Status::Confirmed, restock @ (0 | 1)) => {
                    self.give(id, true, restock == 0);
                    change(self, &|order| order.status = Status::Cancelled);
                    if restock == 1 {
                        let units = i64::from(self.reservations[id].lines[0].quantity);
                        self.total -= units;
                        self.enter(-units);
                    }
                }
                (Status::Confirmed, 2) if self.stock[&0] > 2 => self.adjust(random.i64(-2..=2)),
                _ => {}
            }
        }
    }

    /// Reads a world item by item, while something may happen between any two reads.
    struct Reader {
        audit: Audit,
        random: fastrand::Rng,
        busy: bool,
        passes: usize,
        versions: BTreeMap<ReservationId, Version>,
    }

    impl Reader {
        fn new(seed: u64, busy: bool) -> Self {
            let (audit, random) = (Audit::new(tee()), fastrand::Rng::with_seed(seed));
            Self { audit, random, busy, passes: 0, versions: BTreeMap::new() }
        }

        fn meanwhile(&mut self, world: &mut World) {
            while self.busy && self.random.u8(..3) == 0 {
                world.step(&mut self.random, self.passes);
            }
        }

        fn pass(&mut self, world: &mut World) {
            let (mut seen, mut versions) = (BTreeMap::new(), BTreeMap::new());
            let mut ids: Vec<_> = world.reservations.keys().cloned().collect();
            self.random.shuffle(&mut ids);
            for id in ids {
                self.meanwhile(world);
                if world.shown.get(&id).is_none_or(|&shown| shown <= self.passes) {
                    let faults = world.faults.get(&id).cloned().unwrap_or_default();
                    let reservation = &world.reservations[&id];
                    versions.insert(id.clone(), Version::of(reservation));
                    if reservation.lines.iter().any(|line| line.product_id == tee()) {
                        seen.insert(id.clone(), Seen::new(reservation, &tee(), faults));
                    }
                }
            }
            self.audit.add_pass(seen, swaps(&self.versions, &versions).into(), BTreeMap::new());
            self.versions = versions;
            self.passes += 1;
        }

        fn look(&mut self, world: &mut World) {
            self.meanwhile(world);
            let mut limits = BTreeMap::new();
            for customer in self.audit.customers() {
                self.meanwhile(world);
                limits.insert(customer.clone(), world.limits.get(&customer).copied().unwrap_or_default());
            }
            let before = world.ledger.clone();
            self.meanwhile(world);
            let (total, stock) = (world.total, world.stock.clone());
            self.meanwhile(world);
            let ledger = (world.ledger == before).then_some(before);
            let shards = if world.gone { 0 } else { SHARDS };
            self.audit.add_look(Look { total, shards, stock, ledger, limits });
        }

        fn looks(&mut self, world: &mut World, looks: usize) -> Verdict {
            for _ in 0..looks {
                self.pass(world);
                self.look(world);
                self.pass(world);
            }
            self.audit.verdict().unwrap()
        }
    }

    fn judge(world: &World) -> Verdict {
        Reader::new(1, false).looks(&mut world.clone(), 2)
    }

    /// A hundred units: one hold of three, an order of five, and a hold that was cancelled.
    fn shop() -> (World, ReservationId, ReservationId) {
        let mut world = World::new(80);
        world.adjust(25);
        world.adjust(-5);
        let (held, order) = (world.hold("alice", 3, 1), world.order("bob", 5));
        let ended = world.hold("carol", 2, 0);
        world.give(&ended, true, true);
        world.reservations.get_mut(&ended).unwrap().status = Status::Cancelled;
        *world.stock.get_mut(&1).unwrap() += 10;
        *world.stock.get_mut(&0).unwrap() -= 10;
        (world, held, order)
    }

    #[test]
    fn healthy_books_are_consistent_after_one_look() {
        let (mut world, ..) = shop();
        let verdict = Reader::new(1, false).looks(&mut world, 1);
        assert_eq!(verdict.findings, []);
        assert!(verdict.is_final() && !verdict.suspected);
        assert_eq!((verdict.total, verdict.available, verdict.held, verdict.sold), (100, 92, 3, 5));
        assert_eq!((verdict.ledger_total, verdict.reservations), (100, 3));
    }

    #[test]
    fn ten_planted_inconsistencies_are_named() {
        type Plant = fn(&mut World, &ReservationId, &ReservationId);
        type Named<'a> = (Kind, &'a str, &'a str, &'a str);
        let (_, held_id, _) = shop();
        let held_place = held_id.as_str();
        #[rustfmt::skip]
        let planted: [(&str, Plant, &[Named<'_>]); 10] = [
            ("a shard's units off by one", |world, _, _| *world.stock.get_mut(&0).unwrap() -= 1,
                &[(Kind::Units, "tee", "100", "99")]),
            ("a lost shard", |world, _, _| _ = world.stock.remove(&1),
                &[(Kind::Units, "tee", "100", "93"), (Kind::Shard, "1", "at least 0 units", "missing")]),
            ("a hold whose units were given back twice", |world, held, _| world.give(held, true, true),
                &[(Kind::Units, "tee", "100", "103"), (Kind::Limit, "alice", "3", "0")]),
            ("an entry of the ledger is missing", |world, _, _| drop(world.ledger.remove(1)),
                &[(Kind::Ledger, "entry-0002", "75", "100"), (Kind::Ledger, "tee", "100", "75")]),
            ("an entry with another total", |world, _, _| world.ledger[1].total_after = 104,
                &[(Kind::Ledger, "entry-0001", "105", "104")]),
            ("the total without an entry", |world, _, _| world.total += 1,
                &[(Kind::Units, "tee", "101", "100"), (Kind::Ledger, "tee", "101", "100")]),
            ("a limit too high", |world, _, _| *world.limits.values_mut().next().unwrap() += 1,
                &[(Kind::Limit, "alice", "3", "4")]),
            ("a limit too low", |world, _, _| *world.limits.values_mut().next().unwrap() -= 1,
                &[(Kind::Limit, "alice", "3", "2")]),
            ("an order is gone", |world, _, order| drop(world.reservations.remove(order)),
                &[(Kind::Units, "tee", "100", "95")]),
            ("a hold is not in the index", |world, held, _| {
                let fault = Fault { expected: "due".to_owned(), found: "not due".to_owned() };
                world.faults.insert(held.clone(), vec![fault]);
            }, &[(Kind::Reservation, held_place, "due", "not due")]),
        ];
        for (name, plant, expected) in planted {
            let (mut world, held, order) = shop();
            plant(&mut world, &held, &order);
            let finding = |&(kind, place, expected, found): &Named<'_>| {
                let (place, expected, found) = (place.to_owned(), expected.to_owned(), found.to_owned());
                Finding { kind, place, expected, found }
            };
            let expected: Vec<_> = expected.iter().map(finding).collect();
            assert_eq!(judge(&world).findings, expected, "{name}");
            let once = Reader::new(1, false).looks(&mut world, 1);
            assert!(once.findings.is_empty() && once.in_progress, "{name}: once is not enough");
            assert!(once.suspected, "{name}: but not consistent");
        }
    }

    #[test]
    fn other_shards_and_other_numbers_are_found() {
        let (mut world, held, _) = shop();
        world.stock.insert(0, -1);
        world.stock.insert(7, 4);
        let line = &mut world.reservations.get_mut(&held).unwrap().lines[0];
        line.takes = vec![Take { shard: 1, units: 2 }, Take { shard: 3, units: 2 }];
        let found = judge(&world).findings;
        let places: Vec<_> =
            found.iter().map(|found| (found.kind, found.place.as_str(), found.found.as_str())).collect();
        let held = held.as_str();
        let expected = [
            (Kind::Units, "tee", "14"),
            (Kind::Shard, "0", "-1"),
            (Kind::Shard, "7", "4 units"),
            (Kind::Reservation, held, "4"),
            (Kind::Reservation, held, "shard 3"),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn a_table_in_use_raises_no_alarm_and_is_consistent_once_it_rests() {
        for seed in 0..1_000 {
            let (mut world, ..) = shop();
            world.lag = 2;
            let mut reader = Reader::new(seed, true);
            for _ in 0..4 {
                let verdict = reader.looks(&mut world, 1);
                assert_eq!(verdict.findings, [], "seed {seed}");
            }
            reader.busy = false;
            // An index shows everything by then.
            reader.pass(&mut world);
            let verdict = reader.looks(&mut world, 1);
            assert!(verdict.findings.is_empty() && verdict.is_final(), "seed {seed}: {verdict:?}");
        }
    }

    #[test]
    fn drift_in_a_table_in_use_is_never_called_consistent_and_found_once_it_rests() {
        for seed in 0..1_000 {
            let (mut world, ..) = shop();
            *world.stock.get_mut(&1).unwrap() += if seed % 2 == 0 { 1 } else { -1 };
            let mut reader = Reader::new(seed, true);
            for _ in 0..3 {
                let verdict = reader.looks(&mut world, 1);
                let wrong = verdict.findings.iter().any(|found| found.kind != Kind::Units);
                assert!(!wrong && (verdict.in_progress || !verdict.findings.is_empty()), "seed {seed}: {verdict:?}");
            }
            reader.busy = false;
            reader.pass(&mut world);
            let verdict = reader.looks(&mut world, 2);
            assert_eq!(verdict.findings.len(), 1, "seed {seed}: {verdict:?}");
            assert_eq!(verdict.findings[0].kind, Kind::Units);
        }
    }

    #[test]
    fn a_ledger_that_was_not_read_says_nothing() {
        let look = |world: &mut World, reader: &mut Reader, ledger: bool| {
            reader.looks(world, 1);
            if !ledger {
                reader.audit.looks.last_mut().unwrap().1.ledger = None;
            }
        };
        // Whichever look could not read it, the others have seen that an entry is wrong.
        for unread in 0..3 {
            let (mut world, ..) = shop();
            world.ledger[1].total_after = 104;
            let mut reader = Reader::new(1, false);
            (0..3).for_each(|n| look(&mut world, &mut reader, n != unread));
            let verdict = reader.audit.verdict().unwrap();
            let found: Vec<_> = verdict.findings.iter().map(|found| found.place.as_str()).collect();
            assert_eq!((found, verdict.ledger_total), (vec!["entry-0001"], 100), "{unread}");
        }
        // The numbers are of one instant, though the last look saw another total.
        let (mut world, ..) = shop();
        let mut reader = Reader::new(1, false);
        look(&mut world, &mut reader, true);
        world.adjust(10);
        look(&mut world, &mut reader, false);
        let verdict = reader.audit.verdict().unwrap();
        assert!(verdict.is_final());
        let numbers = (verdict.total, verdict.available, verdict.held, verdict.sold, verdict.ledger_total);
        assert_eq!(numbers, (100, 92, 3, 5, 100));
        // Without any ledger, nothing is certain.
        let mut reader = Reader::new(1, false);
        (0..2).for_each(|_| look(&mut world, &mut reader, false));
        assert!(reader.audit.verdict().unwrap().in_progress);
    }

    #[test]
    fn numbers_are_of_a_look_during_which_nothing_moved() {
        let (mut world, held, _) = shop();
        let mut reader = Reader::new(1, false);
        reader.looks(&mut world, 1);
        reader.pass(&mut world);
        reader.look(&mut world);
        world.give(&held, true, true);
        world.reservations.get_mut(&held).unwrap().status = Status::Cancelled;
        reader.pass(&mut world);
        let verdict = reader.audit.verdict().unwrap();
        assert!(verdict.is_final());
        assert_eq!((verdict.total, verdict.available, verdict.held, verdict.sold), (100, 92, 3, 5));
    }

    #[test]
    fn a_busy_look_does_not_take_back_what_a_quiet_one_saw() {
        let (mut world, held, _) = shop();
        *world.stock.get_mut(&0).unwrap() -= 1;
        let mut reader = Reader::new(1, false);
        reader.looks(&mut world, 1);
        reader.pass(&mut world);
        world.give(&held, true, true);
        world.reservations.get_mut(&held).unwrap().status = Status::Cancelled;
        reader.look(&mut world);
        reader.pass(&mut world);
        // The second look alone could be right: its units moved.
        let verdict = reader.audit.verdict().unwrap();
        assert!(verdict.findings.is_empty() && verdict.in_progress && verdict.suspected, "{verdict:?}");
    }

    #[test]
    fn a_limit_that_was_never_read_is_not_right() {
        let (mut world, ..) = shop();
        let mut reader = Reader::new(1, false);
        reader.pass(&mut world);
        reader.look(&mut world);
        // It counts too much, and ends before the audit knows of the customer.
        let held = world.hold("zoe", 2, 1);
        reader.pass(&mut world);
        world.give(&held, true, true);
        world.reservations.get_mut(&held).unwrap().status = Status::Cancelled;
        *world.limits.get_mut(&CustomerId::try_from("zoe").unwrap()).unwrap() += 1;
        for _ in 0..2 {
            reader.looks(&mut world, 1);
            reader.audit.looks.last_mut().unwrap().1.limits.remove(&CustomerId::try_from("zoe").unwrap());
        }
        let verdict = reader.audit.verdict().unwrap();
        assert!(verdict.findings.is_empty() && verdict.in_progress, "{verdict:?}");
        let verdict = reader.looks(&mut world, 2);
        assert_eq!(verdict.findings.iter().map(|found| found.place.as_str()).collect::<Vec<_>>(), ["zoe"]);
    }

    #[test]
    fn lines_that_come_and_go_between_two_passes_are_no_drift() {
        let (mut world, ..) = shop();
        let swap = |world: &mut World, id: &ReservationId, to: &str| {
            world.give(id, to != "tee", true);
            let line = &mut world.reservations.get_mut(id).unwrap().lines[0];
            (line.product_id, line.revision) = (ProductId::try_from(to).unwrap(), line.revision + 1);
        };
        let id = world.hold("alice", 2, 1);
        swap(&mut world, &id, "mug");
        let mut reader = Reader::new(1, false);
        for n in 0..4 {
            reader.pass(&mut world);
            // The last is made, and swapped, after the pass.
            let id = if n < 3 { id.clone() } else { world.hold("bob", 2, 1) };
            if n < 3 {
                swap(&mut world, &id, "tee");
            }
            reader.look(&mut world);
            swap(&mut world, &id, "mug");
            reader.pass(&mut world);
            let verdict = reader.audit.verdict().unwrap();
            assert!(verdict.findings.is_empty() && verdict.in_progress && !verdict.suspected, "{verdict:?}");
        }
        let verdict = reader.looks(&mut world, 1);
        assert!(verdict.findings.is_empty() && verdict.is_final(), "{verdict:?}");
    }

    #[test]
    fn nobody_else_compensates_drift() {
        let reason = |reason: &str| reason.to_owned();
        let adjusted = |reason: String| {
            let (key, actor) = (IdempotencyKey::try_from("k").unwrap(), "root".to_owned());
            let (product_id, expected_total) = (tee(), None);
            crate::Adjustment { product_id, delta: 1, reason, reference: None, expected_total, actor, key }.checked()
        };
        let cancelled = |reason: String| {
            let (order_id, actor) = (World::new(9).order("bob", 1), "root".to_owned());
            crate::OrderCancellation { order_id, customer: None, reason, restock: false, actor }.checked()
        };
        assert!(adjusted(reason("counted")).is_ok() && cancelled(reason("broken")).is_ok());
        let refused = Invalid::new("reason", "must not be that of an audit's compensation");
        assert_eq!(adjusted(reason(COMPENSATION_REASON)), Err(refused.clone()));
        assert_eq!(cancelled(reason(COMPENSATION_REASON)), Err(refused));
    }

    #[test]
    fn entries_that_clocks_have_put_in_another_order_are_right() {
        let (mut world, ..) = shop();
        world.ledger.swap(1, 2);
        assert_eq!(judge(&world).findings, []);
        let entry =
            |n: i64, delta, total_after| Entry { entry_id: n.to_string(), delta, total_after, compensates: false };
        // The second begins where two others do.
        assert_eq!(breaks(&[entry(1, 10, 10), entry(2, 10, 20), entry(3, 5, 15), entry(4, -5, 10)]), []);
        assert_eq!(breaks(&[]), []);
    }

    #[test]
    fn a_compensation_makes_the_books_right_or_is_refused() {
        let compensation = |world: &World| {
            let mut reader = Reader::new(1, false);
            reader.looks(&mut world.clone(), 2);
            reader.audit.compensation()
        };
        type Plant = fn(&mut World);
        let (healthy, ..) = shop();
        assert_eq!(compensation(&healthy), Ok(None));
        let right: [(Plant, i64, i64); 5] = [
            (|world| *world.stock.get_mut(&0).unwrap() -= 1, -1, 99),
            (|world| *world.stock.get_mut(&0).unwrap() += 2, 2, 102),
            (|world| world.total += 1, 0, 100),
            (|world| drop(world.ledger.remove(1)), 25, 100),
            (|world| drop(world.ledger.pop()), -5, 100),
        ];
        for (plant, delta, total_after) in right {
            let (mut world, ..) = shop();
            plant(&mut world);
            let made = compensation(&world).unwrap().unwrap();
            assert_eq!((made.delta, made.total_after), (delta, total_after.try_into().unwrap()));
            world.total = total_after;
            world.ledger.push(Entry { entry_id: "entry-0009".to_owned(), delta, total_after, compensates: true });
            assert_eq!(judge(&world).findings, []);
            // The next adjustment continues it.
            world.adjust(3);
            assert_eq!(judge(&world).findings, []);
        }
        let wrong: [(Plant, &str); 5] = [
            (|world| _ = world.stock.remove(&0), "shard 0"),
            (|world| world.ledger[1].total_after = 104, "ledger entry-0001"),
            (|world| *world.limits.values_mut().next().unwrap() += 1, "limit alice"),
            (|world| *world.stock.get_mut(&0).unwrap() -= 300, "cannot be a product's total"),
            (|world| (world.total, world.gone) = (0, true), "there is no such product"),
        ];
        for (plant, why) in wrong {
            let (mut world, ..) = shop();
            plant(&mut world);
            let refused = compensation(&world).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}

//! From a request to the reservation to make, or the refusal.

use std::collections::BTreeMap;

use crate::{
    Currency, CurrentPrice, CustomerId, HoldSeconds, IdempotencyKey, Invalid, Line, MAX_PRICE_MINOR, Product,
    ProductId, Refusal, Reservation, ReservationId, Take, Timestamp, digest_id,
};

/// The most lines of a reservation.
pub const MAX_LINES: usize = 20;
/// The most units of one line.
pub const MAX_QUANTITY: u32 = 1_000;

/// A line of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedLine {
    /// The product.
    pub product_id: ProductId,
    /// Units; `None` if the caller sent a number other than a whole number from 1 to 2^32-1.
    pub quantity: Option<u32>,
    /// The price of one unit that the customer saw, if the caller wants it compared.
    pub unit_price_minor: Option<u64>,
}

impl From<(ProductId, Option<u32>)> for RequestedLine {
    fn from((product_id, quantity): (ProductId, Option<u32>)) -> Self {
        Self { product_id, quantity, unit_price_minor: None }
    }
}

/// What is asked for of one product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wish {
    quantity: u32,
    unit_price_minor: Option<u64>,
}

/// One line for each product that is asked for, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedLines(BTreeMap<ProductId, Wish>);

/// What a customer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basket {
    /// The customer.
    pub customer: CustomerId,
    /// The reservation's id, derived from the customer and their Idempotency-Key.
    pub reservation_id: ReservationId,
    /// A digest of the lines: distinguishes a replay from a reused key.
    pub fingerprint: String,
    lines: RequestedLines,
}

/// Why a request makes no [`Basket`] or [`RequestedLines`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BasketError {
    /// It breaks a rule of the request's form.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It is well formed, and refused by name.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl RequestedLines {
    /// Merges lines of the same product, since one transaction may not touch an item twice.
    ///
    /// # Errors
    /// [`Invalid`] for no lines or too many, for a price above [`MAX_PRICE_MINOR`], and for two prices of one product;
    /// [`Refusal::InvalidQuantity`] for a merged quantity outside 1 to 1,000.
    pub fn new(lines: Vec<impl Into<RequestedLine>>) -> Result<Self, BasketError> {
        if lines.is_empty() || lines.len() > MAX_LINES {
            return Err(Invalid::new("lines", "must be 1 to 20 lines").into());
        }
        let mut merged: BTreeMap<ProductId, Wish> = BTreeMap::new();
        for RequestedLine { product_id, quantity, unit_price_minor } in lines.into_iter().map(Into::into) {
            // Each quantity is checked, not only the sum: -1 + 2 and 0 + 1 must not count as one unit.
            let Some(quantity) = quantity.filter(|quantity| (1..=MAX_QUANTITY).contains(quantity)) else {
                return Err(Refusal::InvalidQuantity { product_id }.into());
            };
            if unit_price_minor.is_some_and(|price| price > MAX_PRICE_MINOR) {
                return Err(Invalid::new("lines", "unit_price_minor must be from 0 to 100000000000").into());
            }
            let wish = merged.entry(product_id).or_default();
            wish.quantity += quantity;
            if wish.unit_price_minor.is_some_and(|price| unit_price_minor.is_some_and(|other| price != other)) {
                return Err(Invalid::new("lines", "must have one unit_price_minor for each product").into());
            }
            wish.unit_price_minor = wish.unit_price_minor.or(unit_price_minor);
        }
        if let Some((product_id, _)) = merged.iter().find(|(_, wish)| wish.quantity > MAX_QUANTITY) {
            return Err(Refusal::InvalidQuantity { product_id: product_id.clone() }.into());
        }
        Ok(Self(merged))
    }

    /// The products asked for, in the order of their ids.
    pub fn products(&self) -> impl ExactSizeIterator<Item = &ProductId> + Clone {
        self.0.keys()
    }

    /// A digest of products and quantities. It leaves prices out: a page that was reloaded and names today's price still
    /// finds its order.
    fn fingerprint(&self) -> String {
        let canonical: Vec<String> =
            self.0.iter().map(|(product, wish)| format!("{} {product}", wish.quantity)).collect();
        digest_id("", &canonical.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Basket {
    /// What `customer` asks for with `key`.
    ///
    /// # Errors
    /// Those of [`RequestedLines::new`].
    pub fn new(
        customer: CustomerId,
        key: &IdempotencyKey,
        lines: Vec<impl Into<RequestedLine>>,
    ) -> Result<Self, BasketError> {
        let lines = RequestedLines::new(lines)?;
        let reservation_id = ReservationId::derive(&customer, key);
        Ok(Self { customer, reservation_id, fingerprint: lines.fingerprint(), lines })
    }

    /// The products asked for, in the order of their ids.
    pub fn products(&self) -> impl ExactSizeIterator<Item = &ProductId> + Clone {
        self.lines.products()
    }
}

/// A line of a [`Draft`]: everything but the shards that its units come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftLine {
    /// The product as it was when the draft was made.
    pub product: Product,
    /// Units.
    pub quantity: u32,
}

/// A reservation that may be made if the stock allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// One line for each product.
    pub lines: Vec<DraftLine>,
    /// The currency of every line.
    pub currency: Currency,
    /// The length of the hold: the shortest of the products'.
    pub hold_seconds: HoldSeconds,
    /// When the hold ends.
    pub expires_at: Timestamp,
    /// How long after that a payment may still make it an order: the shortest of the products' times.
    pub late_payment_seconds: u32,
}

impl Draft {
    /// The hold that this makes of `basket` at `now`, with the shards that each line's units come from.
    pub fn hold(&self, basket: &Basket, takes: Vec<Vec<Take>>, now: Timestamp) -> Reservation {
        let lines = self.lines.iter().zip(takes).map(|(line, takes)| Line {
            product_id: line.product.product_id.clone(),
            quantity: line.quantity,
            name: line.product.name.clone(),
            unit_price_minor: line.product.price_minor,
            limited: line.product.counts_per_customer,
            takes,
            revision: 0,
        });
        let (id, customer) = (basket.reservation_id.clone(), basket.customer.clone());
        Reservation {
            expires_at: self.expires_at,
            late_payment_seconds: self.late_payment_seconds,
            fingerprint: basket.fingerprint.clone(),
            ..Reservation::held(id, customer, lines.collect(), self.currency, self.hold_seconds, now)
        }
    }
}

/// The reservation to make for `basket` at `now`, given the `products` that are known.
///
/// # Errors
/// The refusals that do not depend on stock: unknown product, mixed currencies, not on sale, outside the sale window,
/// another price than the customer saw, more than the limit for each customer in one request. The first in the order of
/// [`Refusal`] wins, and within one kind the first product by id.
pub fn draft(basket: &Basket, products: &BTreeMap<ProductId, Product>, now: Timestamp) -> Result<Draft, Refusal> {
    let lines = basket.lines.drafts(products)?;
    let (Some(currency), Some(hold_seconds), Some(late_payment_seconds)) = (
        lines.first().map(|line| line.product.currency),
        lines.iter().map(|line| line.product.hold_seconds).min(),
        lines.iter().map(|line| line.product.late_payment_seconds).min(),
    ) else {
        // Cannot happen: a basket has at least one line.
        return Err(Refusal::ReservationNotFound);
    };
    may_be_sold(&lines.iter().collect::<Vec<_>>(), now)?;
    let prices = lines.iter().map(|line| line.product.price_minor);
    basket.lines.compare_prices(prices)?;
    lines.iter().try_for_each(within_limit)?;
    let expires_at = now.plus_seconds(hold_seconds.get());
    Ok(Draft { lines, currency, hold_seconds, expires_at, late_payment_seconds })
}

impl RequestedLines {
    /// Each line with its product, in the order of their ids, if all are of one currency.
    fn drafts(&self, products: &BTreeMap<ProductId, Product>) -> Result<Vec<DraftLine>, Refusal> {
        let draft = |(product_id, wish): (&ProductId, &Wish)| {
            let product =
                products.get(product_id).ok_or_else(|| Refusal::ProductNotFound { product_id: product_id.clone() })?;
            Ok(DraftLine { product: product.clone(), quantity: wish.quantity })
        };
        let lines = self.0.iter().map(draft).collect::<Result<Vec<_>, Refusal>>()?;
        let currency = lines.first().map(|line| line.product.currency);
        if lines.iter().any(|line| Some(line.product.currency) != currency) {
            return Err(Refusal::CurrencyMismatch);
        }
        Ok(lines)
    }

    /// Compares the prices that the customer saw, where they are named, with these: one for each product.
    fn compare_prices(&self, prices: impl Iterator<Item = u64>) -> Result<(), Refusal> {
        let changed = |((product_id, wish), price): ((&ProductId, &Wish), u64)| {
            let seen = wish.unit_price_minor?;
            (seen != price).then(|| CurrentPrice { product_id: product_id.clone(), unit_price_minor: price })
        };
        let prices: Vec<CurrentPrice> = self.0.iter().zip(prices).filter_map(changed).collect();
        if prices.is_empty() { Ok(()) } else { Err(Refusal::PriceChanged { prices }) }
    }
}

/// Whether all of these are on sale.
fn may_be_sold(lines: &[&DraftLine], now: Timestamp) -> Result<(), Refusal> {
    let on_sale = |line: &&DraftLine| line.product.on_sale(now);
    let paused = lines.iter().map(on_sale).find(|answer| matches!(answer, Err(Refusal::ProductNotOnSale { .. })));
    paused.unwrap_or(Ok(()))?;
    lines.iter().try_for_each(on_sale)
}

/// Whether one customer may have that many.
fn within_limit(line: &DraftLine) -> Result<(), Refusal> {
    match line.product.max_per_customer {
        Some(limit) if line.quantity > limit => {
            Err(Refusal::CustomerLimitReached { product_id: line.product.product_id.clone(), limit })
        }
        _ => Ok(()),
    }
}

/// The change of a hold's lines: what it keeps, takes and gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinesChange {
    /// The units to take.
    pub more: Vec<DraftLine>,
    /// The lines whose units are given back: their surplus only.
    pub fewer: Vec<Line>,
    /// The hold as it is afterwards, without the units to take.
    hold: Reservation,
}

impl LinesChange {
    /// The hold as it is afterwards, with the shards that the units of `more` come from.
    pub fn hold(&self, takes: &[Vec<Take>]) -> Reservation {
        let mut hold = self.hold.clone();
        for (more, takes) in self.more.iter().zip(takes) {
            let of_it = |line: &&mut Line| line.product_id == more.product.product_id;
            hold.lines.iter_mut().filter(of_it).for_each(|line| line.add(takes));
        }
        hold
    }
}

/// How to give a hold these lines at `now`, given the `products` that are known; `None` if it has them already.
///
/// A line that is new or grows is sold as it would be by a new reservation, at today's price for all of its units: a line
/// has one price. Whatever stays or shrinks keeps what the hold promised: its price, and that it may be bought.
///
/// # Errors
/// Those of [`draft`].
pub fn change_lines(
    seen: &Reservation,
    wanted: &RequestedLines,
    products: &BTreeMap<ProductId, Product>,
    now: Timestamp,
) -> Result<Option<LinesChange>, Refusal> {
    let drafts = wanted.drafts(products)?;
    if drafts.iter().any(|line| line.product.currency != seen.currency) {
        return Err(Refusal::CurrencyMismatch);
    }
    let held = |id: &ProductId| seen.lines.iter().find(|line| line.product_id == *id);
    let grows = |line: &&DraftLine| held(&line.product.product_id).is_none_or(|held| held.quantity < line.quantity);
    let growing: Vec<&DraftLine> = drafts.iter().filter(grows).collect();
    may_be_sold(&growing, now)?;
    let price = |line: &DraftLine| match held(&line.product.product_id) {
        Some(held) if held.quantity >= line.quantity => held.unit_price_minor,
        _ => line.product.price_minor,
    };
    wanted.compare_prices(drafts.iter().map(price))?;
    growing.iter().copied().try_for_each(within_limit)?;

    let same = |line: &DraftLine| held(&line.product.product_id).is_some_and(|held| held.quantity == line.quantity);
    if drafts.len() == seen.lines.len() && drafts.iter().all(same) {
        return Ok(None);
    }
    let quantity = |id: &ProductId| wanted.0.get(id).map_or(0, |wish| wish.quantity);
    let (mut lines, mut more) = (Vec::with_capacity(drafts.len()), Vec::new());
    for draft in &drafts {
        let DraftLine { product, quantity } = draft;
        let held = held(&product.product_id);
        let kept = held.map(|held| held.kept(*quantity));
        let has = kept.as_ref().map_or(0, |kept| kept.quantity);
        let sold = Line {
            product_id: product.product_id.clone(),
            quantity: has,
            name: product.name.clone(),
            unit_price_minor: price(draft),
            // Whether the units of a hold are counted is decided when it is made.
            limited: kept.as_ref().map_or(product.counts_per_customer, |kept| kept.limited),
            takes: kept.as_ref().map(|kept| kept.takes.clone()).unwrap_or_default(),
            revision: 0,
        };
        lines.push(if has < *quantity { sold } else { kept.unwrap_or(sold) });
        if has < *quantity {
            more.push(DraftLine { product: product.clone(), quantity: quantity - has });
        }
    }
    let revision = seen.revision() + 1;
    lines.iter_mut().for_each(|line| line.revision = revision);
    let fewer = seen.lines.iter().filter_map(|line| line.surplus(quantity(&line.product_id))).collect();
    let late_payment_seconds = drafts.iter().map(|line| line.product.late_payment_seconds);
    let hold = Reservation {
        lines,
        late_payment_seconds: late_payment_seconds.min().unwrap_or_default().min(seen.late_payment_seconds),
        ..seen.clone()
    };
    Ok(Some(LinesChange { more, fewer, hold }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProductStatus;
    use crate::product::tests::product;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn basket(lines: &[(&str, Option<u32>)]) -> Result<Basket, BasketError> {
        priced(&lines.iter().map(|&(id, quantity)| (id, quantity, None)).collect::<Vec<_>>())
    }

    fn priced(lines: &[(&str, Option<u32>, Option<u64>)]) -> Result<Basket, BasketError> {
        let line = |&(id, quantity, unit_price_minor)| RequestedLine {
            product_id: ProductId::try_from(id).unwrap(),
            quantity,
            unit_price_minor,
        };
        let lines = lines.iter().map(line).collect();
        Basket::new(CustomerId::try_from("alice").unwrap(), &IdempotencyKey::try_from("k").unwrap(), lines)
    }

    fn known(products: Vec<Product>) -> BTreeMap<ProductId, Product> {
        products.into_iter().map(|product| (product.product_id.clone(), product)).collect()
    }

    #[test]
    fn lines_of_one_product_are_merged_and_their_order_does_not_matter() {
        let one = basket(&[("b", Some(1)), ("a", Some(2)), ("b", Some(3))]).unwrap();
        let other = basket(&[("a", Some(2)), ("b", Some(4))]).unwrap();
        assert_eq!(one, other);
        assert_ne!(one.fingerprint, basket(&[("a", Some(2)), ("b", Some(5))]).unwrap().fingerprint);
    }

    #[test]
    fn quantities_outside_1_to_1000_are_refused_also_when_merging_hides_or_makes_them() {
        let bad: [&[(&str, Option<u32>)]; 6] = [
            &[("a", Some(0))],
            &[("a", None)],
            &[("a", Some(1_001))],
            &[("a", Some(u32::MAX)), ("a", Some(2))],
            &[("a", Some(0)), ("a", Some(1))],
            &[("a", Some(600)), ("a", Some(600))],
        ];
        for lines in bad {
            assert!(matches!(basket(lines), Err(BasketError::Refused(Refusal::InvalidQuantity { .. }))), "{lines:?}");
        }
        assert!(basket(&[("a", Some(1_000))]).is_ok());
    }

    #[test]
    fn the_price_that_the_customer_saw_is_compared_with_every_products() {
        let price =
            |id, unit_price_minor| CurrentPrice { product_id: ProductId::try_from(id).unwrap(), unit_price_minor };
        let stale = priced(&[("a", Some(1), Some(1)), ("b", Some(1), None), ("c", Some(1), Some(2))]).unwrap();
        let known = known(["a", "b", "c"].map(|id| Product { price_minor: 3, ..product(id) }).into());
        let refused = draft(&stale, &known, NOW);
        assert_eq!(refused, Err(Refusal::PriceChanged { prices: vec![price("a", 3), price("c", 3)] }));
        let right = priced(&[("a", Some(1), Some(3)), ("a", Some(1), None), ("c", Some(1), Some(3))]).unwrap();
        assert!(draft(&right, &known, NOW).is_ok());
        // It does not distinguish two requests.
        let unpriced = basket(&[("a", Some(2)), ("c", Some(1))]).unwrap();
        assert_eq!(right.fingerprint, unpriced.fingerprint);
        let dear = priced(&[("a", Some(1), Some(MAX_PRICE_MINOR + 1))]);
        assert!(matches!(dear, Err(BasketError::Invalid(Invalid { field: "lines", .. }))), "{dear:?}");
        let two = priced(&[("a", Some(1), Some(3)), ("a", Some(1), Some(4))]);
        assert!(matches!(two, Err(BasketError::Invalid(Invalid { field: "lines", .. }))), "{two:?}");
    }

    #[test]
    fn one_to_twenty_lines() {
        assert!(matches!(basket(&[]), Err(BasketError::Invalid(_))));
        let names: Vec<String> = (0..21).map(|n| format!("p{n}")).collect();
        let lines: Vec<_> = names.iter().map(|name| (name.as_str(), Some(1))).collect();
        assert!(matches!(basket(&lines), Err(BasketError::Invalid(_))));
        assert!(basket(&lines[..20]).is_ok());
    }

    #[test]
    fn refusals_come_in_their_documented_order() {
        let ask = priced(&[("a", Some(5), None), ("b", Some(1), Some(7))]).unwrap();
        // All problems at once; then the one with the highest precedence is fixed, until none is left.
        let mut a = Product { max_per_customer: Some(4), ..product("a") };
        a.sale_starts_at = Some(NOW.plus_seconds(1));
        let mut b = Product { status: ProductStatus::Paused, ..product("b") };
        b.currency = Currency::try_from("USD".to_owned()).unwrap();
        let refusal = |products| draft(&ask, &known(products), NOW).unwrap_err().code();

        assert_eq!(refusal(vec![a.clone()]), "product_not_found");
        assert_eq!(refusal(vec![a.clone(), b.clone()]), "currency_mismatch");
        b.currency = a.currency;
        assert_eq!(refusal(vec![a.clone(), b.clone()]), "product_not_on_sale");
        b.status = ProductStatus::OnSale;
        assert_eq!(refusal(vec![a.clone(), b.clone()]), "sale_not_open");
        a.sale_starts_at = None;
        b.price_minor = 8;
        assert_eq!(refusal(vec![a.clone(), b.clone()]), "price_changed");
        b.price_minor = 7;
        assert_eq!(refusal(vec![a.clone(), b.clone()]), "customer_limit_reached");
        a.max_per_customer = Some(5);
        assert!(draft(&ask, &known(vec![a, b]), NOW).is_ok());
    }

    #[test]
    fn the_shortest_hold_applies_to_all_lines() {
        let ask = basket(&[("a", Some(1)), ("b", Some(1))]).unwrap();
        let short = Product { hold_seconds: HoldSeconds::MIN, late_payment_seconds: 60, ..product("b") };
        let made = draft(&ask, &known(vec![product("a"), short]), NOW).unwrap();
        assert_eq!((made.hold_seconds, made.late_payment_seconds), (HoldSeconds::MIN, 60));
        assert_eq!(made.expires_at, NOW.plus_seconds(10));
    }

    #[test]
    fn the_highest_total_is_exact_in_json() {
        let highest = u128::from(MAX_PRICE_MINOR) * u128::from(MAX_QUANTITY) * MAX_LINES as u128;
        assert!(highest < 1 << 53);
    }
}

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

/// What a customer asks for: one line for each product, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basket {
    /// The customer.
    pub customer: CustomerId,
    /// The reservation's id, derived from the customer and their Idempotency-Key.
    pub reservation_id: ReservationId,
    /// A digest of the lines: distinguishes a replay from a reused key.
    pub fingerprint: String,
    lines: BTreeMap<ProductId, Wish>,
}

/// Why a request makes no [`Basket`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BasketError {
    /// It breaks a rule of the request's form.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It is well formed, and refused by name.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Basket {
    /// Merges lines of the same product, since one transaction may not touch an item twice.
    ///
    /// # Errors
    /// [`Invalid`] for no lines or too many, for a price above [`MAX_PRICE_MINOR`], and for two prices of one product; [`Refusal::InvalidQuantity`] for a merged
    /// quantity outside 1 to 1,000.
    pub fn new(
        customer: CustomerId,
        key: &IdempotencyKey,
        lines: Vec<impl Into<RequestedLine>>,
    ) -> Result<Self, BasketError> {
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
        // Without prices: a page that was reloaded and names today's price still finds its order.
        let canonical: Vec<String> =
            merged.iter().map(|(product, wish)| format!("{} {product}", wish.quantity)).collect();
        let fingerprint = digest_id("", &canonical.iter().map(String::as_str).collect::<Vec<_>>());
        let reservation_id = ReservationId::derive(&customer, key);
        Ok(Self { customer, reservation_id, fingerprint, lines: merged })
    }

    /// The products asked for, in the order of their ids.
    pub fn products(&self) -> impl ExactSizeIterator<Item = &ProductId> {
        self.lines.keys()
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
    let mut lines = Vec::with_capacity(basket.lines.len());
    for (product_id, &Wish { quantity, .. }) in &basket.lines {
        let Some(product) = products.get(product_id) else {
            return Err(Refusal::ProductNotFound { product_id: product_id.clone() });
        };
        lines.push(DraftLine { product: product.clone(), quantity });
    }
    let (Some(currency), Some(hold_seconds), Some(late_payment_seconds)) = (
        lines.first().map(|line| line.product.currency),
        lines.iter().map(|line| line.product.hold_seconds).min(),
        lines.iter().map(|line| line.product.late_payment_seconds).min(),
    ) else {
        // Cannot happen: a basket has at least one line.
        return Err(Refusal::ReservationNotFound);
    };
    if lines.iter().any(|line| line.product.currency != currency) {
        return Err(Refusal::CurrencyMismatch);
    }
    let on_sale = |line: &DraftLine| line.product.on_sale(now);
    let paused = lines.iter().map(on_sale).find(|answer| matches!(answer, Err(Refusal::ProductNotOnSale { .. })));
    paused.unwrap_or(Ok(()))?;
    lines.iter().try_for_each(on_sale)?;
    let changed = |(line, wish): (&DraftLine, &Wish)| {
        let DraftLine { product: Product { product_id, price_minor, .. }, .. } = line;
        let seen = wish.unit_price_minor?;
        let price = CurrentPrice { product_id: product_id.clone(), unit_price_minor: *price_minor };
        (seen != *price_minor).then_some(price)
    };
    let prices: Vec<CurrentPrice> = lines.iter().zip(basket.lines.values()).filter_map(changed).collect();
    if !prices.is_empty() {
        return Err(Refusal::PriceChanged { prices });
    }
    for DraftLine { product, quantity } in &lines {
        if let Some(limit) = product.max_per_customer
            && *quantity > limit
        {
            return Err(Refusal::CustomerLimitReached { product_id: product.product_id.clone(), limit });
        }
    }
    let expires_at = now.plus_seconds(hold_seconds.get());
    Ok(Draft { lines, currency, hold_seconds, expires_at, late_payment_seconds })
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

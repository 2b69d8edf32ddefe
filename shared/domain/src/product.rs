//! Products, and the changes that an admin may make.

use iso_currency::Currency as Iso4217;
use serde::{Deserialize, Serialize};

use crate::text::{LINE_RULE, MAX_LINE, is_line};
use crate::{HoldSeconds, Invalid, ProductId, Refusal, Timestamp};

/// The highest price of one unit: 10^11 minor units. Twenty lines of 1,000 units at this price stay below 2^53, so a
/// total is exact in every JSON reader.
pub const MAX_PRICE_MINOR: u64 = 100_000_000_000;
/// The most units that a product may have in total.
pub const MAX_TOTAL: u64 = 1_000_000_000;
/// The most shards of one product: with its product, ledger and idempotency items they fit one DynamoDB transaction
/// (100 actions).
pub const MAX_SHARDS: u32 = 64;
/// How long after a hold's end a payment may still make it an order, unless the product says otherwise: a day.
pub const DEFAULT_LATE_PAYMENT_SECONDS: u32 = 86_400;
/// The longest such time: 30 days, the shortest time that an ended hold is kept.
pub const MAX_LATE_PAYMENT_SECONDS: u32 = 2_592_000;
/// The most shards that a product gets by default.
const DEFAULT_SHARDS: u32 = 16;

/// A currency of ISO 4217 that prices can be in: one with a minor unit, which gold and "no currency" do not have.
///
/// It may have been withdrawn since it was stored. A new product needs one that is in force, see [`Currency::in_force`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency {
    code: Iso4217,
    exponent: u16,
}

impl Currency {
    /// The currency with this code, if it is in force in ISO 4217.
    ///
    /// # Errors
    /// [`Invalid`] for any other code, including withdrawn ones.
    pub fn in_force(code: &str) -> Result<Self, Invalid> {
        Self::find(code).filter(|found| found.is_in_force()).ok_or(Invalid::new(
            "currency",
            "must be the code of a currency that ISO 4217 has in force, such as EUR, and that has a minor unit",
        ))
    }

    /// Every currency that is in force, by code.
    pub fn all_in_force() -> impl Iterator<Item = Self> {
        let letters = || 'A'..='Z';
        let codes = letters().flat_map(move |a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
        codes.filter_map(|code| Self::in_force(&code.iter().collect::<String>()).ok())
    }

    /// The code.
    pub fn as_str(self) -> &'static str {
        self.code.code()
    }

    /// How many decimals an amount has: 2 for EUR (2500 is 25.00), 0 for JPY (2500 is 2500), 3 for KWD (2500 is
    /// 2.500).
    pub const fn exponent(self) -> u16 {
        self.exponent
    }

    fn find(code: &str) -> Option<Self> {
        let code = Iso4217::from_code(code)?;
        Some(Self { code, exponent: code.exponent()? })
    }

    fn is_in_force(self) -> bool {
        // The crate says that VED replaced VES. ISO 4217 has had both since amendment 170, and shops use VES.
        self.code.is_superseded().is_none() || self.code == Iso4217::VES
    }
}

impl TryFrom<String> for Currency {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::find(&text).ok_or(Invalid::new("currency", "must be an ISO 4217 code of a currency with a minor unit"))
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.as_str().to_owned()
    }
}

/// Whether a product may be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductStatus {
    /// Yes, within its sale window.
    OnSale,
    /// No. Existing holds are not affected.
    Paused,
    /// No, and it is not in the public list any more. It keeps its id, its orders and its ledger.
    Archived,
}

/// Where the units of a product are, by the clock: units of an overdue hold are available even before it is released, since
/// a reservation that needs them gets them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stock {
    /// Units that may be reserved.
    pub available: u64,
    /// Units in holds.
    pub reserved: u64,
    /// Units in orders.
    pub sold: u64,
}

/// A product. Its stock lives in its shards; see [`crate::shards`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Its id.
    pub product_id: ProductId,
    /// Its name: 1 to 200 characters, see [`is_line`].
    pub name: String,
    /// The price of one unit, in the currency's minor unit.
    pub price_minor: u64,
    /// The currency.
    pub currency: Currency,
    /// All units: free, held and sold together.
    pub total: u64,
    /// The number of shards of its stock. Set once.
    pub shards: u32,
    /// How long a hold lasts.
    pub hold_seconds: HoldSeconds,
    /// How many seconds after a hold's end a payment may still make it an order, if the units are free.
    #[serde(default = "default_late_payment_seconds")]
    pub late_payment_seconds: u32,
    /// The most units that one customer may hold and own in total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_customer: Option<u32>,
    /// Whether each customer's units are counted, even without a limit: a limit that is set later then includes what was
    /// bought before. Set once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub counts_per_customer: bool,
    /// The start of the sale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale_starts_at: Option<Timestamp>,
    /// The end of the sale: from this moment on it cannot be reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale_ends_at: Option<Timestamp>,
    /// Whether it may be reserved.
    pub status: ProductStatus,
    /// Raised by every change of anything but `total`. Starts at 1.
    pub version: u64,
}

/// An admin's change of a product. `None` leaves a field as it is; `Some(None)` removes an optional field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProductChange {
    /// See [`Product::name`].
    pub name: Option<String>,
    /// See [`Product::price_minor`].
    pub price_minor: Option<u64>,
    /// See [`Product::hold_seconds`].
    pub hold_seconds: Option<HoldSeconds>,
    /// See [`Product::late_payment_seconds`].
    pub late_payment_seconds: Option<u32>,
    /// See [`Product::max_per_customer`].
    pub max_per_customer: Option<Option<u32>>,
    /// See [`Product::sale_starts_at`].
    pub sale_starts_at: Option<Option<Timestamp>>,
    /// See [`Product::sale_ends_at`].
    pub sale_ends_at: Option<Option<Timestamp>>,
    /// See [`Product::status`].
    pub status: Option<ProductStatus>,
}

fn default_late_payment_seconds() -> u32 {
    DEFAULT_LATE_PAYMENT_SECONDS
}

impl Product {
    /// The default number of shards: 16, but at most half the units and at least 1. With more shards than units most would
    /// be empty, and each sale of the last units would have to read all of them.
    pub fn default_shards(total: u64) -> u32 {
        u32::try_from(total / 2).unwrap_or(DEFAULT_SHARDS).clamp(1, DEFAULT_SHARDS)
    }

    /// The product itself, if every field is within its limits.
    ///
    /// # Errors
    /// [`Invalid`] for the first field that is not.
    pub fn checked(self) -> Result<Self, Invalid> {
        if !is_line(&self.name, MAX_LINE) {
            return Err(Invalid::new("name", LINE_RULE));
        }
        if self.price_minor > MAX_PRICE_MINOR {
            return Err(Invalid::new("price_minor", "must be a whole number from 0 to 100000000000"));
        }
        if self.total > MAX_TOTAL {
            return Err(Invalid::new("total", "must be a whole number from 0 to 1000000000"));
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return Err(Invalid::new("shards", "must be a whole number from 1 to 64"));
        }
        if self.late_payment_seconds > MAX_LATE_PAYMENT_SECONDS {
            return Err(Invalid::new("late_payment_seconds", "must be a whole number from 0 to 2592000"));
        }
        if self.max_per_customer == Some(0) {
            return Err(Invalid::new("max_per_customer", "must be a whole number from 1, or absent"));
        }
        if self.max_per_customer.is_some() && !self.counts_per_customer {
            return Err(Invalid::new(
                "max_per_customer",
                "must be null: this product was created without counting each customer's units",
            ));
        }
        if let (Some(starts), Some(ends)) = (self.sale_starts_at, self.sale_ends_at)
            && starts >= ends
        {
            return Err(Invalid::new("sale_ends_at", "must be later than sale_starts_at"));
        }
        Ok(self)
    }

    /// The product after `change`, one version on.
    ///
    /// # Errors
    /// [`Invalid`] where the change would break a limit.
    pub fn changed(&self, change: ProductChange) -> Result<Self, Invalid> {
        Self {
            name: change.name.unwrap_or_else(|| self.name.clone()),
            price_minor: change.price_minor.unwrap_or(self.price_minor),
            hold_seconds: change.hold_seconds.unwrap_or(self.hold_seconds),
            late_payment_seconds: change.late_payment_seconds.unwrap_or(self.late_payment_seconds),
            max_per_customer: change.max_per_customer.unwrap_or(self.max_per_customer),
            sale_starts_at: change.sale_starts_at.unwrap_or(self.sale_starts_at),
            sale_ends_at: change.sale_ends_at.unwrap_or(self.sale_ends_at),
            status: change.status.unwrap_or(self.status),
            version: self.version + 1,
            ..self.clone()
        }
        .checked()
    }

    /// Whether a page may count down to the start or the end of its sale at `now`.
    pub fn counts_down(&self, now: Timestamp) -> bool {
        [self.sale_starts_at, self.sale_ends_at].into_iter().flatten().any(|at| now < at)
    }

    /// Whether the product may be reserved at `now`.
    ///
    /// # Errors
    /// [`Refusal::ProductNotOnSale`] or [`Refusal::SaleNotOpen`].
    pub fn on_sale(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.status {
            ProductStatus::Paused | ProductStatus::Archived => {
                return Err(Refusal::ProductNotOnSale { product_id: self.product_id.clone() });
            }
            ProductStatus::OnSale => {}
        }
        let opens_at = self.sale_starts_at.filter(|&starts| now < starts);
        let over = self.sale_ends_at.is_some_and(|ends| now >= ends);
        if opens_at.is_some() || over {
            return Err(Refusal::SaleNotOpen { product_id: self.product_id.clone(), opens_at, now });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn product(id: &str) -> Product {
        Product {
            product_id: ProductId::try_from(id).unwrap(),
            name: format!("Product {id}"),
            price_minor: 2_500,
            currency: Currency::try_from("EUR".to_owned()).unwrap(),
            total: 100,
            shards: 4,
            hold_seconds: HoldSeconds::DEFAULT,
            late_payment_seconds: DEFAULT_LATE_PAYMENT_SECONDS,
            max_per_customer: None,
            counts_per_customer: true,
            sale_starts_at: None,
            sale_ends_at: None,
            status: ProductStatus::OnSale,
            version: 1,
        }
    }

    /// ISO 4217's list one, without what has no minor unit (precious metals, units of account, XTS, XXX), by decimals.
    const IN_FORCE: [(u16, &str); 4] = [
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
        (
            2,
            "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF \
             CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL \
             HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU \
             MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR \
             SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED \
             VES WST XAD XCD XCG YER ZAR ZMW ZWG",
        ),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    ];

    #[test]
    fn a_new_price_is_in_a_currency_that_iso_4217_has_in_force() {
        let mut wanted: Vec<(&str, u16)> =
            IN_FORCE.iter().flat_map(|&(exponent, codes)| codes.split(' ').map(move |code| (code, exponent))).collect();
        wanted.sort_unstable();
        let found: Vec<_> = Currency::all_in_force().map(|found| (found.as_str(), found.exponent())).collect();
        assert_eq!(found, wanted);
        for code in ["XYZ", "XAU", "XXX", "XTS", "XDR", "HRK", "BGN", "DEM", "eur", "EU", "EURO", "EUR ", "", "ЕUR"] {
            assert_eq!(Currency::in_force(code).unwrap_err().field, "currency", "{code}");
        }
    }

    /// Or nobody could read their orders from the day on which the code was withdrawn.
    #[test]
    fn a_stored_price_in_a_withdrawn_currency_can_be_read() {
        let stored = Currency::try_from("HRK".to_owned()).unwrap();
        assert_eq!((String::from(stored).as_str(), stored.exponent()), ("HRK", 2));
        for code in ["XYZ", "XAU", "XXX", "eur", ""] {
            assert_eq!(Currency::try_from(code.to_owned()).unwrap_err().field, "currency", "{code}");
        }
    }

    #[test]
    fn shards_by_default_are_at_most_half_the_units_and_at_least_one() {
        for (total, shards) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (31, 15), (32, 16), (33, 16), (u64::MAX, 16)] {
            assert_eq!(Product::default_shards(total), shards, "{total}");
        }
    }

    #[test]
    fn a_product_past_any_limit_is_refused_by_the_name_of_the_field() {
        let at = |millis| Some(Timestamp::from_millis(millis));
        type Spoil = fn(&mut Product);
        let cases: [(&str, Spoil); 13] = [
            ("name", |p| p.name = String::new()),
            ("name", |p| p.name = "   ".to_owned()),
            ("name", |p| p.name = "\u{3000}\u{200b}".to_owned()),
            ("name", |p| p.name = "x".repeat(201)),
            ("name", |p| p.name = "a\u{0}b".to_owned()),
            ("price_minor", |p| p.price_minor = MAX_PRICE_MINOR + 1),
            ("total", |p| p.total = MAX_TOTAL + 1),
            ("shards", |p| p.shards = 0),
            ("shards", |p| p.shards = MAX_SHARDS + 1),
            ("max_per_customer", |p| p.max_per_customer = Some(0)),
            ("price_minor", |p| p.price_minor = u64::MAX),
            ("late_payment_seconds", |p| p.late_payment_seconds = MAX_LATE_PAYMENT_SECONDS + 1),
            ("max_per_customer", |p| (p.counts_per_customer, p.max_per_customer) = (false, Some(1))),
        ];
        for (field, spoil) in cases {
            let mut spoiled = product("a");
            spoil(&mut spoiled);
            assert_eq!(spoiled.checked().unwrap_err().field, field);
        }
        let mut window = product("a");
        (window.sale_starts_at, window.sale_ends_at) = (at(5), at(5));
        assert_eq!(window.checked().unwrap_err().field, "sale_ends_at");
        let limits = Product { price_minor: MAX_PRICE_MINOR, total: MAX_TOTAL, shards: MAX_SHARDS, ..product("a") };
        // Characters, not bytes.
        assert!(Product { name: "é".repeat(200), ..limits }.checked().is_ok());
    }

    #[test]
    fn a_sale_is_open_from_its_start_until_before_its_end() {
        let mut windowed = product("a");
        windowed.sale_starts_at = Some(Timestamp::from_millis(1_000));
        windowed.sale_ends_at = Some(Timestamp::from_millis(2_000));
        let opens = |now| windowed.on_sale(Timestamp::from_millis(now));
        assert!(matches!(opens(999), Err(Refusal::SaleNotOpen { opens_at: Some(_), .. })));
        assert!(opens(1_000).is_ok());
        assert!(opens(1_999).is_ok());
        assert!(matches!(opens(2_000), Err(Refusal::SaleNotOpen { opens_at: None, .. })));
        windowed.status = ProductStatus::Archived;
        assert!(matches!(windowed.on_sale(Timestamp::from_millis(1_500)), Err(Refusal::ProductNotOnSale { .. })));
        windowed.status = ProductStatus::Paused;
        assert!(matches!(opens_paused(&windowed), Err(Refusal::ProductNotOnSale { .. })));
    }

    fn opens_paused(product: &Product) -> Result<(), Refusal> {
        product.on_sale(Timestamp::from_millis(1_500))
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_raises_the_version() {
        let before = Product { max_per_customer: Some(2), ..product("a") };
        let after = before.changed(ProductChange { price_minor: Some(1), ..ProductChange::default() }).unwrap();
        assert_eq!(after, Product { price_minor: 1, version: 2, ..before.clone() });
        let without =
            before.changed(ProductChange { max_per_customer: Some(None), ..ProductChange::default() }).unwrap();
        assert_eq!(without.max_per_customer, None);
    }

    #[test]
    fn a_change_sets_every_field_that_it_names() {
        let (starts, ends) = (Timestamp::from_millis(5), Timestamp::from_millis(6));
        let before = product("a");
        let after = before.changed(ProductChange {
            name: Some("Other".to_owned()),
            price_minor: Some(1),
            hold_seconds: Some(HoldSeconds::MIN),
            late_payment_seconds: Some(0),
            max_per_customer: Some(Some(3)),
            sale_starts_at: Some(Some(starts)),
            sale_ends_at: Some(Some(ends)),
            status: Some(ProductStatus::Paused),
        });
        let wanted = Product {
            name: "Other".to_owned(),
            price_minor: 1,
            hold_seconds: HoldSeconds::MIN,
            late_payment_seconds: 0,
            max_per_customer: Some(3),
            sale_starts_at: Some(starts),
            sale_ends_at: Some(ends),
            status: ProductStatus::Paused,
            version: 2,
            ..before
        };
        assert_eq!(after, Ok(wanted));
    }
}

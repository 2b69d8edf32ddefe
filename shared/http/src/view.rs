//! What callers see: domain values as the JSON of the contract.

use holdfast_domain::{Currency, CustomerId, Product, ProductStatus, Reservation, Status, Timestamp};
use holdfast_store::{Page, Stock};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time as RFC 3339 in UTC, with milliseconds where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiTime(pub Timestamp);

impl Serialize for ApiTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = i128::from(self.0.as_millis()) * 1_000_000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(S::Error::custom)?;
        serializer.serialize_str(&at.format(&Rfc3339).map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for ApiTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at =
            OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| D::Error::custom("must be a time as in RFC 3339"))?;
        let millis = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(D::Error::custom)?;
        Ok(Self(Timestamp::from_millis(millis)))
    }
}

/// A page of a list.
#[derive(Debug, Serialize)]
pub struct List<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The page, each item as `view` shows it.
    pub fn of<U>(page: Page<U>, view: impl FnMut(U) -> T) -> Self {
        let next_cursor = page.next.map(|cursor| cursor.encode());
        Self { items: page.items.into_iter().map(view).collect(), next_cursor }
    }
}

/// A reservation as its owner sees it.
#[derive(Debug, Serialize)]
pub struct ReservationView {
    reservation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<CustomerId>,
    status: Status,
    lines: Vec<LineView>,
    total_price_minor: u64,
    currency: Currency,
    created_at: ApiTime,
    expires_at: ApiTime,
    expires_in_seconds: i64,
    server_time: ApiTime,
    confirmed_at: Option<ApiTime>,
    confirmed_late: bool,
    payment_reference: Option<String>,
}

#[derive(Debug, Serialize)]
struct LineView {
    product_id: String,
    quantity: u32,
    name: String,
    unit_price_minor: u64,
}

impl ReservationView {
    /// The reservation at `now`. A hold whose time is over shows as expired, also where nobody has released it yet.
    pub fn new(reservation: Reservation, now: Timestamp) -> Self {
        let status = reservation.status_at(now);
        let total_price_minor = reservation.total_price_minor();
        let expires_in_seconds = if status == Status::Held { reservation.expires_at.seconds_since(now) } else { 0 };
        let lines = reservation.lines.into_iter().map(|line| LineView {
            product_id: line.product_id.into(),
            quantity: line.quantity,
            name: line.name,
            unit_price_minor: line.unit_price_minor,
        });
        Self {
            reservation_id: reservation.reservation_id.into(),
            customer_id: None,
            status,
            lines: lines.collect(),
            total_price_minor,
            currency: reservation.currency,
            created_at: ApiTime(reservation.created_at),
            expires_at: ApiTime(reservation.expires_at),
            expires_in_seconds,
            server_time: ApiTime(now),
            confirmed_at: reservation.confirmed_at.map(ApiTime),
            confirmed_late: reservation.confirmed_late,
            payment_reference: reservation.payment_reference.map(String::from),
        }
    }

    /// The same with its owner: for an admin.
    pub fn for_admin(reservation: Reservation, now: Timestamp) -> Self {
        let customer_id = Some(reservation.customer.clone());
        Self { customer_id, ..Self::new(reservation, now) }
    }
}

/// A product as everybody sees it.
#[derive(Debug, Serialize)]
pub struct ProductView {
    product_id: String,
    name: String,
    price_minor: u64,
    currency: Currency,
    total: u64,
    available: u64,
    reserved: u64,
    sold: u64,
    status: ProductStatus,
    hold_seconds: u32,
    max_per_customer: Option<u32>,
    sale_starts_at: Option<ApiTime>,
    sale_ends_at: Option<ApiTime>,
    shards: u32,
    version: u64,
}

impl ProductView {
    /// The product and where its units are.
    pub fn new(product: Product, stock: Stock) -> Self {
        Self {
            product_id: product.product_id.into(),
            name: product.name,
            price_minor: product.price_minor,
            currency: product.currency,
            total: product.total,
            available: stock.available,
            reserved: stock.reserved,
            sold: stock.sold,
            status: product.status,
            hold_seconds: product.hold_seconds.into(),
            max_per_customer: product.max_per_customer,
            sale_starts_at: product.sale_starts_at.map(ApiTime),
            sale_ends_at: product.sale_ends_at.map(ApiTime),
            shards: product.shards,
            version: product.version,
        }
    }
}

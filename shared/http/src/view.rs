//! Domain values as the JSON of the API.

use holdfast_domain::{Currency, CustomerId, Product, ProductStatus, Reservation, Status, Stock, Timestamp};
use holdfast_store::{Counted, LastAudit, Page, Shown};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use utoipa::ToSchema;

use crate::schema;

/// The format of every time in a response. All have the same length, so they sort as strings.
const SHOWN: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A point in time in RFC 3339. Input may have any offset; output is in UTC with three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiTime(pub Timestamp);

impl Serialize for ApiTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = i128::from(self.0.as_millis()) * 1_000_000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(S::Error::custom)?;
        if !(0..=9_999).contains(&at.year()) {
            return Err(S::Error::custom("a time outside the years 0 to 9999"));
        }
        serializer.serialize_str(&at.format(SHOWN).map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for ApiTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at =
            OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| D::Error::custom("must be a time as in RFC 3339"))?;
        // An offset can move the year out of 0 to 9999; such a time could be stored and never be formatted.
        if !at.checked_to_offset(UtcOffset::UTC).is_some_and(|utc| (0..=9_999).contains(&utc.year())) {
            return Err(D::Error::custom("must be a time in the years 0 to 9999, UTC"));
        }
        let millis = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(D::Error::custom)?;
        Ok(Self(Timestamp::from_millis(millis)))
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Page)]
pub struct List<T> {
    /// Can be fewer than `limit`, or none, even if there are more pages.
    items: Vec<T>,
    /// The `cursor` of the next page. Null: this is the last page.
    #[schema(value_type = Option<schema::Cursor>, required)]
    next_cursor: Option<String>,
}

impl<T> List<T> {
    /// Converts each item of the page by `view`.
    pub fn of<U>(page: Page<U>, view: impl FnMut(U) -> T) -> Self {
        let next_cursor = page.next.map(|cursor| cursor.encode());
        Self { items: page.items.into_iter().map(view).collect(), next_cursor }
    }
}

/// A reservation, and the order that it becomes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Reservation, examples(json!({
    "reservation_id": "rsv_iqd4x2fixzovcounckk76u2lodwabrd3r4lpf2wo5qx36yxf56sa", "status": "held",
    "lines": [{"product_id": "tee-black", "quantity": 2, "name": "Black tee", "unit_price_minor": 2_500}],
    "total_price_minor": 5_000, "currency": "EUR", "currency_exponent": 2, "created_at": "2026-11-21T07:06:40.428Z",
    "expires_at": "2026-11-21T07:16:40.428Z", "expires_in_seconds": 600, "server_time": "2026-11-21T07:06:40.428Z",
    "confirmed_at": null, "confirmed_late": false, "payment_reference": null, "cancelled_at": null,
    "cancel_reason": null, "restocked": null,
})))]
pub struct ReservationView {
    #[schema(value_type = schema::ReservationId)]
    reservation_id: String,
    /// The customer. Only in responses to admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schema::CustomerId, required = false)]
    customer_id: Option<CustomerId>,
    #[schema(value_type = schema::ReservationStatus)]
    status: Status,
    /// One line per product.
    #[schema(min_items = 1, max_items = 20)]
    lines: Vec<LineView>,
    /// Total price of all lines, in the currency's minor unit.
    #[schema(maximum = 2_000_000_000_000_000_i64)]
    total_price_minor: u64,
    #[schema(value_type = schema::Currency)]
    currency: Currency,
    #[schema(value_type = schema::CurrencyExponent)]
    currency_exponent: u16,
    #[schema(value_type = schema::Time)]
    created_at: ApiTime,
    /// When the hold expires. From then on it cannot be confirmed without a payment; a confirmation that was queued before
    /// (202) still can be carried out.
    #[schema(value_type = schema::Time)]
    expires_at: ApiTime,
    /// Seconds until `expires_at` by the server's clock, for a countdown. 0 unless `held`.
    #[schema(minimum = 0)]
    expires_in_seconds: i64,
    /// The server's time of this response.
    #[schema(value_type = schema::Time)]
    server_time: ApiTime,
    #[schema(value_type = Option<schema::Time>, required)]
    confirmed_at: Option<ApiTime>,
    /// Whether it was confirmed after the hold had expired, because enough units were available.
    confirmed_late: bool,
    /// The payment that confirmed it.
    #[schema(value_type = Option<schema::PaymentReference>, required)]
    payment_reference: Option<String>,
    /// When an order was cancelled (its payment must be refunded), or a hold was cancelled by its customer or released by an
    /// admin.
    #[schema(value_type = Option<schema::Time>, required)]
    cancelled_at: Option<ApiTime>,
    /// The length of the hold that was asked for, in seconds: `expires_at` is later if it was extended. Only in responses to
    /// admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schema::Seconds, required = false)]
    hold_seconds: Option<u32>,
    /// Number of changes of its lines or its customer. Only in responses to admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u32, required = false)]
    revision: Option<u32>,
    /// Who cancelled it: `customer`, or the `sub` of an admin or a service. Only in responses to admins, and only if it is
    /// cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    cancelled_by: Option<String>,
    /// Why, if it was not its customer.
    #[schema(value_type = Option<schema::FreeText>, required)]
    cancel_reason: Option<String>,
    /// Whether the units are on sale again. If not, they left the stock.
    restocked: Option<bool>,
}

/// A line of a reservation, with the product's name and price at the time of the reservation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReservationLine)]
struct LineView {
    #[schema(value_type = schema::ProductId)]
    product_id: String,
    #[schema(minimum = 1, maximum = 1_000)]
    quantity: u32,
    #[schema(value_type = schema::Name)]
    name: String,
    #[schema(value_type = schema::Price)]
    unit_price_minor: u64,
}

impl ReservationView {
    /// The reservation at `now`. A hold past its end is shown as expired, even if it has not been released yet.
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
            currency_exponent: reservation.currency.exponent(),
            created_at: ApiTime(reservation.created_at),
            expires_at: ApiTime(reservation.expires_at),
            expires_in_seconds,
            server_time: ApiTime(now),
            confirmed_at: reservation.confirmed_at.map(ApiTime),
            confirmed_late: reservation.confirmed_late,
            payment_reference: reservation.payment_reference.map(String::from),
            cancelled_at: reservation.cancellation.as_ref().map(|by| by.at).or(reservation.cancelled_at).map(ApiTime),
            hold_seconds: None,
            revision: None,
            cancelled_by: None,
            restocked: reservation.cancellation.as_ref().map(|cancellation| cancellation.restocked),
            cancel_reason: reservation.cancellation.map(|cancellation| cancellation.reason),
        }
    }

    /// The reservation with its customer.
    pub fn for_admin(reservation: Reservation, now: Timestamp) -> Self {
        let customer_id = Some(reservation.customer.clone());
        let by = reservation.cancellation.as_ref().map_or("customer", |cancellation| &cancellation.by);
        let cancelled_by = (reservation.status == Status::Cancelled).then(|| by.to_owned());
        let (hold_seconds, revision) = (Some(u32::from(reservation.hold_seconds)), Some(reservation.revision()));
        Self { customer_id, hold_seconds, revision, cancelled_by, ..Self::new(reservation, now) }
    }
}

/// A product with its stock.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Product, examples(json!({
    "product_id": "tee-black", "name": "Black tee", "price_minor": 2_500, "currency": "EUR",
    "currency_exponent": 2, "total": 3, "available": 3, "reserved": 0, "sold": 0, "status": "on_sale", "hold_seconds": 600, "late_payment_seconds": 86_400,
    "max_per_customer": 10, "counts_per_customer": true, "sale_starts_at": null, "sale_ends_at": null, "shards": 1, "version": 1,
    "server_time": "2026-11-21T07:06:40.334Z", "stock_at": "2026-11-21T07:06:39.902Z", "reserved_at": "2026-11-21T07:06:39.902Z",
})))]
pub struct ProductView {
    #[schema(value_type = schema::ProductId)]
    product_id: String,
    #[schema(value_type = schema::Name)]
    name: String,
    #[schema(value_type = schema::Price)]
    price_minor: u64,
    #[schema(value_type = schema::Currency)]
    currency: Currency,
    #[schema(value_type = schema::CurrencyExponent)]
    currency_exponent: u16,
    #[schema(value_type = schema::Total)]
    total: u64,
    /// Units that can be reserved.
    available: u64,
    /// Units in holds. Eventually consistent.
    reserved: u64,
    /// Units in orders: the rest.
    sold: u64,
    #[schema(value_type = schema::ProductStatus)]
    status: ProductStatus,
    /// Length of a hold, in seconds. A reservation of several products uses the shortest.
    #[schema(value_type = schema::Seconds)]
    hold_seconds: u32,
    #[schema(value_type = schema::LatePaymentSeconds)]
    late_payment_seconds: u32,
    /// Maximum number of units that one customer may hold and own, including those from before the limit was set. Null:
    /// no limit.
    #[schema(required, format = Int64, minimum = 1, maximum = 4_294_967_295_i64)]
    max_per_customer: Option<u32>,
    /// Whether each customer's units are counted, so that a limit can be set. Cannot be changed: false if the product was
    /// created with `"max_per_customer": null`.
    counts_per_customer: bool,
    /// Start of the sale. Null: no start.
    #[schema(value_type = Option<schema::Time>, required)]
    sale_starts_at: Option<ApiTime>,
    /// End of the sale (exclusive). Null: no end.
    #[schema(value_type = Option<schema::Time>, required)]
    sale_ends_at: Option<ApiTime>,
    #[schema(value_type = schema::Shards)]
    shards: u32,
    /// Increases with every change of the product, except of `total`.
    #[schema(minimum = 1)]
    version: u64,
    /// The server's time of this response, for a countdown to the sale. Part of the `ETag` only while the start or the end
    /// of the sale is to come.
    #[schema(value_type = schema::Time)]
    server_time: ApiTime,
    /// When the `available` units, and on public routes the product, were read. On routes for admins only with tens of thousands of
    /// holds, since fewer are counted at once. Not part of the `ETag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schema::Time, required = false)]
    stock_at: Option<ApiTime>,
    /// When the units in holds (`reserved`) were counted: with thousands of holds, minutes ago. `sold` is what is left of
    /// `total`, and so just as old. On routes for admins only with `stock_at`. Not part of the `ETag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schema::Time, required = false)]
    reserved_at: Option<ApiTime>,
    /// The last audit that was certain. Only in the list for admins, and only if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    last_audit: Option<LastAuditView>,
}

/// The last audit of a product's books that was certain: it found drift, or nothing while no units moved.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LastAudit)]
struct LastAuditView {
    /// When it began.
    #[schema(value_type = schema::Time)]
    audited_at: ApiTime,
    /// The `sub` of the admin or auditor.
    actor: String,
    /// Whether the books agreed.
    consistent: bool,
}

impl From<LastAudit> for LastAuditView {
    fn from(LastAudit { audited_at, actor, consistent, .. }: LastAudit) -> Self {
        Self { audited_at: ApiTime(audited_at), actor, consistent }
    }
}

impl ProductView {
    /// The same with its last audit.
    #[must_use]
    pub fn with_last_audit(self, last: Option<LastAudit>) -> Self {
        Self { last_audit: last.map(LastAuditView::from), ..self }
    }

    /// What the catalogue shows of a product, at `now`.
    pub fn shown(Shown { product, stock, stock_at, reserved_at }: Shown, now: Timestamp) -> Self {
        Self::counted(product, Counted { stock, as_of: Some((stock_at, reserved_at)) }, now)
    }

    /// The product with its stock, at `now`, and how old that is if it is not from now.
    pub fn counted(product: Product, Counted { stock, as_of }: Counted, now: Timestamp) -> Self {
        let (stock_at, reserved_at) = as_of.map(|(stock, reserved)| (ApiTime(stock), ApiTime(reserved))).unzip();
        Self { stock_at, reserved_at, ..Self::new(product, stock, now) }
    }

    /// The product with its stock, at `now`.
    pub fn new(product: Product, stock: Stock, now: Timestamp) -> Self {
        Self {
            product_id: product.product_id.into(),
            name: product.name,
            price_minor: product.price_minor,
            currency: product.currency,
            currency_exponent: product.currency.exponent(),
            total: product.total,
            available: stock.available,
            reserved: stock.reserved,
            sold: stock.sold,
            status: product.status,
            hold_seconds: product.hold_seconds.into(),
            late_payment_seconds: product.late_payment_seconds,
            max_per_customer: product.max_per_customer,
            counts_per_customer: product.counts_per_customer,
            sale_starts_at: product.sale_starts_at.map(ApiTime),
            sale_ends_at: product.sale_ends_at.map(ApiTime),
            shards: product.shards,
            version: product.version,
            server_time: ApiTime(now),
            stock_at: None,
            reserved_at: None,
            last_audit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_time_that_is_accepted_can_be_formatted() {
        let taken = |text: &str| serde_json::from_value::<ApiTime>(json!(text)).ok();
        for (text, shown) in [
            ("9999-12-31T23:59:59.999Z", Some("9999-12-31T23:59:59.999Z")),
            ("9999-12-31T23:59:59+00:01", Some("9999-12-31T23:58:59.000Z")),
            ("2026-11-21T07:06:41.06Z", Some("2026-11-21T07:06:41.060Z")),
            ("2026-11-21t07:06:41.9999+01:00", Some("2026-11-21T06:06:41.999Z")),
            ("1969-12-31T23:59:59.5Z", Some("1969-12-31T23:59:59.500Z")),
            ("9999-12-31T23:59:59-00:01", None),
            ("0000-01-01T00:00:00Z", Some("0000-01-01T00:00:00.000Z")),
            ("0000-01-01T00:00:00+00:01", None),
        ] {
            let time = taken(text).map(|time| serde_json::to_value(time).unwrap());
            assert_eq!(time, shown.map(|shown| json!(shown)), "{text}");
        }
    }
}

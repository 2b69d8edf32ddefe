//! The cases: which products there are, and what is asked.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Method, header};
use holdfast_domain::{CustomerId, HoldSeconds, IdempotencyKey, Product, ReservationId};
use holdfast_testkit::fixtures;
use hyper::body::Bytes;
use serde_json::json;

use crate::Result;
use crate::load::{Call, Script};

/// The units of a herd's product, unless another number is given.
pub(crate) const HERD_UNITS: u64 = 100;
/// The holds that are open while the catalogue is read, and the number of products that they are of.
const CATALOGUE_HOLDS: usize = 20_000;
const CATALOGUE_PRODUCTS: usize = 10;
/// The limit of each customer, and how many reservations of one unit each of them asks for.
const LIMIT: u32 = 2;
const REQUESTS_OF_A_CUSTOMER: usize = 4;
/// The lines of a basket.
const BASKET_LINES: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// One product of 100 units: the rest is refused
    Herd,
    /// One product with a unit for every request
    Plenty,
    /// Three lines of three products
    Basket,
    /// Four reservations of each customer, of a product with a limit of two
    Limit,
    /// Confirms holds that were made before
    Confirm,
    /// Reserves, then confirms 60 %, cancels 20 % and lets 20 % expire after 10 s, with a sweep every second
    Life,
    /// GET /products while 20,000 holds are open
    Catalogue,
}

impl Case {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Herd => "herd",
            Self::Plenty => "plenty",
            Self::Basket => "basket",
            Self::Limit => "limit",
            Self::Confirm => "confirm",
            Self::Life => "life",
            Self::Catalogue => "catalogue",
        }
    }
}

/// Who sends the requests.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Each customer, with a token that the authorizer has verified; and the shop, where only it may.
    Verified,
    /// The shop's back end with this token, for all customers.
    Service(String),
}

/// One run of a case.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) case: Case,
    /// In all ids of the run, so that a run on a table in use is one of its own.
    pub(crate) run: String,
    pub(crate) requests: usize,
    /// The units of `herd` and `plenty`. In the other cases there is one for each request.
    pub(crate) units: u64,
    pub(crate) caller: Caller,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Phase {
    /// Reserves another product, so that all connections are open, also those to AWS.
    WarmUp,
    /// Makes the holds that the case needs. Not measured.
    Prepare,
    /// What is measured.
    Measure,
}

impl Plan {
    /// The products, the one of the warm-up last. A product counts its customers' units only for `limit`.
    pub(crate) fn products(&self) -> Vec<Product> {
        let one = |units: u64| vec![self.product("product", units)];
        let every = self.requests as u64;
        let mut products = match self.case {
            Case::Herd | Case::Plenty => one(self.units),
            Case::Confirm => one(every),
            Case::Basket => self.basket().map(|name| self.product(&name, every)).collect(),
            Case::Limit => one(every).into_iter().map(|product| fixtures::limited(product, LIMIT)).collect(),
            Case::Life => {
                one(every).into_iter().map(|product| Product { hold_seconds: HoldSeconds::MIN, ..product }).collect()
            }
            Case::Catalogue => {
                let units = (CATALOGUE_HOLDS / CATALOGUE_PRODUCTS) as u64;
                (0..CATALOGUE_PRODUCTS).map(|n| self.product(&format!("product-{n}"), units)).collect()
            }
        };
        products.push(self.product("warm-up", 1_000_000));
        products
    }

    /// The number of requests before what is measured.
    pub(crate) fn prepared(&self) -> usize {
        match self.case {
            Case::Confirm => self.requests,
            Case::Catalogue => CATALOGUE_HOLDS,
            _ => 0,
        }
    }

    /// The script of a phase.
    pub(crate) fn script(self: &Arc<Self>, phase: Phase) -> Arc<dyn Script> {
        Arc::new(Phased { plan: self.clone(), phase })
    }

    fn product(&self, name: &str, units: u64) -> Product {
        fixtures::product(&self.id(name), units, Product::default_shards(units))
    }

    fn id(&self, name: &str) -> String {
        format!("bench-{}-{name}", self.run)
    }

    fn basket(&self) -> impl Iterator<Item = String> {
        (0..BASKET_LINES).map(|n| format!("product-{n}"))
    }

    fn customer(&self, number: usize) -> String {
        let customer = if self.case == Case::Limit { number / REQUESTS_OF_A_CUSTOMER } else { number };
        format!("customer-{}-{customer}", self.run)
    }

    fn key(&self, number: usize) -> String {
        format!("key-{}-{number}", self.run)
    }

    fn reservation(&self, number: usize) -> Result<ReservationId> {
        let (customer, key) =
            (CustomerId::try_from(self.customer(number))?, IdempotencyKey::try_from(self.key(number))?);
        Ok(ReservationId::derive(&customer, &key))
    }

    fn reserve(&self, number: usize, key: &str, products: impl Iterator<Item = String>) -> Result<Call> {
        let line = |name: String| json!({ "product_id": self.id(&name), "quantity": 1 });
        let mut body = json!({ "lines": products.map(line).collect::<Vec<_>>() });
        let customer = self.customer(number);
        if let Caller::Service(_) = self.caller {
            body["customer_id"] = customer.clone().into();
        }
        let mut headers = self.headers(&customer)?;
        headers.push((HeaderName::from_static("idempotency-key"), key.try_into()?));
        Ok(Call { method: Method::POST, path: "/reservations".to_owned(), headers, body: bytes(&body) })
    }

    fn confirm(&self, number: usize) -> Result<Call> {
        let path = format!("/reservations/{}/confirm", self.reservation(number)?);
        let (payment, customer) = (format!("payment-{}-{number}", self.run), self.customer(number));
        let body = json!({ "payment_reference": payment, "customer_id": customer });
        Ok(Call { method: Method::POST, path, headers: self.headers("shop service")?, body: bytes(&body) })
    }

    fn cancel(&self, number: usize) -> Result<Call> {
        let customer = self.customer(number);
        let named = match self.caller {
            Caller::Verified => String::new(),
            Caller::Service(_) => format!("?customer_id={customer}"),
        };
        let path = format!("/reservations/{}{named}", self.reservation(number)?);
        Ok(Call { method: Method::DELETE, path, headers: self.headers(&customer)?, body: Bytes::new() })
    }

    /// The headers of a request by `who`: a customer, or the shop.
    fn headers(&self, who: &str) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let token = match &self.caller {
            Caller::Verified => who,
            Caller::Service(token) => token,
        };
        let authorization = HeaderValue::try_from(format!("Bearer {token}"))?;
        Ok(vec![
            (header::AUTHORIZATION, authorization),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ])
    }
}

fn bytes(body: &serde_json::Value) -> Bytes {
    body.to_string().into()
}

struct Phased {
    plan: Arc<Plan>,
    phase: Phase,
}

impl Script for Phased {
    fn call(&self, number: usize, step: usize) -> Result<Option<Call>> {
        let plan = &self.plan;
        let only = |name: &str| std::iter::once(name.to_owned());
        let key = plan.key(number);
        let call = match (self.phase, plan.case, step) {
            (Phase::WarmUp, _, 0) => plan.reserve(number, &format!("warm-up-{key}"), only("warm-up")),
            (Phase::Prepare, Case::Catalogue, 0) => {
                plan.reserve(number, &key, only(&format!("product-{}", number % CATALOGUE_PRODUCTS)))
            }
            (Phase::Prepare, _, 0) => plan.reserve(number, &key, only("product")),
            (Phase::Measure, Case::Basket, 0) => plan.reserve(number, &key, plan.basket()),
            (Phase::Measure, Case::Confirm, 0) => plan.confirm(number),
            (Phase::Measure, Case::Catalogue, 0) => {
                let headers = Vec::new();
                Ok(Call { method: Method::GET, path: "/products".to_owned(), headers, body: Bytes::new() })
            }
            (Phase::Measure, _, 0) => plan.reserve(number, &key, only("product")),
            (Phase::Measure, Case::Life, 1) => match number % 5 {
                0..=2 => plan.confirm(number),
                3 => plan.cancel(number),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        call.map(Some)
    }
}

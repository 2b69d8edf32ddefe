//! A shop for the functions to work in, in memory: products, reservations in every state, failed confirmations.
//!
//! Invariant: each input finds the shop as it was opened, so that it does the same whenever it is replayed. dynoxide
//! evaluates real conditions and refuses invalid requests as DynamoDB does, which a canned answer would not; so it is
//! the database here too. A shop is reused for the next input as long as nothing in it has changed: most inputs are
//! refused, and opening a shop costs more than many of those.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use axum::Router;
use holdfast_domain::{Clock, Failure, HoldSeconds, Product, ProductStatus, ReservationId};
use holdfast_http::{Authenticator, serve};
use holdfast_store::Store;
use holdfast_testkit::fixtures::{
    NOW, TABLE, TestClock, basket, client, confirmation, customer, payment, product, queues, reserve, schedules, soon,
    stocked, store, table,
};
use holdfast_testkit::wire::{Call, Wire};
use tokio::runtime::{Builder, Runtime};

/// The shop's ordinary product.
pub const TEE: &str = "tee-black";
/// The payment of Alice's order.
pub const PAID: &str = "pay_1";

/// One of Alice's reservations. Their ids are derived from her name and these keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It can be confirmed, extended and cancelled.
    Held,
    /// An order, paid with [`PAID`].
    Confirmed,
    /// It was cancelled.
    Cancelled,
    /// Its time is over, and its units were released.
    Expired,
}

impl Known {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Held, Self::Confirmed, Self::Cancelled, Self::Expired];

    fn key(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Its id.
    pub fn id(self) -> ReservationId {
        basket("alice", self.key(), &[(TEE, 1)]).reservation_id
    }
}

/// The functions in their shop.
pub(crate) struct Shop {
    pub(crate) wire: Wire,
    pub(crate) store: Store,
    pub(crate) admin: Router,
    pub(crate) catalog: Router,
    pub(crate) reserve: Router,
    pub(crate) confirm: (Arc<confirm::App>, Router),
    pub(crate) expire: expire::App,
    changed: Cell<bool>,
}

thread_local! {
    static SHOP: RefCell<Option<(Runtime, Shop)>> = const { RefCell::new(None) };
}

/// Runs `story` in a fresh shop. Time advances only while all tasks wait.
pub(crate) fn in_shop<T>(story: impl AsyncFnOnce(&Shop) -> T) -> T {
    // Taken out: if the story panics, its shop is dropped.
    let (runtime, shop) = SHOP.take().unwrap_or_else(|| {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let shop = runtime.block_on(open());
        (runtime, shop)
    });
    let told = runtime.block_on(story(&shop));
    shop.calls();
    if !shop.changed.get() {
        SHOP.set(Some((runtime, shop)));
    }
    told
}

impl Shop {
    /// The calls since this was last called.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let calls = self.wire.take_calls();
        if calls.iter().any(|call| writes(call) && worked(call)) {
            self.changed.set(true);
        }
        calls
    }

    /// Puts a message into a queue, as another sender would.
    pub(crate) fn send_message(&self, queue: &str, body: &str) {
        self.changed.set(true);
        self.wire.send_message(queue, body);
    }
}

/// Whether a call would change anything if it worked.
pub(crate) fn writes(call: &Call) -> bool {
    !matches!(
        call.operation.as_str(),
        "GetItem" | "BatchGetItem" | "TransactGetItems" | "Query" | "Scan" | "ReceiveMessage"
    )
}

/// Whether it did. The error bodies of all three services name their type.
pub(crate) fn worked(call: &Call) -> bool {
    call.response.as_ref().is_some_and(|response| response.get("__type").is_none())
}

async fn open() -> Shop {
    let (wire, hands) = (table(), TestClock::new());
    let dollars = "USD".to_owned().try_into().expect("a currency");
    stocked(
        &wire,
        &[
            product(TEE, 1_000_000, 2),
            Product { counts_per_customer: true, max_per_customer: Some(2), ..product("ticket", 3, 1) },
            Product { currency: dollars, ..product("dollars", 1_000, 1) },
            Product { status: ProductStatus::Paused, ..product("paused", 1_000, 1) },
            Product { sale_starts_at: Some(NOW.plus_seconds(60)), ..product("soon", 1_000, 1) },
            Product { hold_seconds: HoldSeconds::MIN, ..product("sold-out", 0, 1) },
        ],
    )
    .await;
    let alice = customer("alice");
    let shelf = store(&wire, 1);
    // Held 600 s ago: overdue by now.
    let over = NOW.plus_seconds(-HoldSeconds::DEFAULT.get());
    // With a clock that shows that time: the store makes no hold that is already over.
    let then = Store::new(client(&wire), TABLE, Clock::new(move || over));
    for known in Known::ALL {
        let (store, at) = if known == Known::Expired { (&then, over) } else { (&shelf, NOW) };
        reserve(store, &basket("alice", known.key(), &[(TEE, 1)]), at).await.expect("a hold");
    }
    let paid = payment(PAID);
    shelf
        .confirm(&confirmation(&Known::Confirmed.id(), &alice, Some(&paid), NOW), NOW, soon())
        .await
        .expect("an order");
    shelf.cancel(&Known::Cancelled.id(), &alice, NOW, soon()).await.expect("an end");
    shelf.release_overdue(NOW, soon()).await.expect("an end");
    for failure in failures() {
        shelf.record_failure(&failure, NOW, soon()).await.expect("a failed confirmation");
    }
    wire.take_calls();

    let http = |router| serve(router, Authenticator::default());
    let confirm = Arc::new(confirm::App {
        store: store(&wire, 2),
        queues: queues(&wire),
        clock: hands.clock(),
        customers_confirm: true,
    });
    let reserve = reserve::App { store: store(&wire, 3), schedules: schedules(&wire), clock: hands.clock() };
    let admin = admin::App {
        store: store(&wire, 4),
        queues: queues(&wire),
        clock: hands.clock(),
        default_max_per_customer: Some(10),
    };
    Shop {
        store: shelf,
        admin: http(admin::router(admin)),
        catalog: http(catalog::router(catalog::App { store: store(&wire, 5), clock: hands.clock() })),
        reserve: http(reserve::router(reserve)),
        confirm: (confirm.clone(), http(confirm::router(confirm))),
        expire: expire::App {
            store: store(&wire, 6),
            failed: queues(&wire).failed().clone(),
            clock: hands.clock(),
            moves_products: false,
        },
        changed: Cell::new(false),
        wire,
    }
}

/// The failed confirmations of the shop: a refund that is due, and an unreadable message.
pub fn failures() -> [Failure; 2] {
    let read = Failure {
        body: format!(
            r#"{{"reservation_id":"{}","customer":"alice","payment_reference":"pay_2","requested_at_ms":{}}}"#,
            Known::Cancelled.id(),
            NOW.as_millis()
        ),
        confirmation: Some(confirmation(&Known::Cancelled.id(), &customer("alice"), Some(&payment("pay_2")), NOW)),
        reason: "refund_required".to_owned(),
    };
    let unread = Failure { body: "no confirmation".to_owned(), confirmation: None, reason: "unreadable".to_owned() };
    [read, unread]
}

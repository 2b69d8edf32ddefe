//! An order that is given back, or a hold that an admin releases: who decided it, when, why, and where its units go.

use serde::{Deserialize, Serialize};

use crate::audit::check_reason;
use crate::text::check_line;
use crate::{CustomerId, Invalid, ReservationId, Timestamp};

/// The command to cancel an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderCancellation {
    /// The order.
    pub order_id: ReservationId,
    /// Its owner, where the caller may only act for them; an admin acts for anybody.
    pub customer: Option<CustomerId>,
    /// Why: 1 to 200 visible characters.
    pub reason: String,
    /// Whether the units go back on sale. If not, they leave the stock, and the ledger says so.
    pub restock: bool,
    /// Who decided it: the `sub` of an admin or of a service.
    pub actor: String,
}

impl OrderCancellation {
    /// The command itself, if its reason is one.
    ///
    /// # Errors
    /// [`Invalid`] for a reason that is empty, too long, has invisible characters only, or is that of a compensation.
    pub fn checked(self) -> Result<Self, Invalid> {
        check_line("reason", &self.reason)?;
        check_reason(&self.reason).map(|()| self)
    }

    /// What the order records of it, if it is carried out at `now`.
    pub fn record(&self, now: Timestamp) -> Cancellation {
        Cancellation { at: now, by: self.actor.clone(), reason: self.reason.clone(), restocked: self.restock }
    }
}

/// The command to release a hold, or all holds of a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRelease {
    /// Why: 1 to 200 visible characters.
    pub reason: String,
    /// The `sub` of the admin.
    pub actor: String,
}

impl HoldRelease {
    /// The command itself, if its reason is one.
    ///
    /// # Errors
    /// As [`OrderCancellation::checked`].
    pub fn checked(self) -> Result<Self, Invalid> {
        check_line("reason", &self.reason).map(|()| self)
    }

    /// What the hold records of it, if it is carried out at `now`.
    pub fn record(&self, now: Timestamp) -> Cancellation {
        Cancellation { at: now, by: self.actor.clone(), reason: self.reason.clone(), restocked: true }
    }
}

/// What a cancelled order, or a hold that an admin released, records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    /// When.
    pub at: Timestamp,
    /// Who: an admin or a service.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Whether its units went back on sale. If not, they left the stock.
    pub restocked: bool,
}

//! Bugs, planted on purpose: what the promises must catch.

use serde_json::Value;

use crate::cloud::Function;
use crate::world::Call;

/// A planted bug. It lives on the wire, as the request, answer or reply that a function with this bug would send.
pub struct Planted {
    /// Its name on the command line.
    pub name: &'static str,
    /// The mistake.
    pub what: &'static str,
    pub(crate) asks: Option<fn(&mut Call) -> Option<(u16, Value)>>,
    pub(crate) hears: Option<fn(&Call, u16, &mut Value)>,
    pub(crate) says: Option<fn(Function, &Value, &mut Value)>,
}

impl Planted {
    /// The request as it is sent with the bug; where it is not sent at all, what is believed to be the answer.
    pub(crate) fn asked(&self, call: &mut Call) -> Option<(u16, Value)> {
        self.asks.and_then(|ask| ask(call))
    }

    pub(crate) fn answered(&self, call: &Call, status: u16, body: &mut Value) {
        if let Some(hear) = self.hears {
            hear(call, status, body);
        }
    }

    pub(crate) fn replied(&self, function: Function, event: &Value, reply: &mut Value) {
        if let Some(say) = self.says {
            say(function, event, reply);
        }
    }
}

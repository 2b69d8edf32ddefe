//! Answers about changes of a hold, and about what an admin does with it.

use serde_json::Value;

use super::{Case, Ruling, at_the_price_seen, has_been_of, hold, lines, stock, wanted};

/// Whether a refusal is true of a hold, given the units that it lacks of each product.
type Growing<'a> = dyn Fn(&Value, &[(String, u64)]) -> bool + 'a;

impl Case<'_> {
    pub(super) fn change_lines(&self, id: &str) -> Ruling {
        let (body, wanted) = (&self.reply.body, wanted(&self.asked.body));
        let (least, _) = self.clock();
        // A refusal for want of something is only true of a hold that could be changed, and of what it has too little of.
        let refused = |so: &Growing<'_>| {
            let held = |item: &Value| item["status"] == "held" && item["expires_at"].as_i64() > Some(least);
            let so = |item: &Value| held(item) && so(item, &growth(item, &wanted));
            self.hold_once(id, |item| item.is_some_and(so))
        };
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let so = |item: &Value| body["status"] == "held" && lines(item) == wanted && self.shows(item, body);
                let right = self.hold_once(id, |item| item.is_some_and(so));
                if right && !at_the_price_seen(&self.asked.body, body) {
                    return (false, "a_hold_has_the_price_that_the_customer_saw");
                }
                (right, "answers_are_the_table")
            }
            (409, "insufficient_stock") => {
                // It is told in the terms of the request: with what the hold has.
                let told = |item: &Value| {
                    let has = lines(item);
                    let mut told = body["lines"].clone();
                    for line in told.as_array_mut().into_iter().flatten() {
                        let of_it = |(id, _): &&(String, u64)| line["product_id"] == id.as_str();
                        let has = has.iter().find(of_it).map_or(0, |(_, has)| *has);
                        for name in ["requested", "available"] {
                            line[name] = line[name].as_u64().and_then(|units| units.checked_sub(has)).into();
                        }
                    }
                    told
                };
                let right = refused(&|item, more| self.sold_out(more, Some(&told(item))));
                (right, "never_sold_out_while_units_are_free")
            }
            (409, "customer_limit_reached") => {
                (refused(&|_, more| self.limited(more, &self.asked.who)), "only_true_refusals")
            }
            (409, "product_not_on_sale" | "sale_not_open") => {
                (refused(&|_, more| self.not_on_sale(more)), "only_true_refusals")
            }
            (404, "product_not_found") => (refused(&|_, more| self.unknown(more)), "only_true_refusals"),
            (409, "price_changed") => {
                // What stays or shrinks keeps its price.
                let kept = |item: &Value, more: &[(String, u64)], product: &str| {
                    let line = item["lines"].as_array()?.iter().find(|line| line["product_id"] == product)?;
                    let grows = more.iter().any(|(id, _)| id == product);
                    line["unit_price_minor"].as_u64().filter(|_| !grows)
                };
                let right = refused(&|item, more| self.another_price(|product| kept(item, more, product)));
                (right, "only_true_refusals")
            }
            (422, "currency_mismatch") => {
                (refused(&|item, _| self.mixed(&wanted, item["currency"].as_str())), "only_true_refusals")
            }
            _ => self.ended(id, false),
        }
    }

    pub(super) fn hand_over(&self, id: &str) -> Ruling {
        let (body, who) = (&self.reply.body, self.asked.who.as_str());
        let to = self.asked.body["to_customer_id"].as_str().unwrap_or_default();
        // By this request, or by an earlier one.
        let handed = |item: &Value| item["customer"] == to && has_been_of(item, who);
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let so = |item: &Value| handed(item) && self.shows(item, body);
                (self.any_once(id, |item| item.is_some_and(so)), "answers_are_the_table")
            }
            (404, "reservation_not_found") => {
                let strange = |item: &Value| item["customer"] != who && !handed(item);
                (self.any_once(id, |item| item.is_none_or(strange)), "no_reservation_is_lost")
            }
            (409, "customer_limit_reached") => {
                let full = |item: &Value| item["status"] == "held" && self.limited(&counted(item), to);
                (self.hold_once(id, |item| item.is_some_and(full)), "only_true_refusals")
            }
            _ => self.ended(id, false),
        }
    }

    pub(super) fn release(&self, id: &str) -> Ruling {
        let body = &self.reply.body;
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let so = |item: &Value| item["status"] == "cancelled" && self.shows_admin(item, body);
                (self.any_once(id, |item| item.is_some_and(so)), "answers_are_the_table")
            }
            (404, "reservation_not_found") => (self.any_once(id, |item| item.is_none()), "no_reservation_is_lost"),
            (409, "already_confirmed") => {
                let order = |item: &Value| item["status"] == "confirmed";
                let right = body["refund_required"] == false && self.any_once(id, |item| item.is_some_and(order));
                (right, "only_true_refusals")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    /// Whether no more was released than the answer says; and, if it says that this was all, whether no hold was left that
    /// the index showed all the time.
    pub(super) fn release_all(&self, product: &str) -> Ruling {
        let body = &self.reply.body;
        match (self.reply.status, self.reply.code()) {
            (200, _) => {}
            (404, "product_not_found") => {
                let place = stock::product_place(product);
                return (self.once([&place], |at| self.item(&place, at).is_none()), "only_true_refusals");
            }
            _ => return (false, "only_documented_refusals"),
        }
        let number = |name: &str| body[name].as_u64();
        let (Some(holds), Some(units)) = (number("released_holds"), number("released_units")) else {
            return (false, "answers_are_the_table");
        };
        let (mut most_holds, mut most_units, mut left) = (0, 0, false);
        let sum = |item: &Value| lines(item).iter().map(|(_, quantity)| quantity).sum::<u64>();
        for id in self.books.holds_of(product) {
            let place = hold(id);
            let moments = self.books.past.moments([&place], self.window.sent, self.window.answered);
            let items: Vec<&Value> = moments.iter().filter_map(|at| self.item(&place, *at)).collect();
            let ended = items.windows(2).find(|two| {
                two[0]["status"] == "held" && two[1]["status"] == "cancelled" && two[1]["cancellation"].is_object()
            });
            if let Some(two) = ended {
                most_holds += 1;
                most_units += sum(two[0]);
            }
            if let ([_], [item]) = (moments.as_slice(), items.as_slice()) {
                let has = lines(item).iter().any(|(id, _)| id == product);
                let due = self.books.due(id, item, self.window.sent);
                left |= item["status"] == "held" && has && due.is_some() && due == item["expires_at"].as_i64();
            }
        }
        let right = holds <= most_holds && (holds..=most_units).contains(&units);
        (right && !(left && body["complete"] == true), "answers_are_the_table")
    }

    pub(super) fn any_reservation(&self, id: &str) -> Ruling {
        match self.reply.status {
            200 => {
                let so = |item: &Value| self.shows_admin(item, &self.reply.body);
                (self.any_once(id, |item| item.is_some_and(so)), "answers_are_the_table")
            }
            404 => (self.any_once(id, |item| item.is_none()), "no_reservation_is_lost"),
            _ => (false, "only_documented_refusals"),
        }
    }
}

/// The units that a hold lacks for these lines, of each product.
fn growth(item: &Value, wanted: &[(String, u64)]) -> Vec<(String, u64)> {
    let held = lines(item);
    let more = |(id, quantity): &(String, u64)| {
        let has = held.iter().find(|(other, _)| other == id).map_or(0, |(_, has)| *has);
        let more = quantity.saturating_sub(has);
        (more > 0).then(|| (id.clone(), more))
    };
    wanted.iter().filter_map(more).collect()
}

/// The lines of a reservation that count against its customer's limits.
pub(super) fn counted(item: &Value) -> Vec<(String, u64)> {
    let lines = item["lines"].as_array().into_iter().flatten().filter(|line| line["limited"] == true);
    lines.filter_map(|line| Some((line["product_id"].as_str()?.to_owned(), line["quantity"].as_u64()?))).collect()
}

//! Makes holds, and all that their owner does with them but pay: read, list, extend, cancel.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use holdfast_aws::clock::Clock;
use holdfast_aws::config::REQUEST_BUDGET;
use holdfast_aws::schedules::Schedules;
use holdfast_domain::{Basket, CustomerId, HoldSeconds, ProductId, Reservation, ReservationId, Status, Timestamp};
use holdfast_http::{
    Caller, Customer, Json, Key, List, ListQuery, Object, Problem, Query, ReservationView, about_reservation, path_id,
};
use holdfast_store::{Deadline, Error, Store};
use serde::Deserialize;

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The reminders of holds.
    pub schedules: Schedules,
    /// The time.
    pub clock: Clock,
}

/// The function's routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/reservations", post(create).get(list))
        .route("/reservations/{reservation_id}", get(one).delete(cancel))
        .route("/reservations/{reservation_id}/extend", post(extend))
        .route("/orders", get(orders))
        .route("/orders/{order_id}", get(order))
        .with_state(Arc::new(app))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    lines: Vec<Object<CreateLine>>,
    /// From a service, which must name it, and from nobody else.
    customer_id: Option<CustomerId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateLine {
    product_id: ProductId,
    /// Any JSON number: what is no whole number from 1 to 1,000 is refused by name, not as a malformed body.
    quantity: serde_json::Number,
}

/// `POST /reservations`
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Key(key): Key,
    Json(body): Json<Create>,
) -> Result<Response, Problem> {
    let quantity = |number: &serde_json::Number| number.as_u64().and_then(|quantity| u32::try_from(quantity).ok());
    let lines = body.lines.into_iter().map(|Object(line)| (line.product_id, quantity(&line.quantity))).collect();
    let basket = Basket::new(caller.customer(body.customer_id)?, &key, lines)??;
    about_reservation(&basket.reservation_id);

    let now = app.clock.now();
    let reserved = app.store.reserve(&basket, now, Deadline::after(REQUEST_BUDGET), |at| app.remind(at)).await?;

    let location = format!("/reservations/{}", reserved.reservation.reservation_id);
    let mut answer =
        (StatusCode::CREATED, [(header::LOCATION, location)], view(reserved.reservation, now)).into_response();
    if reserved.replayed {
        answer.headers_mut().insert("idempotent-replayed", header::HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// `GET /reservations/{reservation_id}`
async fn one(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.reservation(&id, &customer, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(view(reservation, now).into_response())
}

/// `GET /orders/{order_id}`: a confirmed reservation.
async fn order(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.reservation(&id, &customer, Deadline::after(REQUEST_BUDGET)).await?;
    if reservation.status != Status::Confirmed {
        return Err(holdfast_domain::Refusal::ReservationNotFound.into());
    }
    Ok(view(reservation, now).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListReservations {
    status: Option<Status>,
    customer_id: Option<CustomerId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// `GET /reservations`
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListReservations>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, query.status, ListQuery::new(query.limit, query.cursor)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOrders {
    customer_id: Option<CustomerId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// `GET /orders`
async fn orders(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListOrders>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, Some(Status::Confirmed), ListQuery::new(query.limit, query.cursor)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extend {
    hold_seconds: HoldSeconds,
    customer_id: Option<CustomerId>,
}

/// `POST /reservations/{reservation_id}/extend`
async fn extend(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<Extend>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let customer = caller.customer(body.customer_id)?;
    let now = app.clock.now();
    let deadline = Deadline::after(REQUEST_BUDGET);
    let remind = |at| app.remind(at);
    let reservation = app.store.extend(&id, &customer, body.hold_seconds, now, deadline, remind).await?;
    Ok(view(reservation, now).into_response())
}

/// `DELETE /reservations/{reservation_id}`
async fn cancel(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.cancel(&id, &customer, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(view(reservation, now).into_response())
}

impl App {
    /// Makes sure that `expire` will look at what ends at `at`.
    async fn remind(&self, at: Timestamp) -> Result<(), Error> {
        let answer = self.schedules.ensure(at).await;
        answer.map_err(|unanswered| Error::Unavailable { during: unanswered.during, last: unanswered.detail })
    }

    async fn list(&self, of: &CustomerId, status: Option<Status>, query: ListQuery) -> Result<Response, Problem> {
        let now = self.clock.now();
        let (limit, cursor) = (query.limit()? as usize, query.cursor()?);
        let deadline = Deadline::after(REQUEST_BUDGET);
        let page = self.store.reservations_of(of, status, now, limit, cursor, deadline).await?;
        Ok(Answer(List::of(page, |reservation| ReservationView::new(reservation, now))).into_response())
    }
}

fn reservation_id(text: String) -> Result<ReservationId, Problem> {
    let id = path_id(text, "reservation_not_found")?;
    about_reservation(&id);
    Ok(id)
}

fn view(reservation: Reservation, now: Timestamp) -> Answer<ReservationView> {
    Answer(ReservationView::new(reservation, now))
}

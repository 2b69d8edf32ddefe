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
    schema,
};
use holdfast_store::{Deadline, Error, Store};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};

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

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(paths(create, one, order, list, orders, extend, cancel), components(schemas(schema::IdempotencyKey)))]
pub struct Description;

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

/// What to reserve.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateReservation)]
struct Create {
    /// All of them or none. Lines of one product are merged.
    #[schema(value_type = Vec<CreateLine>, min_items = 1, max_items = 20)]
    lines: Vec<Object<CreateLine>>,
    /// From a service, which must name it, and from nobody else.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// So many units of one product.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateReservationLine)]
struct CreateLine {
    #[schema(value_type = schema::ProductId)]
    product_id: ProductId,
    // Any JSON number: what is no whole number from 1 to 1,000 is refused by name, not as a malformed body.
    /// Units.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000)]
    quantity: serde_json::Number,
}

/// Reserve
///
/// Holds units for the customer until `expires_at`: confirm it by then, or they go back by themselves.
///
/// The same request with the same key, as after a lost answer, makes nothing new: it answers with the reservation as
/// it is now.
#[utoipa::path(
    post, path = "/reservations", operation_id = "createReservation", tag = "Reservations",
    params(Key),
    request_body(content = Create, example = json!({"lines": [{"product_id": "tee-black", "quantity": 2}]})),
    responses((status = 201, description = "The units are held.", body = ReservationView, headers(
        ("Location" = String, description = "Where the reservation is."),
        ("Idempotent-Replayed" = String, description = "`true` where an earlier request made it, otherwise absent.")),
        links(
            ("get" = (operation_id = "getReservation",
                parameters(("reservation_id" = "$response.body#/reservation_id")))),
            ("confirm" = (operation_id = "confirmReservation",
                parameters(("reservation_id" = "$response.body#/reservation_id")))),
            ("extend" = (operation_id = "extendReservation",
                parameters(("reservation_id" = "$response.body#/reservation_id")))),
            ("cancel" = (operation_id = "cancelReservation",
                parameters(("reservation_id" = "$response.body#/reservation_id"))))))),
    security(("bearer" = [])),
    extensions(("x-problems" = json!([
        "idempotency_key_reused", "invalid_quantity", "product_not_found", "currency_mismatch", "product_not_on_sale",
        "sale_not_open", "customer_limit_reached", "insufficient_stock"])))
)]
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Key(key): Key,
    Json(body): Json<Create>,
) -> Result<Response, Problem> {
    let quantity = |number: &serde_json::Number| number.as_u64().and_then(|quantity| u32::try_from(quantity).ok());
    let lines = body.lines.into_iter().map(|Object(line)| (line.product_id, quantity(&line.quantity))).collect();
    let basket = Basket::new(caller.customer(body.customer_id)?, &key, lines).map_err(Error::from)?;
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

/// Get a reservation
///
/// A hold whose time is over shows as `expired`, also where its units are not back yet.
#[utoipa::path(
    get, path = "/reservations/{reservation_id}", operation_id = "getReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "The reservation as it is now.", body = ReservationView)),
    security(("bearer" = []))
)]
async fn one(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.current_reservation(&id, &customer, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok(view(reservation, now).into_response())
}

/// Get an order
///
/// An order is a confirmed reservation, under the same id.
#[utoipa::path(
    get, path = "/orders/{order_id}", operation_id = "getOrder", tag = "Orders",
    params(("order_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "The order.", body = ReservationView)),
    security(("bearer" = []))
)]
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

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListReservations {
    /// Only those that stand so. All unless given.
    #[param(value_type = Option<schema::ReservationStatus>)]
    status: Option<Status>,
    /// From a service, which must name it, and from nobody else.
    #[param(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
    /// The most items of the page. 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

/// List reservations
///
/// The customer's own, the newest first. A new one may be missing for a moment.
#[utoipa::path(
    get, path = "/reservations", operation_id = "listReservations", tag = "Reservations",
    params(ListReservations),
    responses((status = 200, description = "A page of reservations.", body = List<ReservationView>)),
    security(("bearer" = []))
)]
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListReservations>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, query.status, ListQuery::new(query.limit, query.cursor)).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListOrders {
    /// From a service, which must name it, and from nobody else.
    #[param(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
    /// The most items of the page. 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

/// List orders
///
/// The customer's own, the newest first.
#[utoipa::path(
    get, path = "/orders", operation_id = "listOrders", tag = "Orders",
    params(ListOrders),
    responses((status = 200, description = "A page of orders.", body = List<ReservationView>)),
    security(("bearer" = []))
)]
async fn orders(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListOrders>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, Some(Status::Confirmed), ListQuery::new(query.limit, query.cursor)).await
}

/// How much longer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExtendReservation)]
struct Extend {
    /// The hold shall last at least so long from now on.
    #[schema(value_type = schema::Seconds)]
    hold_seconds: HoldSeconds,
    /// From a service, which must name it, and from nobody else.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// Extend a hold
///
/// At least so many seconds from now. It never shortens a hold, and all extensions together may be at most twice the
/// first hold; one past that is refused and not cut.
#[utoipa::path(
    post, path = "/reservations/{reservation_id}/extend", operation_id = "extendReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = Extend, example = json!({"hold_seconds": 900})),
    responses((status = 200, description = "The hold lasts at least so long.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(
        ["already_confirmed", "reservation_cancelled", "extension_limit_reached", "hold_expired"])))
)]
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

/// Cancel a hold
///
/// Gives the units back at once. Repeating it is harmless.
#[utoipa::path(
    delete, path = "/reservations/{reservation_id}", operation_id = "cancelReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "It is cancelled.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_confirmed", "hold_expired"])))
)]
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

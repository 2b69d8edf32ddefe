//! Reservations and orders: create, read, list, extend and cancel. Confirming is a function of its own (`confirm`).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json as Answer, Router};
use holdfast_aws::clock::Clock;
use holdfast_aws::log;
use holdfast_aws::schedules::Schedules;
use holdfast_domain::{
    Basket, CustomerId, HoldSeconds, Invalid, OrderCancellation, ProductId, RequestedLine, RequestedLines, Reservation,
    ReservationId, Status, Timestamp,
};
use holdfast_http::budgets::REQUEST_BUDGET;
use holdfast_http::{
    Caller, Customer, Json, Key, List, ListQuery, Object, Outcome, Problem, Query, ReservationView, codes, path_id,
    schema,
};
use holdfast_store::{Deadline, Error, Listed, Store, measure};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};

/// What the function needs.
#[derive(Debug)]
pub struct App {
    /// The table.
    pub store: Store,
    /// The schedules that release expired holds.
    pub schedules: Schedules,
    /// The time.
    pub clock: Clock,
}

/// This function's part of the API's description.
#[derive(Debug, OpenApi)]
#[openapi(
    paths(
        create_reservation,
        get_reservation,
        get_order,
        list_reservations,
        list_orders,
        extend_reservation,
        change_lines,
        transfer,
        cancel_reservation,
        cancel_order
    ),
    components(schemas(schema::IdempotencyKey))
)]
pub struct Description;

/// The function's routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/reservations", post(create_reservation).get(list_reservations))
        .route("/reservations/{reservation_id}", get(get_reservation).delete(cancel_reservation))
        .route("/reservations/{reservation_id}/extend", post(extend_reservation))
        .route("/reservations/{reservation_id}/lines", put(change_lines))
        .route("/reservations/{reservation_id}/transfer", post(transfer))
        .route("/orders", get(list_orders))
        .route("/orders/{order_id}", get(get_order))
        .route("/orders/{order_id}/cancel", post(cancel_order))
        .with_state(Arc::new(app))
}

/// A request to reserve units.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateReservation)]
struct Create {
    /// All lines are reserved, or none. Lines of the same product are added up.
    #[schema(value_type = Vec<CreateLine>, min_items = 1, max_items = 20)]
    lines: Vec<Object<CreateLine>>,
    /// The customer to act for. Required for service tokens; forbidden for others.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// Units of a product to reserve.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateReservationLine)]
struct CreateLine {
    #[schema(value_type = schema::ProductId)]
    product_id: ProductId,
    // Any JSON number, so that one outside 1 to 1,000 is refused as `invalid_quantity` and not as a malformed body.
    /// Number of units.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000)]
    quantity: serde_json::Number,
    /// The price of one unit that the customer saw. If the product has another price, nothing is held.
    #[schema(value_type = Option<schema::Price>)]
    unit_price_minor: Option<u64>,
}

fn requested(lines: Vec<Object<CreateLine>>) -> Vec<RequestedLine> {
    let quantity = |number: &serde_json::Number| number.as_u64().and_then(|quantity| u32::try_from(quantity).ok());
    let line = |Object(line): Object<CreateLine>| RequestedLine {
        quantity: quantity(&line.quantity),
        product_id: line.product_id,
        unit_price_minor: line.unit_price_minor,
    };
    lines.into_iter().map(line).collect()
}

/// Create a reservation
///
/// Holds units for the customer until `expires_at`. Confirm the reservation before then, or its units are released.
///
/// Idempotent: the same request with the same key returns the existing reservation in its current state, or `hold_ended`
/// if it has expired or was cancelled.
#[utoipa::path(
    post, path = "/reservations", operation_id = "createReservation", tag = "Reservations",
    params(Key),
    request_body(content = Create, example = json!({"lines": [{"product_id": "tee-black", "quantity": 2}]})),
    responses((status = 201, description = "The units are held.", body = ReservationView, headers(
        ("Location" = String, description = "URL of the reservation."),
        ("Idempotent-Replayed" = String, description = "`true` if an earlier request created it; otherwise absent.")),
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
        "idempotency_key_reused", "hold_transferred", "invalid_quantity", "product_not_found", "currency_mismatch", "product_not_on_sale",
        "sale_not_open", "price_changed", "customer_limit_reached", "insufficient_stock", "hold_ended"])))
)]
async fn create_reservation(
    State(app): State<Arc<App>>,
    caller: Caller,
    Key(key): Key,
    Json(body): Json<Create>,
) -> Result<Response, Problem> {
    let lines = requested(body.lines);
    let basket = Basket::new(caller.customer(body.customer_id)?, &key, lines).map_err(Error::from)?;
    log::reservation(&basket.reservation_id);

    let now = app.clock.now();
    let reserved =
        app.store.reserve(&basket, now, Deadline::after(REQUEST_BUDGET), |at| app.ensure_schedule(at)).await?;

    if matches!(reserved.reservation.status_at(now), Status::Expired | Status::Cancelled) {
        return Err(Problem::hold_ended(&ReservationView::new(reserved.reservation, now)));
    }
    let location = [(header::LOCATION, format!("/reservations/{}", reserved.reservation.reservation_id))];
    let outcome = Extension(Outcome(if reserved.replayed { "replayed" } else { "reserved" }));
    let mut answer = (StatusCode::CREATED, location, outcome, view(reserved.reservation, now)).into_response();
    if reserved.replayed {
        answer.headers_mut().insert("idempotent-replayed", header::HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// Get a reservation
///
/// A hold past its `expires_at` is shown as `expired`, even if its units have not been released yet.
#[utoipa::path(
    get, path = "/reservations/{reservation_id}", operation_id = "getReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "The reservation.", body = ReservationView)),
    security(("bearer" = []))
)]
async fn get_reservation(
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
/// An order is a confirmed reservation; it keeps its id. An order that was cancelled has the status `cancelled`.
#[utoipa::path(
    get, path = "/orders/{order_id}", operation_id = "getOrder", tag = "Orders",
    params(("order_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "The order.", body = ReservationView)),
    security(("bearer" = []))
)]
async fn get_order(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.reservation(&id, &customer, Deadline::after(REQUEST_BUDGET)).await?;
    if !reservation.was_ordered() {
        return Err(holdfast_domain::Refusal::ReservationNotFound.into());
    }
    Ok(view(reservation, now).into_response())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListReservations {
    /// Filter by status. Default: all.
    #[param(value_type = Option<schema::ReservationStatus>)]
    status: Option<Status>,
    #[param(ignore)]
    customer_id: Option<CustomerId>,
    #[param(ignore)]
    limit: Option<u32>,
    #[param(ignore)]
    cursor: Option<String>,
}

/// List reservations
///
/// Returns the customer's reservations, newest first. A new reservation may be missing for a moment.
#[utoipa::path(
    get, path = "/reservations", operation_id = "listReservations", tag = "Reservations",
    params(ListReservations, Customer, ListQuery),
    responses((status = 200, description = "A page of reservations.", body = List<ReservationView>)),
    security(("bearer" = []))
)]
async fn list_reservations(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListReservations>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, query.status.into(), ListQuery::new(query.limit, query.cursor)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOrders {
    customer_id: Option<CustomerId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// List orders
///
/// Returns the customer's orders, newest first; also cancelled ones.
#[utoipa::path(
    get, path = "/orders", operation_id = "listOrders", tag = "Orders",
    params(Customer, ListQuery),
    responses((status = 200, description = "A page of orders.", body = List<ReservationView>)),
    security(("bearer" = []))
)]
async fn list_orders(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListOrders>,
) -> Result<Response, Problem> {
    let customer = caller.customer(query.customer_id)?;
    app.list(&customer, Listed::Orders, ListQuery::new(query.limit, query.cursor)).await
}

/// A request to extend a hold.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExtendReservation)]
struct Extend {
    /// Minimum remaining hold, in seconds.
    #[schema(value_type = schema::Seconds)]
    hold_seconds: HoldSeconds,
    /// The customer to act for. Required for service tokens; forbidden for others.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// Extend a hold
///
/// Makes the hold last at least `hold_seconds` from now. A hold is never shortened. All extensions together may be at
/// most twice the original hold; an extension beyond that is refused, not shortened.
#[utoipa::path(
    post, path = "/reservations/{reservation_id}/extend", operation_id = "extendReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = Extend, example = json!({"hold_seconds": 900})),
    responses((status = 200, description = "The hold lasts at least that long.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(
        ["already_confirmed", "reservation_cancelled", "extension_limit_reached", "hold_expired"])))
)]
async fn extend_reservation(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<Extend>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let customer = caller.customer(body.customer_id)?;
    let now = app.clock.now();
    let deadline = Deadline::after(REQUEST_BUDGET);
    let ensure_schedule = |at| app.ensure_schedule(at);
    let reservation = app.store.extend(&id, &customer, body.hold_seconds, now, deadline, ensure_schedule).await?;
    Ok((Extension(Outcome("extended")), view(reservation, now)).into_response())
}

/// A request to change a hold's lines.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChangeLines)]
struct ChangeLines {
    /// All lines of the hold as they should be. Lines of the same product are added up.
    #[schema(value_type = Vec<CreateLine>, min_items = 1, max_items = 20)]
    lines: Vec<Object<CreateLine>>,
    /// The customer to act for. Required for service tokens; forbidden for others.
    #[schema(value_type = Option<schema::CustomerId>)]
    customer_id: Option<CustomerId>,
}

/// Change the lines of a hold
///
/// Replaces all lines: more or fewer units, other products. All of it is done, or nothing; the hold keeps its units until
/// then, and it ends when it would have ended. A line that is new or grows is sold at today's price, for all of its units; a
/// line that stays or shrinks keeps its price. Idempotent.
#[utoipa::path(
    put, path = "/reservations/{reservation_id}/lines", operation_id = "changeLines", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = ChangeLines, example = json!({"lines": [{"product_id": "tee-black", "quantity": 1}]})),
    responses((status = 200, description = "The hold has these lines.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!([
        "invalid_quantity", "already_confirmed", "reservation_cancelled", "hold_expired", "product_not_found",
        "currency_mismatch", "product_not_on_sale", "sale_not_open", "price_changed", "customer_limit_reached",
        "insufficient_stock"])))
)]
async fn change_lines(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<ChangeLines>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let customer = caller.customer(body.customer_id)?;
    let lines = RequestedLines::new(requested(body.lines)).map_err(Error::from)?;
    let now = app.clock.now();
    let reservation = app.store.change_lines(&id, &customer, &lines, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok((Extension(Outcome("lines_changed")), view(reservation, now)).into_response())
}

/// A request to hand a hold to another customer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TransferReservation)]
struct Transfer {
    /// The customer whose hold it is.
    #[schema(value_type = schema::CustomerId)]
    customer_id: CustomerId,
    /// The customer who gets it.
    #[schema(value_type = schema::CustomerId)]
    to_customer_id: CustomerId,
}

/// Hand a hold to another customer
///
/// For a guest who signs in during the checkout. Only for a service. Units, time, price and key stay with the hold; the
/// limits of the new customer count it from now on. A confirmation that names the guest is still accepted. Idempotent.
#[utoipa::path(
    post, path = "/reservations/{reservation_id}/transfer", operation_id = "transferReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path)),
    request_body(content = Transfer, example = json!({"customer_id": "guest:7", "to_customer_id": "alice"})),
    responses((status = 200, description = "The hold is the new customer's.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(
        ["already_confirmed", "reservation_cancelled", "hold_expired", "customer_limit_reached"])))
)]
async fn transfer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<Transfer>,
) -> Result<Response, Problem> {
    if !caller.service {
        return Err(Problem::forbidden("only a service may hand a hold to another customer"));
    }
    let id = reservation_id(id)?;
    if body.customer_id == body.to_customer_id {
        return Err(Invalid::new("to_customer_id", "must be another customer").into());
    }
    let (now, deadline) = (app.clock.now(), Deadline::after(REQUEST_BUDGET));
    let reservation = app.store.transfer(&id, &body.customer_id, &body.to_customer_id, now, deadline).await?;
    Ok((Extension(Outcome("transferred")), view(reservation, now)).into_response())
}

/// Cancel a hold
///
/// Releases the units immediately. Idempotent.
#[utoipa::path(
    delete, path = "/reservations/{reservation_id}", operation_id = "cancelReservation", tag = "Reservations",
    params(("reservation_id" = schema::ReservationId, Path), Customer),
    responses((status = 200, description = "The reservation is cancelled.", body = ReservationView)),
    security(("bearer" = [])),
    extensions(("x-problems" = json!(["already_confirmed", "hold_expired"])))
)]
async fn cancel_reservation(
    State(app): State<Arc<App>>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = reservation_id(id)?;
    let now = app.clock.now();
    let reservation = app.store.cancel(&id, &customer, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok((Extension(Outcome("cancelled")), view(reservation, now)).into_response())
}

/// A request to cancel an order.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CancelOrder)]
struct CancelOrder {
    #[schema(value_type = schema::FreeText)]
    reason: String,
    /// Whether the units go back on sale. If not, they leave the stock, with an entry of the ledger.
    restock: bool,
    /// The customer whose order it is.
    #[schema(value_type = schema::CustomerId)]
    customer_id: CustomerId,
}

/// Give an order back
///
/// Cancels an order for its customer. Only for a service. The customer's limit is free again, and the payment is listed as a
/// failed confirmation with the reason `order_cancelled` until an admin resolves it: refund it then. Nothing makes an order
/// of the reservation again. Idempotent: the first reason stays.
#[utoipa::path(
    post, path = "/orders/{order_id}/cancel", operation_id = "cancelOrder", tag = "Orders",
    params(("order_id" = schema::ReservationId, Path)),
    request_body(content = CancelOrder, example = json!(
        {"reason": "event called off", "restock": false, "customer_id": "alice"})),
    responses((status = 200, description = "The order is cancelled.", body = ReservationView)),
    security(("bearer" = []))
)]
async fn cancel_order(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<CancelOrder>,
) -> Result<Response, Problem> {
    if !caller.service {
        return Err(Problem::forbidden("only a service may cancel an order"));
    }
    let command = OrderCancellation {
        order_id: reservation_id(id)?,
        customer: Some(body.customer_id),
        reason: body.reason,
        restock: body.restock,
        actor: caller.id.into(),
    }
    .checked()?;
    let now = app.clock.now();
    let order = app.store.cancel_order(&command, now, Deadline::after(REQUEST_BUDGET)).await?;
    Ok((Extension(Outcome("order_cancelled")), view(order, now)).into_response())
}

impl App {
    /// Makes sure that a schedule calls `expire` for the holds that end at `at`. If it cannot be created the hold is made all the
    /// same: the sweep releases it, up to a minute later.
    async fn ensure_schedule(&self, at: Timestamp) -> Result<(), Error> {
        if let Err(error) = self.schedules.ensure(at).await {
            tracing::warn!(%error, "schedule not created; the sweep releases the hold");
            measure::note(measure::UNSCHEDULED, 1);
        }
        Ok(())
    }

    async fn list(&self, of: &CustomerId, listed: Listed, query: ListQuery) -> Result<Response, Problem> {
        let now = self.clock.now();
        let (limit, cursor) = (query.limit()? as usize, query.cursor()?);
        let deadline = Deadline::after(REQUEST_BUDGET);
        let page = self.store.reservations_of(of, listed, now, limit, cursor, deadline).await?;
        Ok(Answer(List::of(page, |reservation| ReservationView::new(reservation, now))).into_response())
    }
}

fn reservation_id(text: String) -> Result<ReservationId, Problem> {
    let id = path_id(text, &codes::RESERVATION_NOT_FOUND)?;
    log::reservation(&id);
    Ok(id)
}

fn view(reservation: Reservation, now: Timestamp) -> Answer<ReservationView> {
    Answer(ReservationView::new(reservation, now))
}

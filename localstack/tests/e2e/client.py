"""Makes a product, reserves it, sends that again, confirms and reads the order, by the client that was made from the
API's description: its types, its parsing, and no request written by hand."""

import sys

from holdfast_client import AuthenticatedClient, Client
from holdfast_client.api.admin_products import create_product
from holdfast_client.api.orders import get_order
from holdfast_client.api.products import get_product
from holdfast_client.api.reservations import confirm_reservation, create_reservation, list_reservations
from holdfast_client.models import (
    ConfirmationNotAllowedProblem,
    ConfirmReservation,
    CreateProduct,
    CreateReservation,
    CreateReservationLine,
    InsufficientStockProblem,
    Product,
    Reservation,
    ReservationPage,
    ReservationStatus,
    UnauthenticatedProblem,
)

url, admin_token, customer_token, shop_token = sys.argv[1:]
# An answer that the description does not know is an error.
admin = AuthenticatedClient(base_url=url, token=admin_token, raise_on_unexpected_status=True)
customer = AuthenticatedClient(base_url=url, token=customer_token, raise_on_unexpected_status=True)
shop = AuthenticatedClient(base_url=url, token=shop_token, raise_on_unexpected_status=True)
stranger = AuthenticatedClient(base_url=url, token="not.a.token", raise_on_unexpected_status=True)
anyone = Client(base_url=url, raise_on_unexpected_status=True)


def check(value, kind):
    assert type(value) is kind, f"{kind.__name__} wanted: {value!r}"
    return value


product = CreateProduct(product_id="client", name="Cap", price_minor=1_500, currency="EUR", total=5)
check(create_product.sync(client=admin, body=product), Product)

basket = CreateReservation(lines=[CreateReservationLine(product_id="client", quantity=2)])
first = create_reservation.sync_detailed(client=customer, body=basket, idempotency_key="basket-1")
held = check(first.parsed, Reservation)
assert held.status is ReservationStatus.HELD and held.total_price_minor == 3_000, held
assert held.expires_at > held.created_at and held.payment_reference is None, held
assert "idempotent-replayed" not in first.headers

again = create_reservation.sync_detailed(client=customer, body=basket, idempotency_key="basket-1")
assert check(again.parsed, Reservation).reservation_id == held.reservation_id
assert again.headers["idempotent-replayed"] == "true"

too_much = CreateReservation(lines=[CreateReservationLine(product_id="client", quantity=4)])
refusal = create_reservation.sync(client=customer, body=too_much, idempotency_key="basket-2")
(short,) = check(refusal, InsufficientStockProblem).lines
assert (short.product_id, short.requested, short.available) == ("client", 4, 3), short
check(list_reservations.sync(client=stranger), UnauthenticatedProblem)

paid = ConfirmReservation(payment_reference="pay_1")
refused = confirm_reservation.sync(held.reservation_id, client=customer, body=paid)
check(refused, ConfirmationNotAllowedProblem)
paid = ConfirmReservation(payment_reference="pay_1", customer_id="client")
order = check(confirm_reservation.sync(held.reservation_id, client=shop, body=paid), Reservation)
assert order.status is ReservationStatus.CONFIRMED and order.payment_reference == "pay_1", order
read = check(get_order.sync(held.reservation_id, client=customer), Reservation)
assert read.confirmed_at == order.confirmed_at and read.lines == held.lines, read
check(list_reservations.sync(client=customer, limit=10), ReservationPage)
left = check(get_product.sync("client", client=anyone), Product)
assert (left.total, left.available) == (5, 3), left

"""Puts products that there are into the requests, and leaves out requests that fit every schema and break a rule that no schema can say: they count as good ones, and are
rightly refused. bad_input.rs sends such requests, and wants the refusal."""

import re

import schemathesis
from schemathesis.generation import GenerationMode


def whole(value):
    """Whether every whole number is written as one: JSON Schema calls 1.0 an integer, too."""
    if isinstance(value, dict):
        return all(whole(item) for item in value.values())
    if isinstance(value, list):
        return all(whole(item) for item in value)
    return not isinstance(value, float)


def sale_ends_after_it_starts(body):
    starts, ends = body.get("sale_starts_at"), body.get("sale_ends_at")
    return starts is None or ends is None


@schemathesis.hook
def filter_case(context, case):
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return True
    body = case.body
    if isinstance(body, dict):
        return whole(body) and sale_ends_after_it_starts(body)
    return True


# As schemathesis.rs makes them.
PRODUCTS = ["many", "many", "few"]


def known(product_id):
    """A product that there is for most ids that could be one, always the same for the same id."""
    if isinstance(product_id, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", product_id, re.ASCII):
        return (PRODUCTS + [product_id])[len(product_id) % 4]
    return product_id


@schemathesis.hook
def map_body(context, body):
    with_lines = ["createReservation", "changeLines"]
    if context.operation.definition.raw.get("operationId") in with_lines and isinstance(body, dict):
        lines = body.get("lines")
        for line in lines if isinstance(lines, list) else []:
            if isinstance(line, dict) and "product_id" in line:
                line["product_id"] = known(line["product_id"])
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if path_parameters and "product_id" in path_parameters:
        path_parameters["product_id"] = known(path_parameters["product_id"])
    return path_parameters

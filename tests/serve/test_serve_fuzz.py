"""Requests made from the OpenAPI document: none is answered with a 500, none outside of it."""

import pytest
import schemathesis
from fake_service import FakeService
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import serve_options

from cwm_jax.serve.app import create_app

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
OPERATIONS = {
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/health"),
    ("GET", "/metrics"),
}


def schema_of(service):
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(service, serve_options()))


def check_replies(operation, mode: GenerationMode, num_examples: int) -> set[int]:
    """Sends that many requests; the statuses that came."""
    statuses = set()

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        reply = case.call()
        statuses.add(reply.status_code)
        case.validate_response(reply, checks=CHECKS)
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        if mode == GenerationMode.NEGATIVE:
            assert 400 <= reply.status_code < 500

    check()
    return statuses


def test_the_document_has_every_path_once(fake):
    operations = [result.ok() for result in schema_of(fake).get_all_operations()]
    assert {(o.method.upper(), o.path) for o in operations} == OPERATIONS
    assert all("422" not in o.definition.raw["responses"] for o in operations)


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_replies_are_those_of_the_document(method, path, tokenizer, model_config):
    service = FakeService(tokenizer, model_config, max_length=256)
    operation = schema_of(service)[path][method]
    statuses = check_replies(operation, GenerationMode.POSITIVE, 150 if method == "POST" else 20)
    assert method == "GET" or {200, 400} <= statuses
    if method == "POST":
        assert check_replies(operation, GenerationMode.NEGATIVE, 150) <= {400, 404, 413}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_replies_of_the_engine_too(path, service):
    check_replies(schema_of(service)[path]["POST"], GenerationMode.POSITIVE, 25)
    assert service.failure is None

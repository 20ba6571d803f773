"""Any body at all is answered, or refused in OpenAI's form; the server goes on."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle import Engine
from tests.serve.bodies import bodies
from tests.serve.conftest import serving, until

PATHS = {
    "/v1/chat/completions": "ChatRequest",
    "/v1/completions": "CompletionRequest",
    "/eagle/trace": "TraceRequest",
}
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
MANY = int(os.environ.get("EAGLE_FUZZ", "10000"))


@pytest.fixture(scope="module")
def site(decoder):
    short = {"default_tokens": 3, "max_choices": 4}
    with Engine(decoder, queue=64) as engine, serving(engine, **short) as made:
        yield made


def asked(site, data, path):
    schemas = asked.schemas = (
        getattr(asked, "schemas", None)
        or (site.ask("GET", "/openapi.json").json["components"]["schemas"])
    )
    body = data.draw(bodies(schemas[PATHS[path]], schemas))
    answer = site.ask("POST", path, json.dumps(body).encode())
    assert answer.status in (200, 400, 404), answer.content
    if answer.status == 200:
        if isinstance(body, dict) and (path == "/eagle/trace" or body.get("stream")):
            assert answer.content.endswith(b"\n\n")
        else:
            assert answer.json["choices"]
    else:
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert answer.error["type"] == "invalid_request_error"
        assert "Traceback" not in answer.error["message"]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_any_body_is_answered_or_refused_in_form(site, path, data):
    asked(site, data, path)


@pytest.mark.fuzz
@pytest.mark.timeout(3000)
@settings(max_examples=MANY, deadline=None, suppress_health_check=CHECKS, derandomize=False)
@given(data=st.data(), path=st.sampled_from(sorted(PATHS)))
def test_many_bodies_are_answered_or_refused_in_form(site, path, data):
    asked(site, data, path)


@pytest.fixture(autouse=True)
def _nothing_is_left(site):
    yield
    until(lambda: site.engine.stats().active == site.engine.stats().waiting == 0)
    assert site.engine.stats().failed == 0
    assert site.chat(temperature=0).status == 200

"""What is refused, and how: OpenAI's form, the field's name, and nothing of this machine."""

from __future__ import annotations

import gc
import json
import socket
import time

import pytest

from eagle import Engine
from tests.serve.conftest import serving, until

TALK = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tempurature": 1}, "tempurature"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"repetition_penalty": 1e-200}, "repetition_penalty"),
        ({"stop": ""}, "stop"),
        ({"stop": "a<eos>"}, "stop"),
        ({"logit_bias": {"64": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "x", "audio": {"id": "1"}}]},
            "messages[0].audio",
        ),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"metadata": {str(number): "" for number in range(101)}}, "metadata"),
        ({f"x{number}": 1 for number in range(101)}, None),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_honoured_is_named(site, fields, param):
    answer = site.chat(**fields)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("field", ["prompt", "echo", "suffix", "best_of"])
def test_what_completions_do_not_do_is_refused(site, field):
    value = {"prompt": [], "echo": True, "suffix": "x", "best_of": 2}[field]
    assert site.complete(**{field: value}).error["param"] == field


def test_too_long_a_prompt_is_told_by_openais_code(site):
    answer = site.complete(prompt="hello " * 200)
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"
    assert "512" in answer.error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 50_000, b'{"messages": NaN}']
)
def test_what_is_no_json_object_is_told_so(site, body):
    answer = site.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


def test_only_json_is_taken(site):
    body = json.dumps({"messages": TALK}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert site.ask("POST", "/v1/chat/completions", body, content_type=kind).status == 415
    good = site.ask(
        "POST", "/v1/completions", b'{"prompt":"a"}', content_type="application/json; charset=utf-8"
    )
    assert good.status == 200


def test_another_model_is_not_here(site):
    answer = site.chat(model="gpt-4o")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert site.chat(model="tiny").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/../etc", 404)],
)
def test_other_addresses_are_refused_in_the_same_form(site, method, path, status):
    answer = site.ask(method, path)
    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"


def test_a_mistake_of_the_servers_own_shows_nothing_of_it(site, monkeypatch, caplog):
    def broken(body):
        raise RuntimeError("in /home/somebody/secret.py")

    monkeypatch.setattr(site.service.intake, "submit", broken)
    answer = site.chat()
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert b"secret" not in answer.content
    until(lambda: "secret" in caplog.text)


def test_nothing_is_said_to_other_origins(site):
    answer = site.ask("OPTIONS", "/v1/chat/completions", None, Origin="http://evil.example")
    assert answer.status == 405
    given = site.ask("GET", "/v1/models", None, Origin="http://evil.example").headers
    assert not any(name.startswith("access-control") for name in given)


def test_a_name_that_resolves_here_is_not_ours(site):
    for host in ("evil.example", "127.0.0.1.evil.example", "127.evil.example:80"):
        assert site.ask("GET", "/v1/models", None, Host=host).status == 403
    assert site.ask("GET", "/v1/models", None, Host=f"127.0.0.1:{site.port}").status == 200
    assert site.ask("GET", "/v1/models", None, Host=f"localhost:{site.port}").status == 200
    assert site.ask("GET", "/v1/models", None, Host=f"[::1]:{site.port}").status == 200


def test_a_request_keeps_its_id_or_gets_one(site):
    assert (
        site.ask("GET", "/health", None, X_Request_Id="mine-1").headers["x-request-id"] == "mine-1"
    )
    first, second = (site.ask("GET", "/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    odd = site.ask("GET", "/health", None, X_Request_Id="a b\tc").headers["x-request-id"]
    assert odd.startswith("req-")


def test_every_request_is_logged_by_its_id_and_no_text_of_it(site, caplog):
    caplog.set_level("INFO", "eagle.serve")
    number = site.chat(messages=[{"role": "user", "content": "swordfish"}]).headers["x-request-id"]
    until(lambda: any(getattr(r, "request", "") == number for r in caplog.records))
    (record,) = [r for r in caplog.records if getattr(r, "request", "") == number]
    assert record.told["status"] == 200
    assert record.told["new_tokens"] > 0
    assert record.told["path"] == "/v1/chat/completions"
    assert "swordfish" not in str(record.__dict__)


def test_a_key_is_asked_for_everywhere_but_for_health(decoder):
    with Engine(decoder) as engine, serving(engine, api_key="s3cret") as site:
        for path in ("/v1/models", "/metrics", "/eagle/info", "/openapi.json"):
            answer = site.ask("GET", path)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            for wrong in ("Bearer s3cre", "Bearer", "s3cret", "Basic s3cret", "Bearer \xff"):
                assert site.ask("GET", path, None, Authorization=wrong).status == 401
            assert site.ask("GET", path, None, Authorization="Bearer s3cret").status == 200
        assert site.chat().status == 401
        assert site.ask("GET", "/health").status == 200
        assert site.ask("GET", "/health", None, Host="probe.example").status == 200


def test_a_body_has_a_longest_length_declared_or_not(decoder):
    with Engine(decoder) as engine, serving(engine, max_body=1000) as site:
        assert site.chat(messages=[{"role": "user", "content": "a" * 2000}]).status == 413
        assert site.chat().status == 200
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
                + b"320\r\n"
                + b"a" * 800
                + b"\r\n"
            )
            raw.sendall(b"320\r\n" + b"a" * 800 + b"\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(decoder):
    with (
        Engine(decoder) as engine,
        serving(engine, stall=0.2) as site,
        socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw,
    ):
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_more_answers_than_one_request_may_have(decoder, monkeypatch):
    with Engine(decoder) as engine, serving(engine, max_choices=4) as site:
        assert site.complete(prompt=["a", "b"], n=3).error["param"] == "n"
        assert site.complete(prompt=["a", "b"], n=2).status == 200
        monkeypatch.setattr("eagle.serve.requests.encode", None)  # nothing becomes tokens before
        assert site.complete(prompt=["a", "b"], n=3).error["param"] == "n"
        assert site.chat(n=5).error["param"] == "n"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"prompt": [-1] * 300_000}, "prompt"),
        ("completions", {"prompt": [[]] * 300_000}, "prompt"),
        ("completions", {"prompt": ["a"] * 129}, "prompt"),
        ("completions", {"prompt": "a", **{f"x{i}": 1 for i in range(100_000)}}, None),
        ("completions", {"prompt": "a", "logit_bias": {str(i): "" for i in range(100_000)}}, "l"),
        ("completions", {"prompt": "a", "metadata": {str(i): 1 for i in range(100_000)}}, "m"),
        ("chat/completions", {"messages": [{}] * 300_000}, "messages[0]"),
        ("chat/completions", {"messages": TALK * 4097}, "messages"),
        ("chat/completions", {"messages": [{str(i): 1 for i in range(100_000)}]}, "messages[0]"),
        ("chat/completions", {"messages": [{**TALK[0], "content": [1] * 300_000}]}, "messages[0]"),
        ("chat/completions", {"messages": TALK, "tools": [1] * 300_000}, "tools"),
        ("chat/completions", {"messages": TALK, "stop": [""] * 300_000}, "stop"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_body_that_is_wrong_all_over_is_refused_as_quickly_as_another(
    site, path, fields, param, request
):
    body = json.dumps(fields).encode()
    taken = []
    gc.freeze()  # as `eagle serve` does once all is loaded: a million objects are not walked over
    request.addfinalizer(gc.unfreeze)
    for _ in range(3):  # the quickest counts: a machine that does something else is slower at all
        began = time.process_time()
        answer = site.ask("POST", f"/v1/{path}", body)
        taken.append(time.process_time() - began)
        if taken[-1] < 1:
            break
    assert min(taken) < 1  # an error for each item took tens of seconds
    assert answer.status == 400
    assert (answer.error["param"] or "").startswith(param or "")
    assert len(answer.content) < 2000

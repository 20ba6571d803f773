"""Connections: heads, chunks and trailers as they come, and requests behind each other."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import suppress

import pytest

from eagle import Engine
from eagle.serve import running
from tests.serve.conftest import serving, until
from tests.serve.wire import Gate, head, sent


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(decoder, monkeypatch):
    monkeypatch.setattr(running, "_KEEP_ALIVE", 0.3)
    with Engine(decoder) as engine, serving(engine) as site:
        for before in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw:
                if before:
                    raw.sendall(before)
                    assert raw.recv(1000).startswith(b"HTTP/1.1 200")
                given = 0
                with suppress(OSError):
                    for byte in b"GET /" + b"a" * 100:
                        raw.sendall(bytes([byte]))
                        given += 1
                        time.sleep(0.05)
                assert given < 60
        # Where the head has come, it is the answer that takes its time.
        gate = Gate()
        engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        threading.Timer(0.6, gate.opened.set).start()
        assert site.chat().status == 200


@pytest.mark.parametrize("loop", [None, "asyncio"])  # uvloop where there is one, and where not
def test_the_second_answer_on_a_connection_does_not_wait_for_an_acknowledgement(decoder, loop):
    with Engine(decoder) as engine, serving(engine, loop=loop) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        body = json.dumps({"prompt": "hello", "stream": True, "max_tokens": 1})
        taken = []
        for _ in range(8):
            connection.request(
                "POST", "/v1/completions", body, {"content-type": "application/json"}
            )
            response = connection.getresponse()
            began = time.perf_counter()  # the head has come, in a packet of its own
            response.readline()
            taken.append(time.perf_counter() - began)
            response.read()
        connection.close()
        assert min(taken[1:]) < 0.02  # by Nagle's algorithm, each comes after 40 ms


@pytest.mark.parametrize("before", [b"GET /", b"GET /health HTTP/1.1\r\nX-Long: "])
def test_a_head_without_an_end_is_not_kept(site, before):
    got, gone = sent(site, before, *[b"a" * 4096] * 4000)
    assert gone < 8 << 20
    assert got == b"" or got.startswith(b"HTTP/1.1 400")


def test_a_head_that_is_a_little_too_long_is_told_so(site):
    got, _ = sent(site, b"GET /health HTTP/1.1\r\nX-Long: ", b"a" * (1 << 16))
    assert got.startswith(b"HTTP/1.1 400")


def test_a_trailer_without_an_end_is_not_kept(site):
    body = b"2\r\n{}\r\n0\r\n"
    got, gone = sent(
        site, head(Transfer_Encoding="chunked") + body, *[b"X-A: " + b"a" * 4096 + b"\r\n"] * 4000
    )
    assert gone < 8 << 20
    assert not got.startswith(b"HTTP/1.1 200")


def test_a_stream_to_a_client_without_chunks_ends_with_the_connection(site):
    for stream in (True, False):
        body = json.dumps({"prompt": "hello", "stream": stream, "max_tokens": 4}).encode()
        got, _ = sent(site, head(version="1.0", Content_Length=len(body)) + body)
        told, _, content = got.partition(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 200")
        assert b"transfer-encoding" not in told
        assert content.endswith(b"data: [DONE]\n\n" if stream else b"}")
        assert content.startswith(b"data: {" if stream else b"{")
        assert b"\r\n" not in content


def test_the_next_request_may_come_before_the_answer_and_has_its_time(decoder, monkeypatch):
    monkeypatch.setattr(running, "_KEEP_ALIVE", 0.3)
    with Engine(decoder) as engine, serving(engine) as site:
        gate = Gate()
        body = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()
        asked = head("/v1/completions", Content_Length=len(body)) + body
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        threading.Timer(0.9, gate.opened.set).start()  # three times what a head may take
        got, _ = sent(site, health + asked + health)
        assert got.count(b"HTTP/1.1 200") == 3
        assert got.count(b'"completion_tokens":2') == 1


def test_a_client_that_would_rather_have_another_protocol_is_answered(site):
    body = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()
    asked = head(Content_Length=len(body), Connection="Upgrade, HTTP2-Settings", Upgrade="h2c")
    last = head(Content_Length=len(body), Connection="close")
    got, _ = sent(site, asked + body, last + body)
    assert got.count(b"HTTP/1.1 200") == 2


def test_a_client_that_asks_for_a_tunnel_is_refused(site):
    got, _ = sent(site, b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")


def test_a_trailer_is_none_of_the_requests_headers(decoder):
    with Engine(decoder) as engine, serving(engine, api_key="secret") as site:
        body = b"%x\r\n%b\r\n0\r\n" % (2, b"{}")
        trailer = b"Authorization: Bearer secret\r\n\r\n"
        asked = head(Transfer_Encoding="chunked", Connection="close")
        got, _ = sent(site, asked + body + trailer)
        assert got.startswith(b"HTTP/1.1 401")


def test_a_body_of_many_chunks_is_read(site):
    body = json.dumps({"prompt": "hello", "max_tokens": 2, "user": "a" * 40_000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    got, _ = sent(site, head(Transfer_Encoding="chunked", Connection="close") + chunks)
    assert got.startswith(b"HTTP/1.1 200")


def test_requests_without_end_before_an_answer_are_not_kept(decoder):
    with Engine(decoder) as engine, serving(engine) as site:
        gate = Gate()
        handle = engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        body = json.dumps({"prompt": "hello", "max_tokens": 2}).encode()
        asked = head(Content_Length=len(body)) + body
        got, gone = sent(site, *[asked * 100] * 1000)
        assert got == b""
        assert gone < 8 << 20
        until(lambda: not site.running.server_state.connections)
        until(lambda: not site.service.live)
        gate.opened.set()
        handle.result(60)


def test_who_leaves_with_requests_behind_the_one_that_is_answered_is_noticed(decoder):
    with Engine(decoder) as engine, serving(engine) as site:
        gate = Gate()
        handle = engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        body = json.dumps({"prompt": "hello", "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw:
            raw.sendall((head(Content_Length=len(body)) + body) * 3)
            until(lambda: engine.stats().waiting == 1)
        until(lambda: engine.stats().cancelled == 1)
        until(lambda: not site.service.live)
        gate.opened.set()
        handle.result(60)
        until(lambda: engine.stats().waiting == 0)
        assert engine.stats().cancelled == 1  # the others were never taken in

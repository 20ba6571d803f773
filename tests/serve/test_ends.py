"""The server's own end, and who is told of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import threading
import time

import pytest

from eagle import Engine
from eagle.errors import EagleError
from eagle.serve import Settings, reserved, running
from tests.serve.conftest import serving, until
from tests.serve.wire import LONG, Gate, head


def test_the_end_waits_for_what_is_under_way(decoder, started):
    with Engine(decoder) as engine, serving(engine, grace=60) as site:
        connection = started(site.port, max_tokens=100)
        until(lambda: engine.stats().active == 1)
        site.running.should_exit = True
        until(lambda: site.service.gate.closing)
        response = connection.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["usage"]["completion_tokens"] == 100


def test_the_end_says_so_where_time_is_up(decoder, started):
    with Engine(decoder) as engine, serving(engine, grace=0.1) as site:
        gate = Gate()
        engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        connection = started(site.port)
        until(lambda: engine.stats().waiting == 1)
        site.running.should_exit = True
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["code"] == "closing"
        gate.opened.set()


def test_the_end_is_told_to_what_is_not_taken_in_yet(decoder, stuck, started):
    with Engine(decoder) as engine, serving(engine, grace=0.1) as site:
        opened = stuck(site)
        connections = [started(site.port) for _ in range(2)]
        until(lambda: len(site.service.taking) == 2)
        site.running.should_exit = True
        for connection in connections:
            response = connection.getresponse()
            assert response.status == 503
            assert json.loads(response.read())["error"]["code"] == "closing"
        opened.set()


def test_the_end_is_told_to_those_who_look_on(decoder, monkeypatch):
    def endless(body, plain):
        while True:
            time.sleep(0.02)
            yield {"type": "cycle"}

    with Engine(decoder) as engine, serving(engine, grace=0.1) as site:
        monkeypatch.setattr(site.service.watcher, "_run", endless)
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        body = json.dumps({"messages": [{"role": "user", "content": "a"}]})
        connection.request("POST", "/eagle/trace", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.readline()
        site.running.should_exit = True
        assert b'"code":"closing"' in response.read()
        connection.close()


def test_the_end_is_told_to_whose_body_still_comes(decoder, caplog):
    with Engine(decoder) as engine, serving(engine, grace=0.1) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "100")
        connection.endheaders(b"{")
        until(lambda: site.service.gate.reading)
        site.running.should_exit = True
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["code"] == "closing"
        connection.close()
    assert not site.service.gate.reading
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_does_not_read_keeps_no_server_from_its_end(decoder, caplog):
    with (
        Engine(decoder) as engine,
        serving(engine, grace=60, stall=60, buffer=4096) as site,
        socket.socket() as raw,
    ):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", site.port))
        body = json.dumps({"prompt": ["hello"] * 100, "stream": True} | LONG).encode()
        raw.sendall(head(Content_Length=len(body)) + body)
        until(lambda: any(one.flow.write_paused for one in site.running.server_state.connections))
        loop = site.running.servers[0].get_loop()
        for _ in range(2):
            loop.call_soon_threadsafe(site.running.handle_exit, 15, None)
        until(loop.is_closed, patience=5)
        assert not site.running.server_state.connections
        assert not site.service.live
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_server_that_is_told_to_end_before_it_serves_ends(decoder):
    made, said = reserved("127.0.0.1", 0), []

    def told(text):
        said.append(text)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # for which nothing runs yet

    before = signal.getsignal(signal.SIGTERM)
    engine = Engine(decoder)
    running.run(engine, Settings(model="tiny"), [made], told=told)
    assert [text.partition(" ")[0] for text in said] == ["serving"]
    assert engine.closed
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_ends_what_would_not_end(decoder, monkeypatch, started, caplog):
    with Engine(decoder) as engine, serving(engine, grace=60) as site:
        entered = threading.Event()

        async def answer(body, request):
            entered.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(site.service, "answer", answer)
        started(site.port)
        assert entered.wait(20)
        loop = site.running.servers[0].get_loop()
        loop.call_soon_threadsafe(site.running.handle_exit, 15, None)
        until(lambda: site.service.gate.closing)
        loop.call_soon_threadsafe(site.running.handle_exit, 15, None)
        until(loop.is_closed, patience=5)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_server_ends_with_what_broke_its_engine(decoder, monkeypatch):
    def lost(until):
        raise EagleError("process 1 is lost")

    monkeypatch.setattr(decoder.loop, "drive", lost)
    engine = Engine(decoder)
    threading.Timer(0.3, engine.submit, ([5],), {"max_new_tokens": 1}).start()
    made = reserved("127.0.0.1", 0)
    with pytest.raises(EagleError, match="process 1 is lost"):
        running.run(engine, Settings(model="tiny"), [made])
    made.close()

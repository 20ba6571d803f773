"""Full queues, and clients that leave, do not read or wait too long."""

from __future__ import annotations

import json
import random
import socket
import threading
import time

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from eagle import Engine
from eagle.serve import running
from tests.serve.conftest import serving, until
from tests.serve.wire import LONG, Gate


def test_a_full_queue_is_told_by_429_and_when_to_come_back(decoder, started):
    with Engine(decoder, queue=2) as engine, serving(engine) as site:
        gate = Gate()
        engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        waiting = [started(site.port, max_tokens=2) for _ in range(2)]
        until(lambda: engine.stats().waiting == 2)
        answer = site.chat()
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        # Several answers are taken in together or not at all.
        for connection in waiting[:1]:
            connection.close()
        until(lambda: engine.stats().cancelled == 1)
        assert site.chat(n=3).status == 429
        gate.opened.set()
        assert waiting[1].getresponse().status == 200
        assert engine.stats().waiting == 0


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_is_cancelled_within_a_cycle(site, started, stream):
    before = site.engine.stats()
    connection = started(site.port, stream=stream)
    until(lambda: site.engine.stats().active == 1)
    if stream:
        connection.getresponse().readline()
    connection.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: site.engine.stats().active == 0)
    after = site.engine.stats()
    assert after.cancelled == before.cancelled + 1
    assert after.tokens - before.tokens < 400
    if not stream:  # its status is none of the server's mistakes
        told = 'eagle_http_requests_total{path="/v1/completions",status="499"} 1.0'
        until(lambda: told in site.ask("GET", "/metrics").content.decode())


def test_whoever_leaves_while_waiting_is_cancelled_too(site, held, started):
    before = site.engine.stats().cancelled
    connections = [started(site.port) for _ in range(8)]
    until(lambda: site.engine.stats().waiting >= 7)
    for connection in connections:
        connection.close()
    until(lambda: site.engine.stats().cancelled == before + 8)


def test_disconnects_at_random_moments_spoil_nobodys_text(site, decoder, started):
    expected = decoder.generate("hello", raw=True, max_new_tokens=40, ignore_eos=True).text
    rng, wrong = random.Random(0), []

    def stay():
        for _ in range(3):
            answer = site.complete(temperature=0, max_tokens=40, ignore_eos=True)
            if answer.json["choices"][0]["text"] != expected:
                wrong.append(answer.content)

    def leave(seed):
        own = random.Random(seed)
        for _ in range(5):
            connection = started(site.port, stream=own.random() < 0.7, n=own.choice([1, 2]))
            time.sleep(own.random() * 0.05)
            connection.close()

    threads = [threading.Thread(target=stay) for _ in range(2)]
    threads += [threading.Thread(target=leave, args=(rng.random(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    until(lambda: site.engine.stats().active == site.engine.stats().waiting == 0)
    until(lambda: not site.service.live)


@pytest.mark.parametrize("protocol", [None, H11Protocol])  # ours says that it is lost
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_noticed_over_any_servers_connection(decoder, started, protocol, stream):
    with Engine(decoder) as engine, serving(engine, protocol=protocol) as site:
        gate = Gate()
        handle = engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        connection = started(site.port, stream=stream)
        until(lambda: engine.stats().waiting == 1)
        connection.close()
        until(lambda: engine.stats().cancelled == 1)
        until(lambda: not site.service.live)
        gate.opened.set()
        handle.result(60)
        assert site.chat().status == 200


def test_whoever_does_not_read_is_cut_off(decoder):
    with Engine(decoder) as engine, serving(engine, stall=0.3, buffer=4096) as site:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", site.port))
        body = json.dumps({"prompt": ["hello"] * 100, "stream": True} | LONG).encode()
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        until(lambda: engine.stats().cancelled > 0)
        until(lambda: not site.service.live)
        assert site.chat().status == 200
        raw.close()


def test_a_request_that_takes_too_long_is_told_so(decoder):
    with Engine(decoder) as engine, serving(engine, timeout=0.2) as site:
        gate = Gate()
        handle = engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(60)
        for stream in (False, True):
            answer = site.chat(stream=stream)
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        gate.opened.set()
        handle.result(60)
        until(lambda: engine.stats().cancelled == 2)


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(site, monkeypatch):
    class Broken:
        any_prefix = True

        def __call__(self, ids, scores):
            if ids.shape[1] > 8:
                raise ValueError("in /home/somebody")
            return scores

    monkeypatch.setattr("eagle.serve.requests._repetition", lambda body: [Broken()])
    content = site.complete(stream=True, temperature=0, max_tokens=40, ignore_eos=True).content
    *events, last = [line[6:] for line in content.decode().split("\n\n") if line]
    assert events
    assert "[DONE]" not in content.decode()
    assert json.loads(last)["error"]["type"] == "invalid_request_error"


def test_a_request_is_late_before_it_is_taken_in_too_and_leaves_nothing(decoder, stuck):
    with Engine(decoder) as engine, serving(engine, timeout=0.2) as site:
        opened = stuck(site)
        for stream in (False, True):
            answer = site.chat(stream=stream)
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        opened.set()
        until(lambda: engine.stats().cancelled == 1)  # the other had not begun
        until(lambda: engine.stats().active == engine.stats().waiting == 0)


def test_who_leaves_before_it_is_taken_in_leaves_nothing(decoder, stuck, started):
    with Engine(decoder) as engine, serving(engine) as site:
        opened = stuck(site)
        connection = started(site.port, stream=True)
        until(lambda: site.service.taking)
        connection.close()
        until(lambda: not site.running.server_state.connections)
        opened.set()
        until(lambda: engine.stats().cancelled == 1)
        until(lambda: not site.service.live)


@pytest.mark.parametrize(
    ("fields", "light"),
    [
        ({}, True),
        ({"prompt": "a" * 5000}, False),
        ({"prompt": ["a", "b"]}, False),
        ({"n": 2}, False),
        ({"structured_outputs": {"choice": ["a"]}}, False),
    ],
)
def test_what_takes_long_to_become_tokens_is_for_a_thread_of_its_own(
    site, monkeypatch, fields, light
):
    by, submit = [], site.service.intake.submit

    def noted(body):
        by.append(threading.current_thread().name)
        return submit(body)

    monkeypatch.setattr(site.service.intake, "submit", noted)
    site.complete(**fields)
    assert [name.startswith("eagle-intake") for name in by] == [not light]


def test_a_whole_answer_that_is_not_read_is_not_kept_for_ever(decoder, monkeypatch):
    monkeypatch.setattr(running, "_KEEP_ALIVE", 0.3)
    with Engine(decoder) as engine, serving(engine, buffer=4096) as site, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", site.port))
        # More than the kernel takes, and less than has the server wait.
        body = json.dumps({"prompt": "hello", "max_tokens": 40, "logprobs": 5, "ignore_eos": True})
        head = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json"
        raw.sendall(
            f"POST /v1/completions HTTP/1.1\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n"
            f"{body}".encode()
        )
        until(lambda: engine.stats().finished == 1)
        until(lambda: not site.running.server_state.connections)

"""Full queues, clients that leave, do not read or wait too long, and the server's own end."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from eagle import Engine
from eagle.errors import EagleError
from eagle.serve import Settings, reserved, running
from tests.serve.conftest import serving, until

LONG = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}


class Gate:
    """A logits processor that holds the engine's thread until it is opened."""

    any_prefix = True

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.entered.set()
        assert self.opened.wait(60)
        return scores


@pytest.fixture
def held(site):
    """Keep the engine busy with a request of its own."""
    gate = Gate()
    handle = site.engine.submit([3], max_new_tokens=1, processors=[gate])
    assert gate.entered.wait(60)
    yield gate
    gate.opened.set()
    handle.result(60)
    until(lambda: site.engine.stats().active == site.engine.stats().waiting == 0)


@pytest.fixture
def started():
    """Send requests and return their connections, which are closed in the end."""
    made = []

    def start(port, **fields):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        made.append(connection)
        body = json.dumps({"prompt": "hello"} | LONG | fields)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        return connection

    yield start
    for connection in made:
        connection.close()


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


@pytest.fixture
def stuck(monkeypatch):
    """Return what has a server's intake wait, as behind a text of many megabytes."""
    opened = threading.Event()

    def stick(site):
        submit = site.service.intake.submit

        def slow(body):
            assert opened.wait(60)
            return submit(body)

        monkeypatch.setattr(site.service.intake, "submit", slow)
        monkeypatch.setattr(site.service.intake, "is_light", lambda body, size: False)
        return opened

    yield stick
    opened.set()


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


def sent(site, *pieces):
    """Return what comes back on a connection of its own until it is closed, and how much went."""
    got, gone = b"", 0
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as raw:
        with suppress(OSError):
            for piece in pieces:
                raw.sendall(piece)
                gone += len(piece)
        with suppress(OSError):
            while piece := raw.recv(1 << 16):
                got += piece
    return got, gone


def head(path="/v1/completions", version="1.1", **named):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    lines = ["Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join([f"POST {path} HTTP/{version}", *lines, "\r\n"]).encode()


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

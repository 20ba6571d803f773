"""A served process for minutes: many clients, many that leave, and one that kills it."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from eagle import Decoder

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(900)]

PROMPTS = ["hello", "once upon a time", "a", "what is the sky made of? " * 4]
LENGTH = 40


def settings(pair):
    """Return the settings of the spec, which a decoder that is asked alone has too."""
    return [
        f"head.weights={pair[1]}",
        "target.dtype=float32",
        "tree={name: chain, depth: 3}",
        "runtime.max_batch=16",
    ]


class Process:
    """``eagle serve`` on the tiny pair."""

    def __init__(self, home, pair, port=0):
        words = ["--port", str(port), "--target", str(home), "--grace", "5"]
        words += [word for setting in settings(pair) for word in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eagle.cli", "serve", *words],
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if found := re.match(r"serving http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
                break
        self.log: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            if '"event": "request"' not in line:
                self.log.append(line)

    def ask(self, number, **fields):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": LENGTH}
        body |= {"ignore_eos": True, "temperature": 1, "seed": number % 16} | fields
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        return connection

    def text(self, number, **fields):
        connection = self.ask(number, **fields)
        try:
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            if not fields.get("stream"):
                return json.loads(content)["choices"][0]["text"]
            events = [line[6:] for line in content.decode().split("\n\n") if line]
            assert events[-1] == "[DONE]"
            return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
        finally:
            connection.close()

    def gauge(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def idle(self):
        end = time.monotonic() + 30
        while self.gauge("eagle_requests_running") or self.gauge("eagle_requests_waiting"):
            assert time.monotonic() < end
            time.sleep(0.05)

    def end(self, kind=signal.SIGTERM):
        self.process.send_signal(kind)
        status = self.process.wait(60)
        self.reader.join()
        self.process.stderr.close()
        return status


@pytest.fixture(scope="module")
def expected(home, pair):
    decoder = Decoder.from_spec("eagle", [f"target.model={home}", *settings(pair)])
    return {
        number: decoder.generate(
            PROMPTS[number % len(PROMPTS)],
            raw=True,
            max_new_tokens=LENGTH,
            ignore_eos=True,
            temperature=1,
            seed=number % 16,
        ).text
        for number in range(16)
    }


def together(count, what):
    failures = []

    def run(number):
        try:
            what(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_five_hundred_leave_at_random_moments_and_nobody_notices(home, pair, expected):
    served = Process(home, pair)

    def leave(number):
        rng = random.Random(number)
        for _ in range(50):
            connection = served.ask(number, stream=rng.random() < 0.7, n=rng.choice([1, 1, 2]))
            if rng.random() < 0.3:
                connection.getresponse().read(rng.randrange(1, 2000))
            time.sleep(rng.random() * 0.2)
            connection.close()

    def client(number):
        if number < 10:
            leave(number)
        for turn in range(10):
            assert (
                served.text(number + turn, stream=turn % 2 == 0) == expected[(number + turn) % 16]
            )

    together(14, client)
    served.idle()
    assert served.gauge(r'eagle_answers_total\{how="cancelled"\}') > 100
    assert served.gauge(r'eagle_answers_total\{how="failed"\}') == 0
    assert served.end() == 0
    assert [line for line in served.log if "error" in line] == []


def test_sixty_four_clients_for_two_minutes_leave_memory_flat(home, pair, expected):
    served = Process(home, pair)
    process, sizes, end = psutil.Process(served.process.pid), [], time.monotonic() + 120
    answered = [0] * 64

    def client(number):
        turn = number
        while time.monotonic() < end:
            assert served.text(turn, stream=turn % 2 == 0) == expected[turn % 16]
            answered[number] += 1
            turn += 7

    def watch():
        while time.monotonic() < end:
            time.sleep(5)
            sizes.append(process.memory_info().rss / 2**20)

    watching = threading.Thread(target=watch)
    watching.start()
    together(64, client)
    watching.join()
    served.idle()
    connections = len(process.net_connections())
    assert served.end() == 0
    print(f"{sum(answered)} answers, MiB: {' '.join(f'{size:.0f}' for size in sizes)}")
    assert min(answered) > 0
    assert connections < 8
    quarter = len(sizes) // 4
    early, late = max(sizes[quarter : 2 * quarter]), max(sizes[-quarter:])
    assert late - early < 16, sizes


def test_a_killed_server_comes_back_on_its_port(home, pair, expected):
    served = Process(home, pair)
    connection = served.ask(0, stream=True, max_tokens=400)
    connection.getresponse().read(100)
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    connection.close()
    again = Process(home, pair, served.port)
    assert again.port == served.port
    assert again.text(3) == expected[3]
    assert again.end() == 0


def test_slow_readers_cost_the_others_nothing(home, pair, expected):
    served = Process(home, pair)
    slow = []
    for _ in range(8):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", served.port))
        body = json.dumps({"prompt": "hello", "stream": True, "max_tokens": 400}).encode()
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        slow.append(raw)

    def client(number):
        for _ in range(5):
            assert served.text(number) == expected[number]

    together(8, client)
    for raw in slow:
        raw.close()
    served.idle()
    assert served.end() == 0

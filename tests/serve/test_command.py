"""``eagle serve`` as a process, ``eagle chat --server``, and what cannot be served."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from eagle.cli import main
from tests.serve.conftest import until


@pytest.fixture
def eagle(capsys):
    """Run the command line in this process; return its status and what it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        return exit_.value.code, *capsys.readouterr()

    return run


def options(home, pair):
    words = ["--target", str(home), "--set", f"head.weights={pair[1]}"]
    return [*words, "--set", "target.dtype=float32", "--set", "tree={name: chain, depth: 3}"]


def test_a_process_tells_what_it_loads_answers_and_ends_when_told(home, pair, decoder):
    words = [sys.executable, "-m", "eagle.cli", "serve", "--port", "0", *options(home, pair)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        # Whatever else is installed may say something first.
        loaded = next(line for line in process.stderr if line.startswith("loaded "))
        serving = process.stderr.readline()
        assert "tiny-model (float32, cpu)" in loaded
        assert re.search(r"spec eagle: head auto, tree chain.* 8 slots.* in \d+\.\d s", loaded)
        port = int(re.match(r"serving http://127\.0\.0\.1:(\d+)/v1", serving)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"prompt": "hello", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({**body, "stream": True}),
            {"content-type": "application/json", "x-request-id": "mine"},
        )
        response = connection.getresponse()
        assert response.status == 200
        process.send_signal(signal.SIGTERM)
        events = [line[6:] for line in response.read().decode().split("\n\n") if line]
        connection.close()
        text = "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])
        expected = decoder.generate("hello", raw=True, max_new_tokens=300, ignore_eos=True)
        assert text == expected.text
        assert process.wait(30) == 0
        *logged, last = process.stderr.read().splitlines()
        assert last == "ended"
        (line,) = [json.loads(line) for line in logged if line.startswith("{")]
        assert line["request_id"] == "mine"
        assert (line["event"], line["status"], line["new_tokens"]) == ("request", 200, 300)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def process(home, pair):
    """Start ``eagle serve`` as a process."""
    made = []

    def start(*words):
        words = [sys.executable, "-m", "eagle.cli", "serve", "--port", "0", *words]
        # Interrupts are ignored by what a shell starts in the background, these tests may be that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            made.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        finally:
            signal.signal(signal.SIGINT, before)
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.wait()
        one.stderr.close()


@pytest.fixture
def opened():
    """Close what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_cut_off_who_is_answered_and_who_waits(process, opened, home, pair, kind):
    server = process(*options(home, pair))
    serving = next(line for line in server.stderr if line.startswith("serving "))
    port = int(re.search(r":(\d+)/v1", serving)[1])

    def ask(method, path, body=None):
        connection = opened.enter_context(
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60))
        )
        sent = json.dumps({"max_tokens": 400, "ignore_eos": True} | body) if body else None
        connection.request(method, path, sent, {"content-type": "application/json"})
        return connection

    path = "/v1/completions"
    answered = ask("POST", path, {"prompt": ["hello"] * 100, "stream": True}).getresponse()
    assert answered.readline().startswith(b"data: {")
    waiting = [ask("POST", path, {"prompt": "hello", "stream": one}) for one in (True, False)]
    told = ask("GET", "/metrics").getresponse().read().decode()
    assert float(re.search(r"^eagle_requests_waiting (\S+)", told, re.M)[1]) > 8
    server.send_signal(kind)
    assert "3 requests under way" in next(line for line in server.stderr if line[0] != "{")
    server.send_signal(kind)
    *events, last = [line[6:] for line in answered.read().decode().split("\n\n") if line]
    assert events
    assert json.loads(last)["error"]["code"] == "closing"
    for connection in waiting:
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["code"] == "closing"
    assert server.wait(30) == 0
    *logged, last = server.stderr.read().splitlines()
    assert last == "ended"
    assert [json.loads(line)["level"] for line in logged] == ["info"] * 3


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_start_and_says_so_by_its_status(process, home, pair, kind, status):
    server = process(*options(home, pair))
    maps = Path(f"/proc/{server.pid}/maps")
    until(lambda: "libtorch" in maps.read_text(), patience=60)  # it is being imported
    server.send_signal(kind)
    assert server.wait(30) == status
    assert "Traceback" not in server.stderr.read()


def test_a_port_in_use_is_told_before_anything_is_loaded(eagle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, _, err = eagle("serve", "--port", str(port), "--target", "nowhere-at-all")
    assert status == 2
    assert err == f"error: port {port} of 127.0.0.1 is in use; choose another with --port\n"


def test_an_address_of_another_machine_is_told_so(eagle):
    status, _, err = eagle("serve", "--host", "192.0.2.1")
    assert (status, err) == (2, "error: --host 192.0.2.1: this machine has no such address\n")


def test_a_missing_extra_is_one_sentence(eagle, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("eagle.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delattr("eagle.serve", raising=False)
    status, _, err = eagle("serve")
    assert status == 2
    assert "fastapi, which is not installed: pip install 'eagle-decoding[serve]'" in err


@pytest.mark.parametrize("key", ["", " ", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(eagle, key):
    status, _, err = eagle("serve", "--port", "0", "--api-key", key)
    assert status == 2
    assert err.startswith("error: --api-key")


@pytest.fixture
def chat(eagle, monkeypatch):
    def run(url, *turns, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(turn + "\n" for turn in turns)))
        return eagle("chat", "--server", url, "--max-new-tokens", "8", *options)

    return run


def test_a_chat_with_a_server_keeps_the_turns_before(chat, site, decoder):
    status, out, err = chat(site.url, "hello", "and now")
    assert status == 0
    first = decoder.generate("hello", max_new_tokens=8).text
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and now"},
    ]
    assert out.splitlines() == [first, decoder.generate(talk, max_new_tokens=8).text]
    assert len(re.findall(r"^8 tokens · .* tokens/s · tau \d\.\d\d · first text", err, re.M)) == 2


@pytest.mark.parametrize("seed", [0, 7])
def test_a_chat_with_a_server_is_repeated_by_its_seed(seed, chat, site):
    options = ("--temperature", "1.5", "--seed", str(seed))
    (status, first, _), (_, again, _) = (chat(site.url, "hello", options=options) for _ in range(2))
    assert status == 0
    assert again == first


def test_a_chat_ends_where_the_server_refuses_or_is_not_there(chat, site):
    status, _, err = chat(site.url, "hello " * 200)
    assert status == 2
    assert "answers 400: this model's maximum context length" in err
    status, _, err = chat("http://127.0.0.1:9", "hello")
    assert status == 2
    assert "does not answer" in err
    status, _, err = chat(site.url, "hello", options=("--target", "x"))
    assert (status, "--target does not go with --server" in err) == (2, True)
    until(lambda: site.engine.stats().active == 0)

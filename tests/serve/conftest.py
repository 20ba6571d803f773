"""A server on the tiny pair, in a thread of the tests' process, as clients would find it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

import pytest

from eagle import Decoder, Engine
from eagle.serve import Settings, create_app, reserved
from eagle.serve.app import Service
from eagle.serve.running import Running
from eagle.target import load_target
from tests.docs.conftest import letters_tokenizer
from tests.serve.wire import LONG, Gate


@dataclass
class Site:
    """A server that runs."""

    engine: Engine
    service: Service
    running: Running
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Ask as plainly as can be; bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"content-type": "application/json"} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, given | named)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    def chat(self, **fields: Any) -> Answer:
        """Ask for a chat."""
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8} | fields
        return self.ask("POST", "/v1/chat/completions", body)

    def complete(self, **fields: Any) -> Answer:
        """Ask for a completion."""
        return self.ask("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 8} | fields)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.content.decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


@contextmanager
def serving(
    engine: Engine,
    *,
    buffer: int | None = None,
    loop: str | None = None,
    protocol: Any = None,
    **settings: Any,
):
    """Run a server in a thread, with so many bytes of a connection on their way at most.

    Its event loop is what it would be, or the one by a name of uvicorn's; its connections are its
    own, or uvicorn's.
    """
    service = Service(engine, replace(Settings(model="tiny"), **settings))
    running = Running(service, create_app(engine, service=service), lambda text: None)
    running.config.loop = loop or running.config.loop
    running.config.http = protocol or running.config.http
    socket = reserved("127.0.0.1", 0)
    if buffer:
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, buffer)
    socket.listen(100)
    thread = threading.Thread(target=running.run, args=([socket],))
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Site(engine, service, running, socket.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def home(pair, tmp_path_factory):
    """The tiny target's folder, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("served") / "tiny-model"
    pair[0].model.save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder(home, pair, spec):
    made = spec(target={"model": str(home), "dtype": "float32"}, runtime={"max_batch": 4})
    return Decoder.from_spec(made, target=load_target(made.target))


@pytest.fixture(scope="module")
def site(decoder):
    with Engine(decoder, queue=64) as engine, serving(engine) as made:
        yield made


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


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch):
    monkeypatch.delenv("EAGLE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def until(true, patience: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)

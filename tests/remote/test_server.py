"""Asking servers that answer, refuse, leave, or are none."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from eagle.errors import RemoteError
from eagle.remote import Server


@pytest.fixture
def other(monkeypatch):
    """A server that answers as it is told, and keeps what it was asked."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("EAGLE_API_KEY", raising=False)

    class Handler(BaseHTTPRequestHandler):
        answer = (200, b"{}")
        asked: list = []  # noqa: RUF012 - of this one class

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.asked.append((self.path, self.headers.get("authorization"), body))
            status, content = self.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        Handler.url = f"http://127.0.0.1:{server.server_port}"
        yield Handler
        server.shutdown()
        thread.join()


def test_a_body_goes_out_with_the_key_and_an_answer_comes_back(other):
    other.answer = (200, b'{"a": 1}')
    assert Server(other.url, "k").post("/completions", {"b": 2}) == {"a": 1}
    assert Server(other.url + "/v1/").get("/models") == {"a": 1}
    assert other.asked == [
        ("/v1/completions", "Bearer k", b'{"b": 2}'),
        ("/v1/models", None, b""),
    ]


def test_a_stream_is_given_event_by_event(other):
    other.answer = (200, b': a comment\n\ndata: {"a": 1}\n\ndata: {"a": 2}\n\ndata: [DONE]\n\n')
    assert list(Server(other.url).stream("/x", {})) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (400, b'{"error": {"message": "no x", "param": "x"}}', "answers 400: no x"),
        (502, b"<html>", "answers 502: <html>"),
        (500, b"", "no reason given"),
        (200, b"x", "no JSON"),
        (200, b"[]", "no object"),
    ],
)
def test_a_refusal_is_one_sentence(other, status, content, told):
    other.answer = (status, content)
    with pytest.raises(RemoteError, match=told):
        Server(other.url).post("/x", {})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'data: {"error": {"message": "it broke"}}\n\n', "it broke"),
        (b'data: {"a": 1}\n\n', "in the middle of its answer"),
    ],
)
def test_a_stream_that_breaks_says_so(other, content, told):
    other.answer = (200, content)
    with pytest.raises(RemoteError, match=told):
        list(Server(other.url).stream("/x", {}))


def test_nobody_there_and_no_url():
    with pytest.raises(RemoteError, match="does not answer"):
        Server("http://127.0.0.1:9").get("/models")
    for url in ("ftp://x", "", "http://", "http://x:y", "http://a b", "http://x/\x7f"):
        with pytest.raises(RemoteError, match=r"a server is given as in|is no URL"):
            Server(url)


def test_a_server_without_models(other):
    other.answer = (200, b'{"data": []}')
    with pytest.raises(RemoteError, match="no model"):
        Server(other.url).model()

"""Events of a stream: what is prepared says what would be written anew, and goes the short way."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.h11_impl import H11Protocol

from eagle import Engine
from eagle.decoding import Event, Piece
from eagle.serve.connections import Connection
from eagle.serve.forms import ChatForm, TextForm
from eagle.serve.requests import Asked
from eagle.serve.streaming import Stream, sse
from eagle.serve.tokens import TokenTexts
from tests.serve.conftest import serving, until

LONG = {"max_tokens": 60, "ignore_eos": True, "temperature": 0}


def said(*texts):
    return Event(0, (5,) * len(texts), tuple(Piece(text, drafted=False) for text in texts))


@given(
    kind=st.sampled_from([ChatForm, TextForm]),
    model=st.text(max_size=20),
    usage=st.booleans(),
    index=st.integers(0, 127),
    texts=st.lists(st.text(st.characters(), max_size=6), max_size=4),
)
def test_a_prepared_event_is_what_the_form_would_write(kind, model, usage, index, texts):
    form = kind(model, "eagle-0", TokenTexts(None))
    stream = Stream(form, Asked([None] * 128, []), dict, usage=usage)
    stream._written([(index, said("first"))])
    event = said(*texts)
    choice = form.piece(index, event)
    more = {"usage": None} if usage else {}
    expected = sse(form.chunk([choice], **more)) if choice else b""
    for _ in range(2):
        assert stream._written([(index, event)]) == expected
        assert stream._written([(index, event), (index, event)]) == 2 * expected


@pytest.mark.parametrize("named", ["return_token_ids", "return_pieces"])
def test_what_is_more_than_text_is_in_every_event(site, decoder, named):
    events = site.chat(**LONG, stream=True, **{named: True}).events
    key = {"return_token_ids": "token_ids", "return_pieces": "pieces"}[named]
    told = [e["choices"][0][key] for e in events if key in e["choices"][0]]
    alone = decoder.generate("hello", max_new_tokens=60, ignore_eos=True)
    assert len(told) > 3
    if named == "return_token_ids":
        assert [token for tokens in told for token in tokens] == list(alone.tokens)
    else:
        assert "".join(piece["text"] for pieces in told for piece in pieces) == alone.text


@pytest.fixture
def straight(monkeypatch):
    """Note what is sent the short way, and what could not be."""
    found, own = [], Connection.straight

    def noted(self, piece):
        found.append((piece, own(self, piece)))
        return found[-1][1]

    monkeypatch.setattr(Connection, "straight", noted)
    return found


def test_events_go_the_short_way_and_come_whole(site, straight):
    content = site.chat(**LONG, stream=True).content
    assert len(straight) > 3
    assert all(sent for _, sent in straight)
    assert b"".join(piece for piece, _ in straight) + b"data: [DONE]\n\n" == content


def test_another_servers_connection_has_all_events_too(decoder):
    with Engine(decoder) as engine, serving(engine) as site:
        expected = site.chat(**LONG, stream=True).events
    with Engine(decoder) as engine, serving(engine, protocol=H11Protocol) as site:
        found = site.chat(**LONG, stream=True).events
    texts = [
        "".join(e["choices"][0]["delta"].get("content", "") for e in x) for x in (expected, found)
    ]
    assert texts[0] == texts[1] != ""


def test_who_reads_slowly_and_in_time_has_every_event(decoder, straight):
    body = {"prompt": ["hello"] * 16, "stream": True, "logprobs": 5, **LONG}
    with Engine(decoder) as engine, serving(engine, stall=20, buffer=4096) as site:
        expected = {}
        for event in site.complete(**body).events:
            for choice in event["choices"]:
                expected[choice["index"]] = expected.get(choice["index"], "") + choice["text"]
        straight.clear()
        asked = json.dumps(body).encode()
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(asked)}"
        with socket.socket() as raw:
            # Not as small as can be: the kernel then drops packets, and waits longer each time.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            raw.connect(("127.0.0.1", site.port))
            raw.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + asked)
            until(lambda: any(not sent for _, sent in straight))
            got = b""
            while not got.endswith(b"\r\n0\r\n\r\n"):
                piece = raw.recv(1 << 16)
                assert piece
                got += piece
        content = b""
        rest = got.partition(b"\r\n\r\n")[2]
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        found = {}
        for line in content.decode().split("\n\n"):
            for choice in json.loads(line[6:])["choices"] if "{" in line else ():
                found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
        assert content.endswith(b"data: [DONE]\n\n")
        assert found == expected

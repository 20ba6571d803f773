"""What `scripts/measure-serve --clients` compares is one queue, and its table says what came."""

from __future__ import annotations

import json
import queue
import threading
import time
from argparse import Namespace
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eagle import Decoder, Engine
from measure_serve.asking import apart
from measure_serve.crowd import Answers, Crowd, crowds, in_order, model_at
from measure_serve.figures import many_json, many_lines, of_neighbours
from measure_serve.inside import asked_by_clients, counted, whole_queue
from measure_serve.many import answers, check_room, queue_of, rounds
from measure_serve.sites import serving

ABOUT = {"clients": 2, "each": 1, "tokens": 4, "temperature": 0.0}


class Theirs(BaseHTTPRequestHandler):
    """Another's server: as vLLM, it counts drafts in /metrics, and tells usage at the end."""

    protocol_version = "HTTP/1.1"
    wbufsize = 0

    def do_GET(self):
        given = json.dumps({"data": [{"id": "theirs"}]})
        if self.path == "/metrics":
            drafts = 3 * len(self.server.asked)
            given = f'vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}.0\n'
            given += f'vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {2 * drafts}.0\n'
        self._send(given.encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(0.05)
        if asked["model"] != "theirs":
            self._send(b"who?", 404)
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        usage = {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}
        for event in ({"choices": [{"delta": {"content": "a"}}]}, usage):
            self._chunk(f"data: {json.dumps(event)}\n\n".encode())
        self._chunk(b"data: [DONE]\n\n")
        with self.server.lock:
            self.server.now -= 1
        self._chunk(b"")

    def _chunk(self, some):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(some), some))

    def _send(self, given, status=200):
        self.send_response(status)
        self.send_header("content-length", str(len(given)))
        self.end_headers()
        self.wfile.write(given)

    def log_message(self, *said):
        pass


@contextmanager
def theirs():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Theirs)
    server.asked, server.now, server.most, server.lock = [], 0, 0, threading.Lock()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(order):
    """Ask by clients that are threads of this process."""
    orders, results = queue.Queue(), queue.Queue()
    orders.put(order)
    orders.put(None)
    crowds(orders, results)
    return results.get_nowait()


def test_clients_take_the_queue_in_turns_and_say_what_another_server_counts():
    with theirs() as server:
        port = server.server_port
        assert model_at(port) == "theirs"
        order = Crowd(port, tuple("abcdefg"), 5, clients=3, temperature=0.5, model="theirs")
        found = asked(order)
    assert sorted(one["messages"][0]["content"] for one in server.asked) == list("abcdefg")
    assert {one["temperature"] for one in server.asked} == {0.5}
    assert server.most == 3
    assert found.tokens == 35
    assert len(found.firsts) == 7
    assert all(0.05 <= first <= found.seconds for first in found.firsts)
    assert (found.steps, found.accepted) == (21, 42)
    assert found.tau == 3


def test_a_server_that_refuses_is_a_failure_also_from_a_process_of_its_own():
    with theirs() as server:
        order = Crowd(server.server_port, ("a",), 5, clients=1, model="another")
        with pytest.raises(RuntimeError, match="404"):
            asked(order)
        with apart(crowds) as ask, pytest.raises(RuntimeError, match="clients have failed"):
            ask(order)


def test_the_server_answers_what_the_engine_does(decoder):
    prompts = ("hello", "one more", "and a third")
    with Engine(decoder) as engine:
        alone = whole_queue(engine, prompts, 6, 0.0)
        inside = counted(engine, lambda: asked_by_clients(engine, prompts, 6, 0.0, 2))
        with serving(engine) as port:
            served = asked(Crowd(port, prompts, 6, clients=2, model=model_at(port)))
    assert alone.tokens == inside.tokens == served.tokens == 18
    for one in (inside, served):
        assert (alone.steps, alone.accepted) == (one.steps, one.accepted)
        assert len(one.firsts) == 3
        assert all(0 < first < one.seconds for first in one.firsts)
    assert inside.steps / 2 <= inside.cycles <= inside.steps
    assert alone.tau > 1


def test_an_engine_in_process_is_asked_by_so_many_at_a_time_who_ask_again_when_answered(decoder):
    under_way = []

    class Counting(Engine):
        def submit(self, *args, **how):
            handle = super().submit(*args, **how)
            under_way.append(1 + sum(not one.done for one in self.asked))
            self.asked.append(handle)
            return handle

    with Counting(decoder) as engine:
        engine.asked = []
        found = asked_by_clients(engine, "abcdefg", 5, 0.0, 3)
    assert max(under_way) == 3
    assert len(engine.asked) == 7
    assert found.tokens == 35


def test_who_does_not_answer_in_time_is_not_waited_for():
    with theirs() as server:
        port = server.server_port
        assert answers(port, time.perf_counter())
    assert not answers(port, time.perf_counter() + 0.1)


def test_each_client_has_as_many_prompts():
    given = Namespace(prompts=None, clients=5, each=7)
    assert len(queue_of(given)) == 35
    assert len(set(queue_of(given)[:5])) == 5


def test_rounds_begin_and_end_with_the_engine_and_none_begins_too_late():
    asked = []

    def way(name):
        return lambda: asked.append(name) or Answers(1.0, len(asked))

    ways = {name: way(name) for name in "ABC"}
    found = rounds(ways, 2, time.perf_counter() + 60, bases=2)
    assert "".join(asked) == "ABC" + "ABCABCAB"
    assert [one.tokens for one in found["C"]] == [6, 9]
    late = rounds(ways, 2, time.perf_counter() - 1)
    assert [len(some) for some in late.values()] == [2, 1, 1]


def test_a_round_is_held_against_its_neighbours_by_either_way_of_the_engines():
    engine = [Answers(1, 100), Answers(1, 300), Answers(1, 100)]
    inside = [Answers(1, 100, cycles=10), Answers(1, 100, cycles=20), Answers(1, 300, cycles=10)]
    server = [
        Answers(1, 100, (0.1, 0.3, 0.2), 50, 25, cycles=100),
        Answers(1, 300, (0.4,), 50, 50, cycles=50),
    ]
    assert of_neighbours(server, engine) == [0.5, 1.5]
    found = {"A": engine, "I": inside, "B": server}
    lines = many_lines(found, ["A", "I"], ABOUT)
    assert lines[1].startswith("|  | rounds | tokens/s | of A | of I | tau |")
    assert lines[3] == "| A | 3 | 100 (100 to 300) |  |  | 1.00 |  |  |  |  |"
    assert lines[4] == (
        "| I | 3 | 100 (100 to 300) | 0.500 (0.500 to 0.500) |  | 1.00 "
        "| 100.00 (50.00 to 100.00) | 0.0 (0.0 to 0.0) |  |  |"
    )
    assert lines[5] == (
        "| B | 2 | 200 (100 to 300) | 1.000 (0.500 to 1.500) | 1.250 (1.000 to 1.500) | 1.75 "
        "| 15.00 (10.00 to 20.00) | 0.8 (0.5 to 1.0) | 300 (200 to 400) | 200 (200 to 200) |"
    )
    told = json.loads(many_json(found, ["A", "I"], ABOUT))
    assert told["ways"]["B"]["of_neighbours"] == {"A": [0.5, 1.5], "I": [1.0, 1.5]}
    assert told["ways"]["I"]["of_neighbours"] == {"A": [0.5, 0.5]}
    assert told["ways"]["A"]["of_neighbours"] == {}
    assert told["ways"]["B"]["rounds"][1]["rate"] == 300


def test_without_an_engine_nobody_is_held_against_it():
    (line,) = many_lines({"B": [Answers(1, 100)]}, (), ABOUT)[3:]
    assert line == "| B | 1 | 100 (100 to 100) | 1.00 |  |  |  |  |"


def test_first_tokens_stand_in_the_order_in_which_they_were_asked_for():
    assert in_order([(3.0, 0.1), (1.0, 0.4), (2.0, 0.2)]) == (0.4, 0.2, 0.1)


def test_a_prompt_without_room_for_its_answer_is_told_before_anything_is_asked(pair, spec):
    decoder = Decoder.from_spec(spec(runtime={"max_length": 16}), target=pair[0])
    check_room(decoder, [[3, 5], [7] * 12], 4)
    with pytest.raises(SystemExit, match=r"prompt 2 has 13 tokens, and .* 16 leave 12 for one"):
        check_room(decoder, [[3, 5], [7] * 13], 4)

"""What `scripts/measure-serve` compares is the same work, and its figures are what they say."""

from __future__ import annotations

import logging
import queue
import threading

import pytest

from measure_serve.asking import Order, clients
from measure_serve.figures import First, Whole, batch_lines, first_lines, interval
from measure_serve.main import (
    BARE,
    ENGINE,
    HELLO,
    KEPT,
    OWN,
    Noting,
    Ways,
    loop_name,
    opened,
    turns,
)


@pytest.fixture(scope="module")
def ways(decoder):
    """Ways to be answered by the tiny pair, whose clients are a thread here."""
    orders, results = queue.Queue(), queue.Queue()
    asking = threading.Thread(target=clients, args=(orders, results))
    asking.start()

    def ask(order: Order):
        orders.put(order)
        return results.get(timeout=60)

    with Noting(decoder) as engine, opened(engine) as ports:
        yield Ways(engine, ask, ports), engine
        orders.put(None)
        asking.join(60)


def test_all_ways_ask_an_engine_for_the_same_and_one_asks_none(ways):
    asking, engine = ways
    told = {}
    for name in (ENGINE, KEPT, OWN, BARE):
        found = asking.first(name)
        result = engine.last.result()
        told[name] = (tuple(result.prompt_tokens), tuple(result.tokens))
        assert 0 < found.within < found.seconds
    assert len(set(told.values())) == 1
    before = engine.last
    assert asking.first(HELLO).within == 0
    assert engine.last is before


def test_a_batch_is_answered_whole_by_all_ways(ways):
    asking, engine = ways
    for name in (ENGINE, OWN, BARE):
        before = engine.stats()
        found = asking.whole(3, 4, name)
        after = engine.stats()
        assert after.tokens - before.tokens == 12
        assert after.finished - before.finished == 3
        assert found.seconds > 0
        assert (found.asking > 0) == (name != ENGINE)
        assert (found.serving > 0) == (name != ENGINE)
        assert found.serving < found.spent


def test_each_round_asks_every_way_once_and_the_first_is_left_out():
    asked = []
    found = turns(["a", "b", "c"], lambda name: asked.append(name) or len(asked), 4)
    assert [len(times) for times in found.values()] == [4, 4, 4]
    assert min(min(times) for times in found.values()) == 4
    assert all(
        sorted(asked[place : place + 3]) == ["a", "b", "c"] for place in range(0, len(asked), 3)
    )
    assert len({tuple(asked[place : place + 3]) for place in range(0, len(asked), 3)}) > 1


def test_what_a_server_adds_is_the_median_of_differences_within_rounds_with_nothing_taken_off():
    engine = [First(0.100, 0.098), First(0.300, 0.298), First(0.200, 0.198)]
    server = [First(0.105, 0.099), First(0.304, 0.299), First(0.203, 0.198)]
    hello = [First(0.001)] * 3
    lines = first_lines({"engine": engine, "server": server, "hello": hello}, "engine", "hello")
    assert "first token by engine 200.00 ms" in lines[0]
    assert "outside its pass 2.00 ms" in lines[0]
    assert "outside the pass +3.00 ms (+3.00 to +4.00)" in lines[1]
    assert "all in all +4.00 ms (+3.00 to +5.00)" in lines[1]
    assert "1.00 ms" in lines[2]


def test_a_batchs_clients_are_told_beside_what_the_server_lost():
    engine = [Whole(1.0, 2.0), Whole(2.0, 4.0)]
    server = [Whole(1.25, 2.2, 0.1, 0.11), Whole(2.5, 4.4, 0.2, 0.22)]
    lines = batch_lines({"engine": engine, "server": server}, "engine", 300)
    assert "engine 200.0 tokens/s" in lines[0]
    assert "lost 20.00 %" in lines[1]
    assert "processor time +10.00 %" in lines[2]
    assert "threads 5.00 %" in lines[2]
    assert "beside it 5.00 %" in lines[2]


def test_an_interval_holds_the_median_and_narrows_with_what_is_known():
    few = list(range(9))
    many = few * 25
    assert interval(few)[0] < 4 < interval(few)[1]
    assert interval(many)[1] - interval(many)[0] < interval(few)[1] - interval(few)[0]


def test_servers_that_are_measured_log_no_requests():
    log = logging.getLogger("uvicorn.access")
    before = list(log.handlers)
    assert loop_name() in ("asyncio", "uvloop")
    assert log.handlers == before

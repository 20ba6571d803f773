"""Requests that come at any time, from threads and tasks, and what their handles say."""

import asyncio
import copy
import gc
import random
import threading
import time
import weakref

import pytest

from eagle import Decoder, Engine, SamplingParams
from eagle.errors import (
    CancelledError,
    ClosedError,
    CopyError,
    EagleError,
    QueueFullError,
    RequestError,
)
from eagle.plugin import Law, RankRates, Topology
from eagle_plugins.attention.auto import Auto
from eagle_plugins.trees import narrowing
from eagle_plugins.trees.narrowing import NarrowingTree
from tests.runtime.test_runtime import Replays

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9, 11], [3 + i % 61 for i in range(60)]]
LONG = {"max_new_tokens": 40, "ignore_eos": True}
PATIENCE = 60


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])


@pytest.fixture(scope="module")
def expected(decoder):
    return [decoder.generate(prompt, **LONG).tokens for prompt in PROMPTS]


@pytest.fixture
def engine(decoder):
    with Engine(decoder) as made:
        yield made


class Gate:
    """A logits processor that holds the engine's thread until it is opened."""

    any_prefix = True

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return scores


@pytest.fixture
def gate(engine):
    """Keep the engine at a request of its own, so that what is submitted meanwhile waits."""
    made = Gate()
    made.handle = engine.submit([3], max_new_tokens=1, processors=[made])
    assert made.entered.wait(PATIENCE)
    yield made
    made.opened.set()


def test_threads_and_a_decoders_own_calls_are_all_answered_right(engine, decoder, expected):
    found, rng = [], random.Random(0)
    kept = threading.Lock()

    def ask(numbers):
        for number in numbers:
            if number % 4 == 3:
                tokens = decoder.generate(PROMPTS[number % 5], **LONG).tokens
            else:
                tokens = engine.submit(PROMPTS[number % 5], **LONG).result(PATIENCE).tokens
            with kept:
                found.append((number % 5, tokens))
            time.sleep(rng.random() / 200)

    threads = [threading.Thread(target=ask, args=(range(n, n + 6),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(tokens == expected[number] for number, tokens in found)


def test_a_handle_gives_its_events_to_everybody_who_asks(engine, expected):
    handle = engine.submit(PROMPTS[0], SamplingParams(**LONG))
    events = list(handle)
    assert tuple(token for event in events for token in event.tokens) == expected[0]
    assert [event.result for event in events[:-1]] == [None] * (len(events) - 1)
    assert list(handle) == events
    assert handle.done
    assert handle.result(0) is events[-1].result
    assert handle.seed == handle.result().seed
    stats = handle.result().stats
    assert 0 <= stats.queued < PATIENCE
    assert 0 < stats.time_to_first_token <= stats.seconds


def test_tasks_submit_iterate_and_await(engine, expected):
    async def one(number):
        handle = engine.submit(PROMPTS[number], **LONG)
        tokens = []
        async for event in handle:
            tokens += event.tokens
        result = await handle
        assert result.tokens == tuple(tokens)
        return result.tokens

    async def all_of_them():
        return await asyncio.gather(*(one(number % 5) for number in range(12)))

    found = asyncio.run(all_of_them())
    assert found == [expected[number % 5] for number in range(12)]


def test_an_engine_is_a_context_for_tasks(decoder, expected):
    async def run():
        async with Engine(decoder) as engine:
            handle = engine.submit(PROMPTS[1], **LONG)
        assert engine.closed
        return await handle

    assert asyncio.run(run()).tokens == expected[1]


def test_a_task_that_gives_up_cancels_nothing_and_leaves_nothing(engine, gate, expected):
    async def run():
        handle = engine.submit(PROMPTS[1], **LONG)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.05)
        assert not handle._wakers
        gate.opened.set()
        return await handle

    assert asyncio.run(run()).tokens == expected[1]


def test_who_waits_for_the_result_is_not_woken_by_every_event(engine, gate, expected):
    async def run():
        woken, loop = [], asyncio.get_running_loop()
        call = loop.call_soon_threadsafe
        handle = engine.submit(PROMPTS[1], **LONG)
        waiting = asyncio.ensure_future(handle._awaited())
        await asyncio.sleep(0)
        loop.call_soon_threadsafe = lambda *given: woken.append(given) or call(*given)
        gate.opened.set()
        result = await waiting
        assert len([event async for event in handle]) > 2
        assert len(woken) == 1
        return result.tokens

    assert asyncio.run(run()) == expected[1]


def test_waiting_ends_when_its_time_is_over(engine, gate, expected):
    handle = engine.submit(PROMPTS[0], **LONG)
    with pytest.raises(TimeoutError, match="goes on"):
        handle.result(0.02)
    gate.opened.set()
    assert handle.result(PATIENCE).tokens == expected[0]


def test_who_cancels_is_told_at_once_and_others_are_answered(engine, gate, expected):
    handles = [engine.submit(prompt, **LONG) for prompt in PROMPTS]
    assert handles[1].cancel()
    assert not handles[1].cancel(), "it is over"
    for ask in (handles[1].result, lambda: list(handles[1])):
        with pytest.raises(CancelledError, match="cancelled before it was answered"):
            ask()
    gate.opened.set()
    for number in (0, 2, 3, 4):
        assert handles[number].result(PATIENCE).tokens == expected[number]
    assert not handles[0].cancel()
    assert handles[0].result().tokens == expected[0]
    assert engine.stats().cancelled == 1


def test_a_request_that_is_cancelled_frees_its_slot_within_a_cycle(engine, decoder):
    handle = engine.submit(PROMPTS[0], max_new_tokens=400, ignore_eos=True)
    next(iter(handle))
    handle.cancel()
    before = decoder.loop.cycles
    end = time.monotonic() + PATIENCE
    while decoder.loop.busy and time.monotonic() < end:
        time.sleep(0.001)
    assert not decoder.loop.busy
    assert decoder.loop.cycles <= before + 1


def test_a_full_queue_is_an_error_until_somebody_is_answered(decoder, expected):
    gate = Gate()
    with Engine(decoder, queue=2) as engine:
        engine.submit([3], max_new_tokens=1, processors=[gate])
        assert gate.entered.wait(PATIENCE)
        handles = [engine.submit(PROMPTS[0], **LONG) for _ in range(2)]
        with pytest.raises(QueueFullError, match=r"2 requests wait for a slot.*queue"):
            engine.submit(PROMPTS[0], **LONG)
        assert engine.stats().waiting == 2
        gate.opened.set()
        assert [handle.result(PATIENCE).tokens for handle in handles] == [expected[0]] * 2
        assert engine.submit(PROMPTS[1], **LONG).result(PATIENCE).tokens == expected[1]


def test_a_request_that_fails_fails_alone(engine, expected):
    def clumsy(ids, scores):
        if ids.shape[1] > len(PROMPTS[1]) + 4:
            raise ValueError("no such word")
        return scores

    handles = [
        engine.submit(prompt, **LONG, processors=[clumsy] if number == 1 else None)
        for number, prompt in enumerate(PROMPTS)
    ]
    with pytest.raises(RequestError, match="clumsy raised ValueError: no such word"):
        handles[1].result(PATIENCE)
    for number in (0, 2, 3, 4):
        assert handles[number].result(PATIENCE).tokens == expected[number]
    found = engine.stats()
    assert (found.failed, found.finished) == (1, 4)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_keeps_what_was_finished_and_answers_or_cancels_the_rest(drain, decoder, expected):
    engine = Engine(decoder)
    first = engine.submit(PROMPTS[0], **LONG)
    assert first.result(PATIENCE).tokens == expected[0]
    gate = Gate()
    engine.submit([3], max_new_tokens=1, processors=[gate])
    assert gate.entered.wait(PATIENCE)
    rest = [engine.submit(prompt, **LONG) for prompt in PROMPTS[1:]]
    closing = threading.Thread(target=engine.close, args=(drain,))
    closing.start()
    while not engine.closed:
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="the engine was closed"):
        engine.submit(PROMPTS[0])
    gate.opened.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert first.result().tokens == expected[0]
    if drain:
        assert [handle.result(0).tokens for handle in rest] == expected[1:]
    else:
        for handle in rest:
            with pytest.raises(CancelledError):
                handle.result(PATIENCE)
    engine.close()
    assert decoder.generate(PROMPTS[0], **LONG).tokens == expected[0]


def test_an_exception_in_its_block_cancels_what_is_left(decoder):
    handles = []

    def use():
        with Engine(decoder) as engine:
            handles.append(engine.submit(PROMPTS[0], max_new_tokens=400, ignore_eos=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    with pytest.raises(CancelledError):
        handles[0].result(PATIENCE)


def test_whatever_ends_the_thread_reaches_every_handle(decoder, expected, monkeypatch):
    engine, gate = Engine(decoder), Gate()
    first = engine.submit([3], max_new_tokens=1, processors=[gate])
    assert gate.entered.wait(PATIENCE)
    rest = [engine.submit(prompt, **LONG) for prompt in PROMPTS]

    def broken(until):
        raise SystemError("by a bug")

    monkeypatch.setattr(decoder.loop, "drive", broken)
    gate.opened.set()
    for handle in rest:
        with pytest.raises(SystemError, match="by a bug"):
            handle.result(PATIENCE)
    assert first.done
    with pytest.raises(ClosedError, match="the engine broke: SystemError: by a bug"):
        engine.submit(PROMPTS[0])
    engine.close()
    monkeypatch.undo()
    assert decoder.generate(PROMPTS[0], **LONG).tokens == expected[0]


def test_nobody_waits_where_there_is_no_thread(engine, gate, monkeypatch):
    handle = engine.submit(PROMPTS[0], **LONG)
    monkeypatch.setattr("eagle.decoding.handles._PATIENCE", 0.01)
    with pytest.MonkeyPatch.context() as patch:  # as in a child that was forked
        patch.setattr(engine._driver, "thread", threading.Thread())
        with pytest.raises(EagleError, match="ended without an answer"):
            handle.result()


def test_a_processor_cannot_wait_for_its_own_engine(engine):
    def asks(ids, scores):
        engine.submit(PROMPTS[0], max_new_tokens=1).result(PATIENCE)
        return scores

    handle = engine.submit(PROMPTS[0], max_new_tokens=2, processors=[asks])
    with pytest.raises(RequestError, match="in the thread that would give it"):
        handle.result(PATIENCE)


def test_a_processor_that_closes_its_own_engine_closes_nothing(engine):
    def closes(ids, scores):
        engine.close()
        return scores

    handle = engine.submit(PROMPTS[0], max_new_tokens=2, processors=[closes])
    with pytest.raises(RequestError, match="cannot be closed from within its own thread"):
        handle.result(PATIENCE)
    assert not engine.closed
    assert len(engine.submit(PROMPTS[0], **LONG).result(PATIENCE).tokens) == 40


def test_an_engine_that_is_forgotten_ends(decoder):
    engine = Engine(decoder)
    thread, gone = engine._driver.thread, weakref.ref(engine)
    handle = engine.submit(PROMPTS[0], **LONG)
    del engine
    assert len(handle.result(PATIENCE).tokens) == 40, "its handle keeps it"
    del handle
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert gone() is None


def test_figures_say_what_it_is_doing(engine, gate):
    handles = [engine.submit(prompt, **LONG) for prompt in PROMPTS]
    before = engine.stats()
    assert (before.waiting, before.active, before.slots) == (5, 1, 3)
    gate.opened.set()
    for handle in handles:
        handle.result(PATIENCE)
    after = engine.stats()
    assert (after.waiting, after.finished, after.failed, after.cancelled) == (0, 6, 0, 0)
    assert after.tokens == 201
    assert after.tokens_per_second > 0
    assert after.tau > 1
    assert (after.blocks, after.total_blocks) == (0, 0), "rows are not in blocks on a CPU"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": [[5, 6], [7]]}, "one prompt"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": [5], "priority": 1.5}, "priority is a whole number, not 1.5"),
        ({"prompt": [5], "temperature": -1}, "temperature"),
    ],
)
def test_refuses_what_it_cannot_answer(engine, options, message):
    with pytest.raises(RequestError, match=message):
        engine.submit(**options)


def test_an_engine_is_made_of_a_decoder_and_cannot_be_copied(engine):
    with pytest.raises(RequestError, match="made of a Decoder, not of str"):
        Engine("eagle")
    with pytest.raises(RequestError, match="queue is how many requests may wait"):
        Engine(engine.decoder, queue=0)
    with pytest.raises(CopyError, match="an engine"):
        copy.copy(engine)


def test_an_engine_is_made_from_a_spec(spec, pair, expected):
    with Engine.from_spec(spec(runtime={"max_batch": "auto"}), queue=3, target=pair[0]) as engine:
        assert engine.submit(PROMPTS[2], **LONG).result(PATIENCE).tokens == expected[2]
        assert engine.stats().slots == 8


@pytest.mark.parametrize("paged", [False, True])
def test_nobody_waits_for_what_was_captured_before(paged, spec, pair, expected, monkeypatch):
    monkeypatch.setattr(Auto, "paged", paged)
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 12}), target=pair[0])
    with Engine(decoder) as engine:
        assert not engine.warm_up(), "nothing is captured on a CPU"
        decoder._runtime.graph = True  # as on a GPU
        assert engine.warm_up()
        keys = set(decoder._runtime._graphs.work)
        assert {key[1] for key in keys if key[0] == "cycle"} == {1, 2, 4, 8, 12}
        assert {key[-2] for key in keys if key[0] == "cycle"} == {False}
        asked = [(prompt, temperature) for prompt in PROMPTS * 2 for temperature in (0.0, 1.0, 0.0)]
        handles = [
            engine.submit(prompt, temperature=temperature, seed=1, **LONG)
            for prompt, temperature in asked
        ]
        for handle, (prompt, temperature) in zip(handles, asked, strict=True):
            tokens = handle.result().tokens
            assert temperature or tokens == expected[PROMPTS.index(prompt)]
        assert set(decoder._runtime._graphs.work) == keys
        assert not decoder.loop.seats.slots.active.any()


def test_a_warm_up_captures_only_the_trees_that_may_be_chosen(spec, pair, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)
    monkeypatch.setattr(narrowing, "_NODES", (3, 2))
    monkeypatch.setattr(narrowing, "_WIDTHS", (2, 4))
    monkeypatch.setattr(narrowing, "_SLOTS", (3, 5))
    rates = RankRates(levels=((0.6, 0.2, 0.1), (0.5, 0.2, 0.1)), positions=100, source="a test")
    usual = Topology.from_branching([3, 2])
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 4}), target=pair[0])
    cycle, resolved = decoder._cycle, decoder.resolved
    tree = NarrowingTree(usual, Law.WITHOUT_REPLACEMENT, rates)
    cycle.__init__(
        decoder.target, resolved.features, resolved.head, tree, resolved.attention,
        resolved.acceptance,
    )  # fmt: skip
    object.__setattr__(decoder.loop._resolved, "tree", tree)
    with Engine(decoder) as engine:
        decoder._runtime.graph = True  # as on a GPU
        assert engine.warm_up()
        keys = {key for key in decoder._runtime._graphs.work if key[0] == "cycle"}
        assert {(key[1], key[2]) for key in keys if key[4]} == {(1, 0), (2, 1), (4, 2)}
        # Without a seed the tree follows the width, and with one it is that of four slots.
        wanted = {(1, 0), (1, 1), (2, 1), (4, 1), (4, 2)}
        assert {(key[1], key[2]) for key in keys if not key[4]} == wanted
        chosen, choose = [], tree.choose
        tree.choose = lambda seen: chosen.append(choose(seen)) or chosen[-1]
        engine.submit([5], temperature=1, **LONG).result(PATIENCE)
        assert set(chosen) == {0}
        engine.submit([5], temperature=1, seed=3, **LONG).result(PATIENCE)
        assert set(chosen) == {0, 1}
        assert {key for key in decoder._runtime._graphs.work if key[0] == "cycle"} == keys

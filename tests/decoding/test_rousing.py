"""Tasks of asyncio's that wait for several requests, and how often they are woken."""

import asyncio
import threading
from contextlib import suppress

import pytest

from eagle import Decoder, Engine
from eagle.decoding import News
from eagle.decoding.rousing import rouse, roused_together
from eagle.errors import CancelledError, EagleError

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43]]
LONG = {"max_new_tokens": 60, "ignore_eos": True}


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])


@pytest.fixture
def engine(decoder):
    with Engine(decoder) as made:
        yield made


@pytest.fixture
def woken(monkeypatch):
    """Count the calls that a loop gets from other threads, once it runs."""
    found = []

    def watch():
        loop, own = asyncio.get_running_loop(), threading.get_ident()
        call = loop.call_soon_threadsafe

        def counted(*given):
            if threading.get_ident() != own:
                found.append(given)
            return call(*given)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        return found

    return watch


def test_a_loop_is_called_once_for_all_that_a_block_has_for_it():
    async def run():
        loop, order, calls = asyncio.get_running_loop(), [], []
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: calls.append(given) or call(*given)
        rouse(loop, lambda: order.append(0))
        assert len(calls) == 1
        with suppress(ValueError), roused_together():
            rouse(loop, lambda: order.append(1))
            with roused_together():
                rouse(loop, lambda: order.append(2))
            assert len(calls) == 2, "the inner block's own"
            rouse(loop, lambda: order.append(3))
            raise ValueError("in the middle")
        assert len(calls) == 3
        rouse(loop, lambda: order.append(4))
        assert len(calls) == 4, "nothing is held any more"
        await asyncio.sleep(0)
        return order

    assert asyncio.run(run()) == [0, 2, 1, 3, 4]


def test_what_a_block_holds_is_its_threads_own():
    async def run():
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        with roused_together():
            thread = threading.Thread(target=rouse, args=(loop, called.set))
            thread.start()
            thread.join()
            await asyncio.wait_for(called.wait(), 10)

    asyncio.run(run())


def test_a_closed_loop_is_not_called():
    loop = asyncio.new_event_loop()
    loop.close()
    rouse(loop, pytest.fail)
    with roused_together():
        rouse(loop, pytest.fail)


def test_a_pass_wakes_a_loop_once_for_all_requests(engine, decoder, woken):
    alone = [decoder.generate(prompt, **LONG).tokens for prompt in PROMPTS]

    async def one(handle):
        return [event async for event in handle]

    async def run():
        calls, before = woken(), decoder.loop.cycles
        handles = [engine.submit(prompt, **LONG) for prompt in PROMPTS]
        streams = await asyncio.gather(*map(one, handles))
        cycles = decoder.loop.cycles - before
        assert [handle.result().tokens for handle in handles] == alone
        # A reading of prompts may give the first tokens of some, and is a pass as well.
        assert len(calls) <= cycles + len(handles)
        assert len(calls) < sum(map(len, streams)) - len(handles)

    asyncio.run(run())


def test_news_are_all_events_by_their_requests(engine, decoder):
    alone = [decoder.generate(prompt, **LONG).tokens for prompt in PROMPTS]

    async def run():
        handles = [engine.submit(prompt, **LONG) for prompt in PROMPTS]
        found = [[] for _ in handles]
        with News(handles) as news:
            while came := await news.take():
                for index, event in came:
                    found[index].append(event)
            assert await news.take() == [], "all are over, and stay so"
        assert not any(handle._wakers for handle in handles)
        assert found == [list(handle) for handle in handles]
        return [tuple(token for event in own for token in event.tokens) for own in found]

    assert asyncio.run(run()) == alone


def test_what_came_before_a_failure_is_taken_before_it(engine):
    async def run():
        handles = [engine.submit(prompt, max_new_tokens=400) for prompt in PROMPTS[:2]]
        list(zip(handles[0], range(3), strict=False))
        with News(handles) as news:
            handles[0].cancel()
            came = await news.take()
            assert [event for index, event in came if not index] == handles[0]._events
            assert len(handles[0]._events) >= 3
            with pytest.raises(CancelledError):
                await _all_of(news)
        assert handles[1].cancel()

    asyncio.run(run())


async def _all_of(news):
    while await news.take():
        pass


@pytest.mark.parametrize("ends", [False, True])
def test_no_task_waits_where_there_is_no_thread(engine, monkeypatch, ends):
    monkeypatch.setattr("eagle.decoding.handles._PATIENCE", 0.01)
    handle = engine.submit(PROMPTS[0], max_new_tokens=400)

    async def wait():
        if ends:
            await handle
        else:
            [event async for event in handle]

    async def run():
        with pytest.MonkeyPatch.context() as patch:  # as in a child that was forked
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            patch.setattr(engine._driver, "thread", threading.Thread())
            with pytest.raises(EagleError, match="ended without an answer"):
                await asyncio.wait_for(waiting, 10)
        assert not handle._wakers

    asyncio.run(run())
    handle.cancel()

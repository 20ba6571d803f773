"""Threads that share a decoder or a target: right answers or a refusal, never another's words."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eagle import Decoder
from eagle.errors import CopyError, EagleError, RequestError
from eagle.host.turns import Turn

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9, 11]]
LONG = {"max_new_tokens": 40, "ignore_eos": True}


@pytest.fixture
def make(spec, pair):
    return lambda **changes: Decoder.from_spec(spec(**changes), target=pair[0])


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as made:
        yield made


def alone(decoder):
    return [decoder.generate(prompt, **LONG).tokens for prompt in PROMPTS]


def together(pool, *works):
    """Run works at the same moment, each in a thread of its own; return what each came to."""
    barrier = threading.Barrier(len(works))

    def run(work):
        barrier.wait()
        try:
            return work()
        except RequestError as error:
            return error

    return [made.result() for made in [pool.submit(run, work) for work in works]]


def test_threads_with_one_decoder_are_all_served_right(make, pool):
    decoder = make()
    expected = alone(decoder)
    width, widths = decoder._runtime.width, []
    decoder._runtime.width = lambda *args: widths.append(width(*args)) or widths[-1]
    for _ in range(8):
        found = together(pool, *(lambda p=p: decoder.generate(p, **LONG).tokens for p in PROMPTS))
        assert found == expected
    assert max(widths) > 1, "they never met"


def test_who_comes_while_a_stream_is_read_slowly_need_not_wait_for_it(make, pool):
    decoder = make()
    expected = alone(decoder)
    stream = decoder.stream(PROMPTS[0], **LONG)
    first = next(stream)
    assert pool.submit(decoder.generate, PROMPTS[1], **LONG).result().tokens == expected[1]
    rest = [token for event in stream for token in event.tokens]
    assert (*first.tokens, *rest) == expected[0]


def test_who_is_interrupted_costs_others_an_error_and_not_an_answer_that_is_wrong(make, pool):
    decoder = make()
    expected = alone(decoder)
    stream = decoder.stream(PROMPTS[0], **LONG)
    next(stream)
    run = decoder._cycle.run

    def interrupted(*args, **options):
        run(*args, **options)
        raise KeyboardInterrupt

    decoder._cycle.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(PROMPTS[1], **LONG)
    decoder._cycle.run = run
    with pytest.raises(EagleError, match="was interrupted"):
        list(stream)
    assert pool.submit(decoder.generate, PROMPTS[1], **LONG).result().tokens == expected[1]


def test_decoders_that_share_a_target_run_in_threads_of_their_own(make, pool):
    decoders = [make(), make(tree={"name": "chain", "depth": 3}), make(head="none", tree="none")]
    expected = alone(decoders[0])
    for _ in range(6):
        found = together(
            pool,
            *(
                lambda d=d, p=p: d.generate(p, **LONG).tokens
                for d, p in zip(decoders, PROMPTS, strict=False)
            ),
        )
        assert found == expected[:3]


def test_the_stock_model_and_a_decoder_take_turns(make, pool, pair):
    decoder, target = make(), pair[0]
    expected = alone(decoder)[0]
    ids = torch.tensor([PROMPTS[1]])

    def forward():
        with torch.inference_mode(), target.stock() as model:
            return model(input_ids=ids, use_cache=False).logits

    right = forward()
    rounds = []

    def stock():
        while not done.is_set():
            rounds.append(torch.equal(forward(), right))

    for _ in range(4):
        done = threading.Event()

        def decode(done=done):
            try:
                return decoder.generate(PROMPTS[0], **LONG).tokens
            finally:
                done.set()

        found, failure = together(pool, decode, stock)
        assert failure is None
        assert found == expected
    assert all(rounds)
    assert len(rounds) > 8, "who waits gets its turn, also while the other asks again and again"


def test_a_stream_goes_on_behind_the_stock_model_but_not_inside(make, pair):
    decoder, target = make(), pair[0]
    expected = alone(decoder)
    stream = decoder.stream(PROMPTS[0], **LONG)
    tokens = [*next(stream).tokens]
    with torch.inference_mode(), target.stock() as model:
        inside = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=5, do_sample=False)
        with target.stock():  # by somebody who is called here
            assert not target.layout.on
        assert not target.layout.on, "the outer block is not over"
    assert inside[0, len(PROMPTS[1]) :].tolist() == list(expected[1][:5])
    for event in stream:
        tokens += event.tokens
    assert tuple(tokens) == expected[0]
    with target.stock():
        with pytest.raises(RequestError, match=r"decoding was asked for inside target.stock\(\)"):
            decoder.generate(PROMPTS[0])
        with pytest.raises(RequestError, match=r"making a decoder .*inside target.stock\(\)"):
            make()
    assert decoder.generate(PROMPTS[0], **LONG).tokens == expected[0]


def test_a_processor_may_ask_the_stock_model_but_not_a_decoder(make, pair):
    decoder, other, target = make(), make(), pair[0]

    def agree(ids, scores):
        with target.stock() as model:
            return scores + model(input_ids=ids, use_cache=False).logits[:, -1]

    found = decoder.generate(PROMPTS[0], **LONG, processors=[agree])
    assert found.tokens == decoder.generate(PROMPTS[0], **LONG).tokens
    for asked in (decoder, other):

        def ask(ids, scores, asked=asked):
            asked.generate(PROMPTS[1])
            return scores

        with pytest.raises(RequestError, match="inside decoding of the same target"):
            decoder.generate(PROMPTS[0], processors=[ask])
    assert decoder.generate(PROMPTS[0], **LONG).tokens == found.tokens


@pytest.mark.parametrize("how", ["closed", "collected", "read", "failed", "thread"])
def test_a_stream_that_is_over_keeps_nobody_out(how, make, pool):
    decoder = make()
    expected = alone(decoder)[1]

    def begin():
        stream = decoder.stream(PROMPTS[0], max_new_tokens=9, ignore_eos=True)
        next(stream)
        return stream

    def fail(ids, scores):
        raise ValueError

    if how == "thread":
        thread = threading.Thread(target=lambda: kept.append(begin()))
        kept = []
        thread.start()
        thread.join()
    elif how == "failed":
        with pytest.raises(RequestError):
            decoder.generate(PROMPTS[0], processors=[fail])
    else:
        stream = begin()
        if how == "closed":
            stream.close()
        elif how == "read":
            list(stream)
        del stream
        gc.collect()
    assert pool.submit(decoder.generate, PROMPTS[1], **LONG).result().tokens == expected
    if how == "thread":
        assert list(kept[0])[-1].result is not None
    else:
        assert not decoder.loop.busy


def test_a_stream_may_wander_from_thread_to_thread(make, pool):
    decoder = make()
    stream = decoder.stream(PROMPTS[0], **LONG)
    tokens = []
    threads = [ThreadPoolExecutor(1) for _ in range(3)]
    for number in range(100):
        event = threads[number % 3].submit(next, stream, None).result()
        if event is None:
            break
        tokens += event.tokens
        if number == 3:
            other = pool.submit(decoder.generate, PROMPTS[1], **LONG).result()
        if event.result:
            break
    for thread in threads:
        thread.shutdown()
    assert tuple(tokens) == decoder.generate(PROMPTS[0], **LONG).tokens
    assert other.tokens == decoder.generate(PROMPTS[1], **LONG).tokens


@pytest.mark.parametrize(
    "part",
    [lambda d: d, lambda d: d.target, lambda d: d._cycle.cache, lambda d: d._cycle.cache.store],
)
def test_a_decoder_and_its_parts_cannot_be_copied(part, make):
    decoder = make()
    before = decoder.generate(PROMPTS[0], **LONG).tokens
    for attempt in (
        copy.deepcopy,
        pickle.dumps,
        lambda thing: torch.save(thing, io.BytesIO()),
        lambda thing: (
            multiprocessing.get_context("spawn").Process(target=print, args=(thing,)).start()
        ),
    ):
        with pytest.raises(CopyError, match="cannot be copied, pickled or sent to another process"):
            attempt(part(decoder))
    with pytest.raises(TypeError):
        copy.copy(decoder)
    assert decoder.generate(PROMPTS[0], **LONG).tokens == before


def test_turns_come_in_the_order_in_which_they_were_asked_for(pool):
    turn, order, asked = Turn(), [], []

    def take(number):
        with turn.held("this"):
            order.append(number)

    with turn.held("that"):
        for number in range(4):
            asked.append(pool.submit(take, number))
            while len(turn._waiting) <= number:
                pass
        assert order == []
    for one in asked:
        one.result()
    assert order == [0, 1, 2, 3]
    third = turn.held("third", within=False)
    with (
        turn.held("outer"),
        turn.held("inner"),
        pytest.raises(RequestError, match="third was asked for inside inner"),
    ):
        third.__enter__()
    with turn.held("again", within=False):
        pass


def test_who_is_interrupted_while_waiting_leaves_the_queue(monkeypatch):
    turn = Turn()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with turn.held("that"):
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()

    class Interrupted:
        def __init__(self):
            self.count = 0

        def acquire(self):
            self.count += 1
            if self.count > 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("eagle.host.turns.threading.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt), turn.held("this"):
        pass
    monkeypatch.undo()
    assert not turn._waiting
    leave.set()
    holder.join()
    with turn.held("this", within=False):
        pass


def test_a_turn_that_is_tried_is_had_at_once_or_not_at_all(pool):
    turn = Turn()

    def tried():
        with turn.tried("this") as had:
            return had

    assert tried()
    with turn.held("that"):
        assert not pool.submit(tried).result()
        assert not tried(), "not within a turn of this thread either"
    with turn.tried("this") as had:
        assert had
        with pytest.raises(RequestError, match="inside this"):
            turn.held("that", within=False).__enter__()
    assert tried()


def test_blocks_within_a_turn_that_is_kept_stand_as_if_by_themselves(pool):
    turn, order = Turn(), []

    def other():
        with turn.held("something else"):
            order.append("other")

    with turn.kept("several things"):
        waiting = pool.submit(other)
        while not turn._waiting:
            time.sleep(0.001)
        for number in range(2):
            with turn.held("a thing", within=False):
                order.append(number)
                with pytest.raises(RequestError, match="inside a thing of the same target"):
                    turn._take("another", within=False)
        with (
            pytest.raises(RequestError, match="inside several things"),
            turn.kept("more"),
        ):
            pass
    waiting.result(5)
    assert order == [0, 1, "other"]
    with turn.held("a thing"), pytest.raises(RequestError, match="inside a thing"):
        turn._take("another", within=False)


def told_by_a_child(work):
    """Return what work comes to in a child that is forked now, or "nothing" where it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # which ends it
        try:
            said = repr(work())
        except RequestError as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read() or "nothing"
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_is_told_that_it_was_forked_in_the_middle_of_another_threads_pass(pool):
    turn = Turn()
    began, ends = threading.Event(), threading.Event()

    def decode():
        with turn.held("decoding"):
            began.set()
            assert ends.wait(60)

    def take():
        with turn.tried("a try") as had:
            assert not had
        with turn.held("reading"):
            return "mine"

    busy = pool.submit(decode)
    assert began.wait(60)
    said = told_by_a_child(take)
    ends.set()
    busy.result()
    assert said.startswith("reading is not possible in this process: it was forked while another")
    assert "(decoding)" in said
    with turn.held("forking"):
        assert told_by_a_child(lambda: turn._take("more", True)) == "None"
    assert told_by_a_child(lambda: turn._take("anything", False)) == "None"

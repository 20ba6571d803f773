"""One process takes requests for all that hold a target: same answers, same passes, same end."""

import os
import signal
import threading
import time

import pytest
import torch

from eagle import Decoder, Engine, SamplingParams
from eagle.bench.serving import Server, Work
from eagle.cli import console
from eagle.decoding import Trace, leading, loop
from eagle.decoding.pickled import packed, unpacked
from eagle.errors import CancelledError, PartedError, RequestError, TargetError
from eagle.plugin import Law, RankRates, Topology
from eagle.runtime import runtime
from eagle.target import together
from eagle_plugins.attention.auto import Auto
from eagle_plugins.trees import narrowing
from eagle_plugins.trees.narrowing import NarrowingTree
from tests.exact.test_shared_noise import drafting_with
from tests.runtime.test_runtime import Replays
from tests.target.test_together import pair, spec_of  # noqa: F401 - a fixture
from tests.train.together import run_together

REQUESTS = 12
CYCLES = int(os.environ.get("EAGLE_FUZZ", "10000"))


class Forbids:
    """Lets a token never be said; defined in a module, so that it can be sent."""

    any_prefix = True

    def __init__(self, token):
        self.token = token

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


class Raises(Forbids):
    def __call__(self, ids, scores):
        if ids.shape[1] >= self.token:
            raise ValueError("no such word")
        return scores


def asked(number):
    """Return a prompt, parameters and processors of one of many requests."""
    prompt = [3 + (number * 7 + place * (1 + number % 3)) % 61 for place in range(1 + number % 45)]
    params = SamplingParams(
        max_new_tokens=(30, 7, 1, 19)[number % 4],
        temperature=number // 2 % 2,
        seed=number,
        ignore_eos=True,
    )
    return prompt, params, [Forbids(9)] if number % 5 == 0 else None


def alone(spec, numbers):
    decoder = Decoder.from_spec(spec)
    found = {}
    for number in numbers:
        prompt, params, processors = asked(number)
        found[number] = decoder.generate(prompt, params, processors=processors).tokens
    return found


def sent(engine, numbers, wanted):
    """Submit requests from several threads, some of which give theirs up; compare the rest."""
    wrong = []

    def client(own):
        for number in own:
            prompt, params, processors = asked(number)
            handle = engine.submit(prompt, params, processors=processors, priority=number % 2)
            if number % 6 == 1:
                next(iter(handle))
                handle.cancel()
                continue
            if number % 6 == 3:
                handle.cancel()
                continue
            try:
                if handle.result(60).tokens != wanted[number]:
                    wrong.append(number)
            except Exception as error:
                wrong.append((number, repr(error)))

    clients = [threading.Thread(target=client, args=(numbers[k::4],)) for k in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert not wrong, wrong


# --- answers ----------------------------------------------------------------------------------


def on_a_gpu(spec):
    """Return a decoder that goes as on a GPU: rows in blocks, cycles that start ahead."""
    Auto.paged, runtime.Graphs = True, Replays
    decoder = Decoder.from_spec(spec)
    decoder._runtime.graph = True  # nothing is captured
    return decoder


def _led(spec, wanted):
    leads = os.environ["RANK"] == "0"
    decoder = on_a_gpu(spec)
    passes, ahead, sent_ahead = decoder.loop._passes, decoder.loop._passes.ahead, []
    passes.ahead = lambda running: sent_ahead.append(ahead(running)) or sent_ahead[-1]
    with pytest.raises(PartedError, match="process 1 has another engine than process 0: queue"):
        Engine(decoder, queue=7 if leads else 8)
    stream = decoder.stream([5], max_new_tokens=9, ignore_eos=True)
    next(stream)
    with pytest.raises(RequestError, match="a stream of this decoder is under way"):
        Engine(decoder)
    stream.close()
    with Engine(decoder) as engine:
        assert engine.leads == leads
        if leads:
            sent(engine, list(range(REQUESTS)), wanted)
            _mistakes(engine, decoder, wanted)
        else:
            with pytest.raises(RequestError, match="submit there"):
                engine.submit([5], max_new_tokens=1)
    # All are where they were together: what was read, given, seated.
    loop = decoder.loop
    state = [loop.cycles, loop.tally.tokens, loop.tally.committed, loop.seats.active, loop.busy]
    decoder.target.together.agree("state", [*state, loop.tally.accepted])
    assert loop.cycles > 20
    assert sum(one is not None for one in sent_ahead) > 10, "each pass waited for the one before"
    again = decoder.generate(asked(0)[0], asked(0)[1], processors=asked(0)[2])
    assert again.tokens == wanted[0]
    # A benchmark asks in process 0, and all know what came of it.
    prompt, params, _ = asked(2)
    service = Server(decoder).serve(Work.queue([0, 0], [prompt]), params)
    assert service.requests[0].answer == wanted[2]
    decoder.target.together.agree("service", repr(service))


def _mistakes(engine, decoder, expected):
    """One request's mistake costs no others, and is one in all processes."""
    prompt, params, _ = asked(0)
    for length in (len(prompt), len(prompt) + 5):  # in the prompt's pass, and in a cycle
        wrong = engine.submit(prompt, params, processors=[Raises(length)])
        right = engine.submit(prompt, params, processors=[Forbids(9)])
        with pytest.raises(RequestError, match="no such word"):
            wrong.result(60)
        assert right.result(60).tokens == expected[0]
    with pytest.raises(RequestError, match="cannot be pickled"):
        engine.submit(prompt, processors=[lambda ids, scores: scores])
    # What all processes have to do at once has to wait.
    for refused in (
        lambda: Engine(decoder),
        lambda: Decoder(decoder.resolved, decoder.target),
        decoder.forget,
        lambda: decoder.target.stock().__enter__(),
    ):
        with pytest.raises(RequestError, match="an engine is open"):
            refused()
    # The decoder's own methods go through the engine's passes.
    result = decoder.generate(prompt, params, processors=[Forbids(9)])
    assert result.tokens == expected[0]
    stream = decoder.stream(prompt, params)
    next(stream)
    stream.close()
    handle = engine.submit(prompt, max_new_tokens=400, ignore_eos=True)
    next(iter(handle))
    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result()


@pytest.fixture(scope="module")
def specs(pair):  # noqa: F811
    def made(tree, **target):
        spec = spec_of(pair, tree, **target)
        few = spec.runtime.model_copy(update={"max_batch": 3})
        return spec.model_copy(update={"runtime": few})

    return made


def test_all_processes_do_what_the_first_one_takes(specs):
    wanted = alone(specs("dynamic"), range(REQUESTS))
    run_together(_led, specs("dynamic", tp_plan="auto"), wanted)


def _narrowing(spec, wanted):
    """Trees follow who is there, where no seed was given; the same in all processes."""
    decoder = on_a_gpu(spec)
    narrowing._NODES = (3, 2)
    narrowing._WIDTHS = narrowing._SLOTS = (2, 3)
    rates = RankRates(levels=((0.6, 0.2, 0.1), (0.5, 0.2, 0.1)), positions=100, source="a test")
    law = Law.WITHOUT_REPLACEMENT
    tree = NarrowingTree(Topology.from_branching([3, 2, 1]), law, rates)
    chosen = drafting_with(tree, decoder)
    with Engine(decoder) as engine:
        if engine.leads:
            free = {"temperature": 1, "ignore_eos": True}
            # Trees have three levels: whatever is accepted, the long one is alone for 30 cycles.
            lengths = {(5, 9): 200, (8,): 20}
            handles = [engine.submit([*p], max_new_tokens=n, **free) for p, n in lengths.items()]
            seeded = engine.submit([4], max_new_tokens=12, seed=3, **free)
            assert len({one.result(60).seed for one in [*handles, seeded]}) == 3
    told = [(seen.width, seen.sampled, seen.seeded, number) for seen, number in chosen]
    decoder.target.together.agree("choice of trees", told)
    found = {(seeded, number) for _, _, seeded, number in told}
    assert (True, 2) in found
    assert found & {(False, 0), (False, 1)}


def test_all_processes_see_alike_whether_a_seed_was_given(specs):
    run_together(_narrowing, specs("static", tp_plan="auto"), None)


def _beside(specs, wanted):
    """Decode beside the engine, fail in one process alone, and be left by the engine."""
    decoder = Decoder.from_spec(specs[0])
    make, failing = leading.Look.made, [os.environ["RANK"] == "1"]

    def made(look, target):
        found = make(look, target)
        if failing and failing.pop():
            raise RuntimeError("out of memory")  # in this process alone
        return found

    with Engine(decoder) as engine:
        assert engine.leads or not decoder.loop.lead
        leading.Look.made = made
        if engine.leads:
            with pytest.raises(PartedError, match="process 1 failed"):
                Trace.beside(decoder, specs[0])
            with pytest.raises(RequestError, match="nodes; at most 5 are looked at"):
                Trace.beside(decoder, specs[0], nodes=5)
            watched, trace = Trace.beside(decoder, specs[1], nodes=13)
            plain, none = Trace.beside(decoder, specs[1], plain=True)
            assert none is None
            handles = [engine.submit(*asked(number)[:2]) for number in (4, 8)]
            stream = watched.stream(*asked(3)[:2])
            tokens = [token for event in stream for token in event.tokens]
            assert tuple(tokens) == wanted[3]
            assert plain.generate(*asked(3)[:2]).tokens == wanted[3]
            assert len(trace.cycle().nodes) == 13
            assert [one.result(60).tokens for one in handles] == [wanted[4], wanted[8]]
            with pytest.raises(RequestError, match="an engine is open"):
                Decoder(decoder.resolved, decoder.target)
            left = watched.stream([5], max_new_tokens=400, ignore_eos=True)
            next(left)
    if engine.leads:
        with pytest.raises(PartedError, match="was closed"):
            next(left)
        with pytest.raises(RequestError, match="no engine leads them any more"):
            Trace.beside(decoder, specs[0])
    else:
        leading.Look.made = make
    # All go on together by themselves.
    assert decoder.generate(*asked(4)[:2]).tokens == wanted[4]


def test_decoders_beside_an_engines_are_made_and_led_in_all_processes(specs):
    both = [specs("static", tp_plan="auto"), specs("dynamic", tp_plan="auto")]
    run_together(_beside, both, alone(specs("dynamic"), (3, 4, 8)))


def _many(spec, wanted):
    decoder = on_a_gpu(spec)
    outcomes, seen = decoder.loop._compare, []

    def compare(found):
        outcomes(found)
        seen.append(hash(tuple(map(tuple, found))))

    decoder.loop._compare = compare
    with Engine(decoder) as engine:
        while engine.leads and decoder.loop.cycles < CYCLES:
            sent(engine, list(range(REQUESTS)), wanted)
    decoder.target.together.agree("outcomes", [decoder.loop.cycles, hash(tuple(seen))])
    if engine.leads:
        print(f"\n{decoder.loop.cycles} cycles in {len(seen)} passes, outcomes alike", flush=True)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_outcomes_are_alike_for_ten_thousand_cycles(specs, monkeypatch):
    monkeypatch.setattr("tests.train.together.PATIENCE", 3600)
    run_together(_many, specs("dynamic", tp_plan="auto"), alone(specs("dynamic"), range(REQUESTS)))


def _warm(spec, wanted):
    """Warm up in all processes by a call in one, and fail to in another one."""
    decoder, rank = on_a_gpu(spec), os.environ["RANK"]
    with Engine(decoder) as engine:
        if not engine.leads:
            assert not engine.warm_up(), "process 0 calls it for all"
        else:
            assert engine.warm_up()
            keys = set(decoder._runtime._graphs.work)
            sent(engine, [number for number in range(REQUESTS) if number % 5], wanted)
            assert set(decoder._runtime._graphs.work) == keys, "somebody waited for a capture"
    decoder.target.together.agree("captures", sorted(map(repr, decoder._runtime._graphs.work)))
    assert {key[1] for key in decoder._runtime._graphs.work if key[0] == "cycle"} == {1, 2, 3}
    # What fails in one process, at the end of what all do, costs nobody more than the time.
    warm_up, failing = loop.warm_up, [rank == "1"]

    def warmed_up(runtime, slots, limit):
        warm_up(runtime, slots, limit)
        if failing.pop():
            raise RuntimeError("out of memory")

    with Engine(decoder) as engine:
        loop.warm_up = warmed_up
        if engine.leads:
            with pytest.raises(PartedError, match="process 1 failed"):
                engine.warm_up()
            sent(engine, list(range(REQUESTS)), wanted)


def test_one_call_warms_up_all_processes(specs):
    wanted = alone(specs("dynamic"), range(REQUESTS))
    run_together(_warm, specs("dynamic", tp_plan="auto"), wanted)


# --- ends -------------------------------------------------------------------------------------


def _heard(path):
    rank = os.environ["RANK"]
    os.dup2(os.open(f"{path}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
    together._LOST, together._BEAT = 3.0, 0.2  # seconds
    return rank


def _kill(spec, path):
    """Lose the process that follows while requests are under way."""
    rank = _heard(path)

    def command(**_):
        decoder = Decoder.from_spec(spec)
        with Engine(decoder) as engine:
            if rank == "0":
                handle = engine.submit([5, 9, 13], max_new_tokens=400, ignore_eos=True)
                handle.result()
            while decoder.loop.cycles < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    command.main = command
    os._exit(console.run(command, []))


def test_a_process_that_is_lost_ends_an_engine(specs, tmp_path):
    run_together(_kill, specs("static", tp_plan="auto"), tmp_path / "said", exits=(2, -9))
    said = (tmp_path / "said.0").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert "process 1 is lost, and with it a part of every layer" in errors[0]


def _go_on(spec, path):
    """Fail in one process in the middle of a cycle, and go on there as if nothing had been."""
    rank = _heard(path)
    decoder = Decoder.from_spec(spec)
    wanted = decoder.generate([5, 9, 13], max_new_tokens=9, ignore_eos=True).tokens
    # At the end of a pass, which the others come to: all give it up, and go on.

    def forgetful(*_args, **_options):
        raise RuntimeError("out of memory")

    if rank == "1":
        decoder.loop._compare, compare = forgetful, decoder.loop._compare
    failure, said = (RuntimeError, "memory") if rank == "1" else (PartedError, "process 1 failed")
    with pytest.raises(failure, match=said):
        decoder.generate([5, 9, 13], max_new_tokens=9, ignore_eos=True)
    if rank == "1":
        decoder.loop._compare = compare
    again = decoder.generate([5, 9, 13], max_new_tokens=9, ignore_eos=True)
    assert again.tokens == wanted
    # Before a pass that the others are in, where nothing can reach them.
    if rank == "1":
        decoder._runtime.run = forgetful

    def command(**_):
        try:
            decoder.generate([5, 9, 13], max_new_tokens=9)
        except RuntimeError:
            decoder.generate([5, 9, 13], max_new_tokens=9)

    command.main = command
    os._exit(console.run(command, []))


def test_a_caught_error_of_one_process_lets_no_other_wait_for_ever(specs, tmp_path):
    run_together(_go_on, specs("static", tp_plan="auto"), tmp_path / "said", exits=(2, 2))
    said = (tmp_path / "said.0").read_text()
    assert "process 1 is lost" in said
    assert "It failed: " in said
    second = (tmp_path / "said.1").read_text()
    assert "the other processes that hold the target have ended, since this one failed" in second


def _ahead(spec):
    """Fail in all processes alike, and then in one, while the next cycle is under way."""
    decoder, rank = on_a_gpu(spec), os.environ["RANK"]
    wanted = decoder.generate([5, 9, 13], max_new_tokens=20, ignore_eos=True).tokens
    compare = decoder.loop._compare

    def forgetful(outcomes):
        if decoder.loop._running is None:
            return compare(outcomes)
        raise RuntimeError("out of memory")

    decoder.loop._compare = forgetful
    with pytest.raises(RuntimeError, match="memory"):
        decoder.generate([5, 9, 13], max_new_tokens=20, ignore_eos=True)
    decoder.loop._compare = compare
    again = decoder.generate([5, 9, 13], max_new_tokens=20, ignore_eos=True)
    assert again.tokens == wanted
    if rank == "1":
        decoder.loop._compare = forgetful
    failure, said = (RuntimeError, "memory") if rank == "1" else (PartedError, "process 1 failed")
    with pytest.raises(failure, match=said):
        decoder.generate([5, 9, 13], max_new_tokens=20, ignore_eos=True)
    decoder.loop._compare = compare
    with pytest.raises(TargetError, match=f"process {rank} has left the others"):
        decoder.generate([5, 9, 13], max_new_tokens=20, ignore_eos=True)


def test_nobody_goes_on_where_one_process_failed_and_others_are_a_pass_ahead(specs):
    """They are in a pass that it never begins; only where all fail alike is there none."""
    run_together(_ahead, specs("dynamic", tp_plan="auto"))


# --- processors -------------------------------------------------------------------------------


def test_processors_are_sent_without_the_tokenizer():
    class Tokenizer:
        def __reduce__(self):
            raise TypeError("a tokenizer is large")

    first, second = Tokenizer(), Tokenizer()
    (found,) = unpacked(packed([Forbids(first)], first), second)
    assert found.token is second
    with pytest.raises(RequestError, match="cannot be pickled for them"):
        packed([Forbids(first)], second)
    assert packed((), first) == b""
    assert unpacked(b"", second) == ()


def test_what_cannot_be_done_together_any_more_is_refused():
    one = together.Together.__new__(together.Together)
    one.gone = TargetError("lost")
    with pytest.raises(TargetError, match="lost"):
        one.still()

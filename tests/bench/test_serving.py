"""Serving with the clock running: who asks sees tokens as they come, and all are asked alike."""

from __future__ import annotations

import pytest

from eagle import Decoder, Engine, SamplingParams
from eagle.bench.served import Load, Served
from eagle.bench.serving import PLAIN, Server, Work, arrivals, measure_throughput, take_turns
from eagle.errors import EagleError, RequestError

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 41], [9, 50]]
PARAMS = SamplingParams(max_new_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(), target=pair[0])


def test_arrivals_are_poisson_and_of_their_seed():
    many = arrivals(4000, 5.0, seed=3)
    gaps = [after - before for before, after in zip((0.0, *many), many, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 5, rel=0.05)
    # Of an exponential distribution, the standard deviation is the mean.
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)
    assert many[:4] == arrivals(4, 5.0, seed=3) != arrivals(4, 5.0, seed=4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_served_is_what_a_decoder_says(decoder, temperature):
    params = PARAMS.model_copy(update={"temperature": temperature, "seed": 7})
    decoder.loop.resize(2)
    service = Server(decoder).serve(Work.queue([0, 1, 2, 3], PROMPTS), params)
    for number, one in enumerate(service.requests):
        own = params.model_copy(update={"seed": 7 + number})
        alone = decoder.generate(PROMPTS[number], own)
        assert one.answer == alone.tokens
        assert one.verifications == alone.stats.cycles
        assert sum(one.sizes) == 16
        assert len(one.times) == len(one.sizes) == one.verifications + 1
        assert 0 < one.first <= one.whole <= service.seconds
        assert list(one.times) == sorted(one.times)
    assert service.memory > 0


@pytest.mark.parametrize(("seed", "given"), [(None, [None] * 3), (7, [7, 8, 9])])
def test_nobody_is_given_a_seed_that_was_not_asked_for(decoder, seed, given, monkeypatch):
    submit, asked = Engine.submit, []

    def noted(engine, prompt, params):
        asked.append(params.seed)
        return submit(engine, prompt, params)

    monkeypatch.setattr(Engine, "submit", noted)
    params = PARAMS.model_copy(update={"temperature": 1.0, "seed": seed})
    Server(decoder).serve(Work.queue([0, 1, 2], PROMPTS), params)
    assert asked == given


def test_no_request_is_answered_before_it_comes(decoder):
    decoder.loop.resize(2)
    work = Work((0, 1), tuple(map(tuple, PROMPTS[:2])), (0.0, 0.3))
    first, second = Server(decoder).serve(work, PARAMS).requests
    assert first.times[-1] < 0.3 < second.times[0]
    assert second.first < 0.3, "it is counted from when it came"


def test_all_loads_are_measured_beside_plain_and_answers_are_held_against_it(decoder):
    loads = [Load(1), Load(3), Load(3, 50.0)]
    seen = []
    cells = measure_throughput(
        {"tree": decoder},
        PROMPTS,
        PARAMS,
        loads,
        rounds=2,
        progress=lambda what, done, total: seen.append(what),
    )
    assert [cell.load for cell in cells] == loads
    for cell in cells:
        (tree,) = cell.specs
        assert (tree.name, cell.plain.name) == ("tree", PLAIN)
        assert tree.tau > cell.plain.tau == 1
        assert tree.identity.show() == "8 of 8"
        assert len(tree.rounds) == 2
        assert tree.captured == 0
    timed = [what for what in seen if what.startswith("timing")][:4]
    assert timed == [f"timing {name}, batch 1" for name in ("tree", PLAIN, PLAIN, "tree")]
    assert decoder.max_batch == 3
    dues = [[one.due for one in service.requests] for service in cells[2].plain.rounds]
    assert dues[0] != dues[1], "other times in every round"
    assert dues == [[one.due for one in s.requests] for s in cells[2].specs[0].rounds]


def test_a_wrong_answer_is_neither_the_same_nor_a_tie(decoder, monkeypatch):
    original = Server.serve

    def damaged(self, work, params):
        service = original(self, work, params)
        if self.decoder is not decoder:
            return service
        one = service.requests[0]
        wrong = (*one.answer[:4], (one.answer[4] + 1) % 64, *one.answer[5:])
        changed = Served(one.prompt, wrong, one.due, one.times, one.sizes, one.verifications)
        return type(service)((changed, *service.requests[1:]), service.memory)

    monkeypatch.setattr(Server, "serve", damaged)
    (cell,) = measure_throughput({"tree": decoder}, PROMPTS, PARAMS, [Load(2)], rounds=1)
    assert cell.specs[0].identity.show() == "3 of 4, 1 DIFFER"


def test_graphs_captured_while_the_clock_runs_are_told(decoder, monkeypatch):
    runtime, original = decoder._runtime, decoder._runtime.read

    def capturing(*args, **more):
        runtime.captured += 1
        return original(*args, **more)

    monkeypatch.setattr(runtime, "read", capturing)
    assert Server(decoder).serve(Work.queue([0], PROMPTS), PARAMS).captured == 1


def test_who_fails_takes_no_further_turn_and_costs_nobody_else(decoder):
    class Failing(Server):
        def serve(self, work, params):
            raise EagleError("this cannot run")

    servers = {"bad": Failing(decoder), PLAIN: Server(decoder)}
    work = [Work.queue([0], PROMPTS)] * 2
    told = []
    given = take_turns(servers, work, PARAMS, lost=lambda name, error: told.append((name, error)))
    assert [(name, str(error)) for name, error in told] == [("bad", "this cannot run")]
    assert {name: len(services) for name, services in given.items()} == {PLAIN: 2}
    with pytest.raises(EagleError, match="this cannot run"):
        take_turns(servers, work, PARAMS)


def test_a_request_that_fails_is_told_as_it_is(decoder):
    with pytest.raises(RequestError, match="1000000"):
        Server(decoder).serve(Work.queue([0, 1], [[10**6], [5]]), PARAMS)
    assert Server(decoder).serve(Work.queue([1], [[10**6], [5]]), PARAMS).tokens == 16


def test_too_few_prompts_and_a_spec_called_plain_are_refused(decoder):
    with pytest.raises(RequestError, match="a batch of 8 needs as many prompts; there are 4"):
        measure_throughput({"tree": decoder}, PROMPTS, PARAMS, [Load(8)])
    with pytest.raises(RequestError, match="'plain' is measured beside all others"):
        measure_throughput({"plain": decoder}, PROMPTS, PARAMS, [Load(1)])

"""Whoever comes, ends, fails or moves meanwhile: each request says what it says alone.

Compared with a decoder that answers one request at a time, on rows one slot behind the other and
in blocks, where texts move to lower slots.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder, SamplingParams
from eagle.cycle import Cycle
from eagle.decoding.passes import Passes
from eagle.decoding.tickets import Ticket
from eagle.errors import EagleError, NumericalError, RequestError
from eagle.runtime import Arrival
from eagle.runtime.room import Room
from eagle.target import Target
from eagle.testing import tiny_text
from eagle_plugins.attention.auto import Auto
from tests.runtime.test_runtime import Replays
from tests.structured.letters import letters
from tests.unseen import unseen

LENGTHS = (1, 70, 3, 128, 30, 9, 2, 64)
BUDGET = 40  # tokens of prompts that are read between two cycles
FUZZ = int(os.environ.get("EAGLE_FUZZ", "5000"))


class Raises:
    any_prefix = True

    def __init__(self, length):
        self.length = length

    def __call__(self, ids, scores):
        if ids.shape[1] >= self.length:
            raise ValueError("no such word")
        return scores


class Forbids(Raises):
    def __call__(self, ids, scores):
        return torch.full_like(scores, -torch.inf) if ids.shape[1] >= self.length else scores


TEXTS = [
    row[:length].tolist()
    for row, length in zip(
        tiny_text(8, max(LENGTHS), torch.Generator().manual_seed(3)), LENGTHS, strict=True
    )
]


def asked(number):
    """Return the prompt and the parameters of one of 48 requests."""
    params = SamplingParams(
        max_new_tokens=(1, 7, 40, 19, 12, 3)[number % 6],
        temperature=(0.0, 1.0)[number // 8 % 2],
        seed=number,
        ignore_eos=True,
    )
    return TEXTS[number % 8], params


@pytest.fixture(scope="module")
def alone(spec, pair):
    """Return what a request says by itself."""
    decoder = Decoder.from_spec(spec(attention="sdpa", runtime={"max_batch": 1}), target=pair[0])
    known = {}

    def answer(number):
        if number not in known:
            known[number] = decoder.generate(*asked(number)).tokens
        return known[number]

    return answer


def made(way, spec, pair, patch, slots=5):
    """Return a decoder of one of the `WAYS`; as on a GPU nothing is captured."""
    patch.setattr(Auto, "paged", way != "rows")
    if way == "captured":
        unseen(patch, (4, 16, 40))
        patch.setattr("eagle.runtime.packing._PIECES", 3)
    patch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": BUDGET})
    patch.setattr("eagle.runtime.widths._WORTH", 3)
    patch.setattr("eagle.runtime.runtime.Graphs", Replays)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": slots}), target=pair[0])
    decoder._runtime.graph = way in ("ahead", "captured")
    return decoder


# With rows behind each other; in blocks; and as on a GPU, where cycles are started ahead and
# prompts are read behind them, one by one or in captured passes that take any pieces.
WAYS = ("rows", "blocks", "ahead", "captured")


@pytest.fixture(params=WAYS)
def decoder(request, spec, pair, monkeypatch):
    return made(request.param, spec, pair, monkeypatch)


class Sink:
    def __init__(self):
        self.tokens, self.result, self.error, self.late = [], None, None, 0

    def put(self, ticket, event):
        self.late += ticket.over and event.result is None
        self.tokens += event.tokens
        self.result = event.result

    def fail(self, ticket, error):
        self.error = error


def play(decoder, script):
    """Drive a loop by a script: requests that come, cancels, and passes; return the tickets.

    Of the requests, some have a logits processor that raises, or leaves no token, at some length.
    """
    loop, tickets = decoder.loop, []
    for action, number in script:
        if action == "cancel":
            loop.cancel(tickets[-1 - number :][:1])
        elif action == "pass":
            for _ in range(1 + number % 4):
                loop.drive(bool)
        else:
            prompt, params = asked(number)
            broken = {"raise": Raises, "forbid": Forbids}.get(action)
            processors = [broken(len(prompt) + number % 5)] if broken else None
            _, made = decoder.intake(prompt, params, processors, {}, False, None)
            ticket = Ticket(made[0], Sink(), priority=number % 3)
            ticket.number, ticket.action = number, action
            tickets.append(ticket)
            loop.submit([ticket])
    while loop.busy:
        loop.drive(bool)
    return tickets


def check(decoder, tickets, alone):
    """Every ticket has come to what it had to, and nothing is kept of any."""
    for ticket in tickets:
        sink, whole = ticket.sink, alone(ticket.number)
        assert tuple(sink.tokens) == whole[: len(sink.tokens)], ticket.number
        assert not sink.late, "something came of a request that was cancelled"
        if sink.result is not None:
            assert sink.result.tokens == whole
        elif sink.error is not None:
            assert isinstance(
                sink.error, {"raise": RequestError}.get(ticket.action, NumericalError)
            )
            assert ticket.action != "ask"
            assert len(sink.tokens) <= ticket.number % 5
        else:
            assert ticket.over, "neither answered nor failed nor cancelled"
    seats = decoder.loop.seats
    assert not decoder.loop.waiting
    assert not decoder.loop._tickets
    assert not seats._held
    assert seats.blocks.free == seats.blocks.total
    assert seats.slots is None or not seats.slots.active.any()
    if getattr(decoder._cycle, "pages", None) is not None:
        assert not decoder._cycle.pages.table.any()


ACTIONS = st.one_of(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "raise", "forbid"]), st.integers(0, 47)),
    st.tuples(st.just("pass"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 6)),
)


@settings(max_examples=25)
@given(script=st.lists(ACTIONS, max_size=30))
@pytest.mark.parametrize("way", WAYS)
def test_each_says_what_it_says_alone_whatever_others_do(way, script, spec, pair, alone):
    with pytest.MonkeyPatch.context() as patch:
        decoder = made(way, spec, pair, patch)
        check(decoder, play(decoder, [("ask", 9), *script]), alone)


def soak(decoder, alone, count, seed):
    """Let so many requests come at random, and many be cancelled; memory stays what it was."""
    rng, sizes = random.Random(seed), []
    kinds = ["ask"] * 8 + ["raise", "forbid"]
    for start in range(0, count, 100):
        script = []
        for _ in range(min(100, count - start)):
            script.append((rng.choice(kinds), rng.randrange(48)))
            if rng.random() < 0.6:
                script.append(("pass", rng.randrange(4)))
            if rng.random() < 0.3:
                script.append(("cancel", rng.randrange(min(5, len(script) // 3 + 1))))
        check(decoder, play(decoder, script), alone)
        store = decoder._cycle.cache.store
        numbers = sum(one.numel() for one in store.stores)
        sizes.append((numbers, decoder.loop.seats.blocks.total))
    sizes = sizes[1:]
    if decoder._runtime.lone:  # for one slot there is a compiled pass
        slots = store.slots
        assert all(size // 5 <= sizes[-1][0] // slots for size, _ in sizes), "memory grew"
    else:
        assert len(set(sizes)) <= 1, "memory grew"


def test_hundreds_that_come_and_go_leave_memory_as_it_was(decoder, alone):
    soak(decoder, alone, 300, seed=1)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_thousands_that_come_and_go_leave_memory_as_it_was(decoder, alone):
    soak(decoder, alone, FUZZ, seed=None)


def test_the_next_cycle_is_sent_before_what_came_of_one_is_known(spec, pair, alone, monkeypatch):
    decoder, did = made("ahead", spec, pair, monkeypatch, slots=4), []
    cycle, read = Passes.cycle, Arrival.read
    monkeypatch.setattr(Passes, "cycle", lambda *args: did.append("sent") or cycle(*args))
    monkeypatch.setattr(Arrival, "read", lambda self: did.append("read") or read(self))
    tickets, seen = play(decoder, [("ask", 2)]), [*did]
    assert seen[:4] == ["read", "sent", "sent", "read"]  # the prompt's first token comes first
    rest = seen[4:] if seen[-2:] == ["sent", "read"] else seen[4:-1]
    assert rest == ["sent", "read"] * (len(rest) // 2)
    did.clear()
    decoder.generate([3, 4, 5], max_new_tokens=2, ignore_eos=True)
    assert did == ["read", "sent", "read"], "none is sent behind one that is the last for certain"
    check(decoder, tickets, alone)
    # Where the host is asked, or is to say something of each token, it is known first.
    did.clear()
    decoder.generate([3, 4, 5], max_new_tokens=9, logprobs=1, ignore_eos=True)
    assert ["sent", "sent"] not in [did[place : place + 2] for place in range(len(did))]


def test_few_prompts_wait_for_others_while_requests_wait_for_slots(spec, pair, alone, monkeypatch):
    decoder, read, original = made("captured", spec, pair, monkeypatch, slots=24), [], Passes.read
    monkeypatch.setattr("eagle.decoding.reading._FULL", 10_000)
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 10_000})
    decoder.loop.let_go()

    def noted(self):
        read.append(len(list(self._seats.reader.slots)))
        return original(self)

    monkeypatch.setattr(Passes, "read", noted)
    numbers = [number for number in range(48) if number % 6]
    tickets = play(decoder, [("ask", number) for number in numbers])
    assert sum(read) == len(numbers)
    assert read[0] == 24
    assert all(count >= 3 for count in read[1:-1]), "but for the last, of whom there are no more"
    check(decoder, tickets, alone)


def test_what_a_pass_says_once_more_is_what_it_said(spec, pair, alone, monkeypatch):
    decoder = made("captured", spec, pair, monkeypatch, slots=3)
    logits, pack, spoilt = Target.logits, Cycle.pack, []

    def spoil(self, hidden):
        found = logits(self, hidden)
        assert hidden.shape[:2] == (1, 3)  # of three segments, of which one prompt has the first
        spoilt.append(1)
        found[0, 1:] = found[0, 1:].roll(1, -1)
        return found

    def packed(self, *args):
        with monkeypatch.context() as patch:
            patch.setattr(Target, "logits", spoil)
            return pack(self, *args)

    monkeypatch.setattr(Cycle, "pack", packed)
    tickets = [*play(decoder, [("ask", 8)]), *play(decoder, [("ask", 2)])]
    assert spoilt
    check(decoder, tickets, alone)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "ahead"])
def test_texts_move_to_lower_slots_when_cycles_are_narrower_then(
    graph, spec, pair, alone, monkeypatch
):
    monkeypatch.setattr(Auto, "paged", True)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 8}), target=pair[0])
    runtime = decoder._runtime
    if graph:  # cycles are started ahead, over few different numbers of slots; nothing is captured
        decoder.loop.seats.let_go()
        monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)
        runtime.graph = True
        monkeypatch.setattr("eagle.runtime.widths._WORTH", 1)
    run, seen = runtime.run, []

    def noted(slots, *args, **options):
        live = int(slots.active.sum()), len(slots.active)
        assert live[0] == int(decoder.loop.seats.slots.active.sum()), "a slot was left out"
        seen.append(live)
        run(slots, *args, **options)

    monkeypatch.setattr(runtime, "run", noted)
    moved, move = [], decoder._cycle.move
    monkeypatch.setattr(
        decoder._cycle, "move", lambda slots, *ends: moved.append(ends) or move(slots, *ends)
    )
    numbers = [0, 24, 3, 9, 1, 2, 10, 14]  # the last ones are the longest, some sampled
    tickets = play(decoder, [("ask", number) for number in numbers])
    check(decoder, tickets, alone)
    assert moved
    assert all(target < source for source, target in moved)
    widths = [width for _, width in seen]
    assert widths[0] >= 4
    assert widths == sorted(widths, reverse=True)
    for (before, _), (live, width) in pairwise([seen[0], *seen]):
        # Where a cycle was started ahead, it runs over the slots of those, too, who have ended.
        assert width <= (1 << (before - 1).bit_length() if graph else live)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_nan_fails_alone_and_whoever_has_its_slot_next_is_not_harmed(
    paged, temperature, spec, pair, monkeypatch
):
    monkeypatch.setattr(Auto, "paged", paged)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])
    params = SamplingParams(max_new_tokens=9, temperature=temperature, seed=1, ignore_eos=True)
    prompts = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9, 11]]
    expected = [decoder.generate(prompt, params).tokens for prompt in prompts]
    poison = 50

    made = spec(attention="sdpa", runtime={"max_batch": 1, "compile": False})
    lones = [Decoder.from_spec(made, target=pair[0]) for _ in range(8)]
    for lone in lones:  # what is made of weights is made of sound ones
        lone.generate(prompts[0], params)

    def alone(prompt):
        try:
            return lones.pop().generate(prompt, params).tokens
        except NumericalError as error:
            return str(error)

    row = pair[0].model.get_input_embeddings().weight[poison]
    kept = row.clone()
    row.fill_(torch.nan)
    bad = [[poison] * 140, [*[5, 6, 7] * 22, poison], [3, poison, 4], [poison]]
    try:
        # A text may draft that token, too, and come to nothing of its own.
        wanted = [alone(prompt) for prompt in prompts[:3]]
        sinks = []
        for prompt in [bad[0], prompts[0], bad[1], prompts[1], bad[2], prompts[2], bad[3]]:
            _, made = decoder.intake(prompt, params, None, {}, False, None)
            sinks.append(Sink())
            decoder.loop.submit([Ticket(made[0], sinks[-1])])
        while decoder.loop.busy:
            decoder.loop.drive(bool)
    finally:
        row.copy_(kept)
    assert all(isinstance(sink.error, NumericalError) for sink in sinks[::2])
    assert [s.result.tokens if s.result else str(s.error) for s in sinks[1::2]] == wanted
    assert sum(not isinstance(one, str) for one in wanted) > 1
    # What was read of the prompts is found by nobody, now that the weights are mended.
    found = decoder.generate([*prompts, *bad], [params] * 8)
    assert [result.tokens for result in found[:4]] == expected
    for prompt, result in zip(bad, found[4:], strict=True):
        assert result.tokens == alone(prompt)


def test_what_fails_for_all_fails_for_those_who_were_seated_and_no_others(
    decoder, alone, monkeypatch
):
    build, calls = type(decoder.resolved.tree).build, []

    def fail(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError("by a bug")
        return build(self, *args)

    monkeypatch.setattr(type(decoder.resolved.tree), "build", fail)
    tickets = play(decoder, [("ask", number) for number in (2, 8, 14, 20, 26, 32, 38)])
    failed = [t.sink.error for t in tickets if t.sink.error]
    assert all(isinstance(error, EagleError) for error in failed)
    assert 0 < len(failed) <= 5
    for ticket in tickets:
        if ticket.sink.error is None:
            assert ticket.sink.result.tokens == alone(ticket.number)
    assert not decoder.loop.busy


def test_a_text_that_waits_for_blocks_is_not_overtaken_by_shorter_ones(spec, pair, monkeypatch):
    monkeypatch.setattr(Auto, "paged", True)
    monkeypatch.setattr(Room, "blocks", lambda self, wanted, slots: max(wanted))
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 5}), target=pair[0])
    seated, take = [], decoder.loop.seats.take

    def noted(request):
        if found := take(request):
            seated.append(len(request.prompt))
        return found

    monkeypatch.setattr(decoder.loop.seats, "take", noted)
    prompts = [[5] * length for length in (3, 4, 250, 2, 1)]
    found = decoder.generate(prompts, max_new_tokens=20, ignore_eos=True)
    assert seated == [3, 4, 250, 2, 1]
    for prompt, result in zip(prompts, found, strict=True):
        assert result.tokens == decoder.generate(prompt, max_new_tokens=20, ignore_eos=True).tokens


def test_who_has_a_higher_priority_is_seated_first(spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 1}), target=pair[0])
    order = []
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)):
        _, made = decoder.intake(TEXTS[0], asked(0)[1], None, {}, False, None)
        sink = SimpleNamespace(put=lambda t, e, name=name: order.append(name))
        decoder.loop.submit([Ticket(made[0], sink, priority)])
    while decoder.loop.busy:
        decoder.loop.drive(bool)
    assert order == ["b", "d", "a", "e", "c"]


def test_a_text_that_never_fits_is_refused_with_what_would_fit(spec, pair, monkeypatch):
    monkeypatch.setattr(Auto, "paged", True)
    decoder = Decoder.from_spec(spec(), target=pair[0])
    monkeypatch.setattr(decoder._runtime.room, "most_blocks", lambda total: 3)
    fits = 3 * 64 - decoder._cycle.headroom
    with pytest.raises(RequestError, match=rf"has memory for {fits}; .*max_new_tokens={fits - 3} "):
        decoder.generate([5, 6, 7], max_new_tokens=fits - 2)
    with pytest.raises(RequestError, match="shorten the prompt"):
        decoder.generate([5] * fits, max_new_tokens=1)
    assert not decoder.loop.busy
    text = decoder.generate([5, 6, 7], max_new_tokens=fits - 3, ignore_eos=True)
    assert len(text.tokens) == fits - 3


def test_where_something_else_holds_all_memory_no_shorter_prompt_is_asked_for(
    spec, pair, monkeypatch
):
    monkeypatch.setattr(Auto, "paged", True)
    decoder = Decoder.from_spec(spec(), target=pair[0])
    monkeypatch.setattr(decoder._runtime.room, "most_blocks", lambda total: 0)
    with pytest.raises(RequestError, match="no memory left for keys and values; whatever else"):
        decoder.generate([5, 6, 7], max_new_tokens=1)


def test_prompts_are_read_behind_cycles_that_are_under_way(spec, pair, alone, monkeypatch):
    decoder = made("ahead", spec, pair, monkeypatch, slots=4)
    loop, runtime, under_way = decoder.loop, decoder._runtime, []
    read = runtime.read

    def noted(*args):
        under_way.append(loop._running is not None)
        read(*args)

    monkeypatch.setattr(runtime, "read", noted)
    # Of unlike lengths, some sampled, none done with its first token.
    numbers = [2, 8, 9, 10, 3, 11, 4, 14, 5, 13, 1, 15]
    check(decoder, play(decoder, [("ask", number) for number in numbers]), alone)
    first = under_way.index(True)
    assert all(under_way[first:]), "the device had nothing to do meanwhile"
    assert len(under_way) > 2 * first
    # Whoever is done with the first token is read when nothing is under way.
    under_way.clear()
    check(decoder, play(decoder, [("ask", number) for number in (2, 3, 8, 9, 10, 12)]), alone)
    assert not under_way[-1]


def test_a_slot_that_a_stop_string_frees_is_anothers_though_a_cycle_still_runs_in_it(
    spec, pair, monkeypatch
):
    target = Target(pair[0].model, letters(64), "tiny")
    stops = [(), ("1",), ("b",), ("Z", "c"), ("ab",)]
    asked_for = [
        (
            TEXTS[number % 8],
            SamplingParams(
                max_new_tokens=12 + number % 9,
                temperature=number % 3 * 0.6,
                seed=number,
                stop=stops[number % 5],
                ignore_eos=True,
            ),
        )
        for number in range(40)
    ]
    lone = Decoder.from_spec(spec(attention="sdpa", runtime={"max_batch": 1}), target=target)
    expected = [lone.generate(*one) for one in asked_for]
    assert sum(one.finish_reason == "stop" for one in expected) >= 8
    decoder = made("ahead", spec, (target,), monkeypatch, slots=4)
    found = decoder.generate(*map(list, zip(*asked_for, strict=True)))
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.text for one in found] == [one.text for one in expected]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kept", ["blocks", "rows", "head's rows"])
@pytest.mark.parametrize("limit", [10, 12])
def test_nan_of_a_cycle_for_nothing_harms_nobody_who_has_its_slot_next(
    limit, kept, slots, spec, pair, alone, monkeypatch
):
    decoder = made("ahead", spec, pair, monkeypatch, slots)
    monkeypatch.setattr(Auto, "paged", kept != "rows")
    if kept == "head's rows":
        monkeypatch.setattr(Cycle, "shares", False)
    decoder.loop.let_go()
    # Long, so that others' prompts, read in pieces of 32 tokens, do not reach what lies behind it.
    text, ended = TEXTS[7], SamplingParams(max_new_tokens=limit, ignore_eos=True)
    others = (8, 2, 10, 14, 4)
    wanted = decoder.generate(text, ended).tokens
    forward, spoilt = Cycle.forward, []

    def overflows(self, tokens, step):
        """Give NaN to whoever goes on behind the first text's answer."""
        last, hidden = forward(self, tokens, step)
        one = next((r for r in decoder.loop.seats.batch.requests if r and r.params is ended), None)
        if one is None or step.segments is not None or step.slot is not None:
            return last, hidden
        slot = decoder.loop.seats.batch.requests.index(one)
        if step.lengths[slot] < len(text) + limit - 1:
            return last, hidden
        spoilt.append(slot)
        last[slot] = torch.nan
        for part in hidden:
            part[slot] = torch.nan
        place = self.cache.store.locate(step).place.view(step.rows.shape)[slot]
        for store in self.cache.store.stores:
            store[:, place] = torch.nan
        return last, hidden

    monkeypatch.setattr(Cycle, "forward", overflows)
    sinks = []
    for prompt, params in [(text, ended), *map(asked, others)]:
        _, (request,) = decoder.intake(prompt, params, None, {}, False, None)
        sinks.append(Sink())
        decoder.loop.submit([Ticket(request, sinks[-1])])
    while decoder.loop.busy:
        decoder.loop.drive(bool)
    assert not any(sink.error for sink in sinks)
    assert [sink.result.tokens for sink in sinks] == [wanted, *map(alone, others)]
    assert spoilt, "no cycle was for nothing"

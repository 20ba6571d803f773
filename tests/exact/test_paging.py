"""With rows in blocks, shared prefixes and prompts read together, each says what it says alone.

Rows are in blocks here for SDPA too, which copies them out; the kernels have tests of their own.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from eagle import Decoder, DecoderSpec, Engine, SamplingParams
from eagle.cache.blocks import Blocks
from eagle.cache.store import BLOCK
from eagle.decoding.seats import Seats
from eagle.errors import PluginError
from eagle.plugin.roles import BuildContext
from eagle.testing import tiny_target, tiny_text
from eagle_plugins.attention.auto import Auto
from eagle_plugins.heads.ablation import UnshiftedHead
from eagle_plugins.heads.eagle import EagleConfig
from tests.caches import noted_pieces
from tests.contracts import toys
from tests.interpreted import quick as quick

TREES = {
    "static": {"name": "static", "branching": [3, 2, 1]},
    "dynamic": {"name": "dynamic", "nodes": 12, "depth": 4, "top_k": 4},
    "none": {"name": "none"},
}
LENGTHS = (1, 70, 3, 2 * BLOCK, 130, 34, 2, 64)


@pytest.fixture
def paged(monkeypatch):
    monkeypatch.setattr(Auto, "paged", True)


@pytest.fixture(scope="module")
def prompts():
    text = tiny_text(8, max(LENGTHS), torch.Generator().manual_seed(3))
    return [row[:length].tolist() for row, length in zip(text, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def alone(spec, pair):
    """Return what a decoder without blocks says to each prompt by itself."""
    decoders = {}

    def answers(prompts, params, **changes):
        name = str(changes)
        if name not in decoders:
            decoders[name] = Decoder.from_spec(spec(attention="sdpa", **changes), target=pair[0])
        asked = zip(prompts, params, strict=True)
        return [decoders[name].generate(prompt, own).tokens for prompt, own in asked]

    return answers


def some(count, temperature=None, longest=40):
    return [
        SamplingParams(
            temperature=seed % 2 if temperature is None else temperature,
            seed=seed,
            max_new_tokens=(longest, 7, 1, 33)[seed % 4],
            ignore_eos=True,
        )
        for seed in range(count)
    ]


def stores(decoder):
    cycle = decoder._cycle
    return [*cycle.cache.store.stores, *getattr(cycle.head, "_cache", cycle.cache.store).stores]


def spoil(decoder, blocks):
    """Fill blocks with NaN, as if others had left it there."""
    with torch.inference_mode():
        for store in stores(decoder):
            for block in blocks:
                store[:, block * BLOCK : (block + 1) * BLOCK] = torch.nan


@pytest.fixture
def poisoned(monkeypatch):
    """Let every block that no text has, or that one gives back, hold NaN."""
    make, give_back = Seats.prepare, Blocks.give_back
    decoders = []

    def prepare(self, waiting):
        before = self.slots
        make(self, waiting)
        if self._cycle.paged and self.slots is not before:
            decoders.append(SimpleNamespace(_cycle=self._cycle, seats=self))
            spoil(decoders[-1], range(self.blocks.total + 1))

    def given(self, held, **options):
        own = held.blocks[len(held._known) :]
        give_back(self, held, **options)
        for decoder in decoders:
            if decoder.seats.blocks is self:
                spoil(decoder, own)

    monkeypatch.setattr(Seats, "prepare", prepare)
    monkeypatch.setattr(Blocks, "give_back", given)


@pytest.mark.parametrize("tree", TREES)
def test_what_others_left_in_blocks_is_never_seen(
    tree, spec, pair, prompts, alone, paged, poisoned
):
    head = {"head": {"name": "none"}} if tree == "none" else {}
    params = some(8)
    expected = alone(prompts, params, tree=TREES[tree], **head)
    made = spec(tree=TREES[tree], runtime={"max_batch": 3}, **head)
    decoder = Decoder.from_spec(made, target=pair[0])
    for _ in range(2):
        found = decoder.generate(prompts, params)
        assert [result.tokens for result in found] == expected
    assert decoder.loop.seats.blocks.free == decoder.loop.seats.blocks.total, "all were given back"


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("budget", [7, 50])
def test_prompts_read_in_bounded_passes_between_cycles(
    in_blocks, budget, spec, pair, prompts, alone, monkeypatch, request
):
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": budget})
    if in_blocks:
        request.getfixturevalue("paged")
        request.getfixturevalue("poisoned")
    params = some(8)
    expected = alone(prompts, params)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 4}), target=pair[0])
    runtime, order = decoder._runtime, []

    def noted(name, original):
        def call(*args, **options):
            order.append(name if name == "run" else sum(p.end - p.start for p in args[1]))
            return original(*args, **options)

        return call

    monkeypatch.setattr(runtime, "read", noted("read", runtime.read))
    monkeypatch.setattr(runtime, "run", noted("run", runtime.run))
    found = decoder.generate(prompts, params)
    assert [result.tokens for result in found] == expected
    read = [entry for entry in order if entry != "run"]
    assert max(read) <= budget
    assert sum(read) == sum(LENGTHS)
    first = order.index("run")
    if budget < 50:
        assert any(entry != "run" for entry in order[first:]), "cycles waited for the prompts"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_goes_on_behind_a_prefix_that_others_have_read(
    temperature, spec, pair, alone, paged, poisoned, monkeypatch
):
    system = tiny_text(1, 3 * BLOCK, torch.Generator().manual_seed(5))[0].tolist()
    prompts = [[*system, 5, 6, 7], [*system, 9], [*system[: 2 * BLOCK], 40, 41], [8, 9]]
    params = some(4, temperature)
    expected = alone(prompts, params)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 1}), target=pair[0])
    pieces = noted_pieces(decoder, monkeypatch)

    def read():
        return [(piece.request.index, piece.start) for piece in pieces if piece.last]

    found = decoder.generate(prompts, params)
    assert [result.tokens for result in found] == expected
    # Of the first prompt, the token behind the third block is another than the second's.
    assert read() == [(0, 0), (1, 2 * BLOCK), (2, BLOCK), (3, 0)]
    again = decoder.generate(prompts[0], params[0])
    assert again.tokens == expected[0]
    assert read()[-1] == (0, 3 * BLOCK)


def test_a_head_that_sees_own_tokens_goes_on_behind_a_shared_prefix(
    pair, paged, poisoned, tmp_path
):
    """The first of its own tokens is behind a shared one."""
    head = UnshiftedHead(EagleConfig(weights=str(tmp_path)), BuildContext())
    head.initialise(pair[0], 0)
    head.save(tmp_path)
    made = {"name": "feature-unshifted", "weights": str(tmp_path)}
    text = tiny_text(1, 2 * BLOCK + 9, torch.Generator().manual_seed(5))[0].tolist()
    states = []
    for attention in ("sdpa", "auto"):
        decoder = Decoder.from_spec(DecoderSpec(head=made, attention=attention), target=pair[0])
        for end in (2 * BLOCK + 5, 2 * BLOCK + 9):
            decoder.generate(text[:end], max_new_tokens=2, ignore_eos=True)
            states.append(decoder.loop.seats.slots.state[0].clone())
    torch.testing.assert_close(states[:2], states[2:])
    assert decoder.loop.seats.blocks._found, "nothing was shared"


def test_a_chat_goes_on_behind_its_own_earlier_turns(spec, pair, alone, paged, poisoned):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    text = tiny_text(1, 40, torch.Generator().manual_seed(6))[0].tolist()
    params = some(1, 0.0, longest=60)
    for turn in range(3):
        (expected,) = alone([text], params)
        result = decoder.generate(text, params[0])
        assert result.tokens == expected
        text = [*text, *result.tokens, 5 + turn, 6]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_second_turn_goes_on_behind_the_first_answer(
    temperature, spec, pair, alone, paged, poisoned, monkeypatch
):
    """Rows of an answer were written by cycles, its head's too; the next turn reads none anew."""
    decoder = Decoder.from_spec(spec(), target=pair[0])
    read = noted_pieces(decoder, monkeypatch)
    text = tiny_text(1, 10, torch.Generator().manual_seed(6))[0].tolist()
    params, found = some(1, temperature, longest=BLOCK + 30), []
    for turn in range(3):
        (expected,) = alone([text], params)
        with Engine(decoder) as engine:  # which makes room for longer texts from the start
            result = engine.submit(text, params[0]).result()
        assert result.tokens == expected
        # All but the last token, which nobody had read.
        found.append((len(text) + len(result.tokens) - 1) // BLOCK * BLOCK)
        text = [*text, *result.tokens, 5 + turn, 6]
    assert [piece.start for piece in read] == [0, *found[:-1]]
    assert found[0] == BLOCK


def test_who_finds_no_blocks_waits_and_all_are_answered(
    spec, pair, prompts, alone, paged, poisoned, monkeypatch
):
    params = some(8)
    expected = alone(prompts, params)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 8}), target=pair[0])
    monkeypatch.setattr(
        type(decoder._runtime.room), "blocks", lambda self, wanted, slots: max(wanted)
    )
    together, original = [], decoder._runtime.run

    def noted(slots, *args, **options):
        together.append(int(slots.active.sum()))
        return original(slots, *args, **options)

    monkeypatch.setattr(decoder._runtime, "run", noted)
    found = decoder.generate(prompts, params)
    assert [result.tokens for result in found] == expected
    assert 1 < max(together) < 8


def test_a_stream_that_is_left_gives_its_blocks_back(spec, pair, prompts, alone, paged, poisoned):
    params = some(4, 0.0)
    expected = alone(prompts[:4], params)
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 4}), target=pair[0])
    for _ in range(3):
        stream = decoder.stream(prompts[:4], params)
        for _ in range(5):
            next(stream)
        stream.close()
    found = decoder.generate(prompts[:4], params)
    assert [result.tokens for result in found] == expected
    assert decoder.loop.seats.blocks.free == decoder.loop.seats.blocks.total


def test_blocks_follow_the_texts_that_there_are(spec, pair, paged):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 32}), target=pair[0])
    decoder.generate([[5, 6, 7] * 9] * 32, max_new_tokens=100, ignore_eos=True)
    rows = 32 * (27 + 100 + decoder._cycle.headroom)
    assert decoder.loop.seats.blocks.total * BLOCK <= 1.125 * (rows + 32 * BLOCK)
    assert stores(decoder)[0].shape[1] == (1 + decoder.loop.seats.blocks.total) * BLOCK


# --- with what targets, heads and trees may be besides --------------------------------------------


@pytest.mark.parametrize("architecture", ["mistral-window", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("attention", ["auto", "triton", "dense"])
def test_windows_caps_and_sinks_reach_packed_prompts_and_blocks(
    architecture, attention, prompts, monkeypatch, request
):
    """Triton's kernels are interpreted on a CPU; `dense` is SDPA without blocks."""
    if attention == "triton" and torch.cuda.is_available():
        pytest.skip("kernels are compiled, for the GPU")
    target = tiny_target(architecture)
    name = "sdpa" if attention == "dense" else attention
    if attention == "auto":
        request.getfixturevalue("paged")
        request.getfixturevalue("poisoned")
    some = [prompts[place] for place in (1, 2, 4, 5)]
    expected = []
    with target.stock() as model:
        for prompt in some:
            found = model.generate(
                torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=[-1]
            )
            expected.append(tuple(found[0, len(prompt) :].tolist()))
    tree = {"name": "static", "branching": [2, 1]}
    spec = DecoderSpec(head="own-end", features="layers", tree=tree, attention=name)
    decoder = Decoder.from_spec(spec, registry=toys.registry(), target=target)
    packed = counted(decoder, "read_together", monkeypatch)
    found = decoder.generate(some, max_new_tokens=6, ignore_eos=True)
    assert [result.tokens for result in found] == expected
    assert packed, "prompts were read one by one"


def counted(decoder, method, monkeypatch):
    """Return a list that grows by one with each call of a method of the decoder's cycle."""
    calls, original = [], getattr(decoder._cycle, method)

    def call(*args, **options):
        calls.append(method)
        return original(*args, **options)

    monkeypatch.setattr(decoder._cycle, method, call)
    return calls


@pytest.mark.parametrize(
    ("parts", "shares", "temperature"),
    [
        ({"head": "own-end", "features": "layers", "tree": TREES["static"]}, True, None),
        # Others decide which tree is drafted, hence what is drawn: the same distribution, not text.
        ({"head": "own-end", "features": "layers", "tree": "varying"}, True, 0.0),
        ({"head": "at-once", "tree": TREES["static"]}, False, None),
        ({"head": "mtp", "tree": "varying"}, False, 0.0),
        ({"head": "ngram", "tree": {"name": "chain", "depth": 3}}, False, None),
    ],
    ids=lambda part: f"{part['head']}, {part['tree']}" if isinstance(part, dict) else "",
)
def test_every_kind_of_head_and_tree_says_the_same_over_blocks(
    parts, shares, temperature, pair, prompts, paged, poisoned, monkeypatch
):
    """Those with a vocabulary of their own, trees of varying shape, memories of their own."""
    registry, params = toys.registry(), some(8, temperature)

    def decoder(**changes):
        return Decoder.from_spec(DecoderSpec(**parts, **changes), registry=registry, target=pair[0])

    alone = decoder(attention="sdpa", runtime={"max_batch": 1})
    pairs = zip(prompts, params, strict=True)
    expected = [alone.generate(prompt, own).tokens for prompt, own in pairs]
    together = decoder(runtime={"max_batch": 3})
    packed = counted(together, "read_together", monkeypatch)
    for _ in range(2):
        found = together.generate(prompts, params)
        assert [result.tokens for result in found] == expected
    assert together._cycle.shares == shares
    assert bool(packed) == (shares or parts["head"] == "ngram")
    assert together.loop.seats.blocks.free == together.loop.seats.blocks.total


def test_a_head_that_does_not_know_packed_passes_is_told_of_one_prompt_at_a_time(
    pair, prompts, paged, monkeypatch
):
    told, original = [], toys.Levels.absorb

    def absorb(self, committed):
        told.append(committed)
        return original(self, committed)

    monkeypatch.setattr(toys.Levels, "absorb", absorb)
    spec = DecoderSpec(head="mtp", tree={"name": "chain", "depth": 2})
    decoder = Decoder.from_spec(spec, registry=toys.registry(), target=pair[0])
    decoder.generate(prompts[:3], max_new_tokens=5, ignore_eos=True)
    assert all(one.step.segments is None for one in told)
    assert [one.tokens.shape[0] for one in told][:4] == [1, 1, 1, 3]


def test_packed_entries_are_all_real(pair, spec, prompts, paged, monkeypatch):
    told, decoder = [], Decoder.from_spec(spec(), target=pair[0])
    head = decoder.resolved.head
    original = head.absorb

    def absorb(committed):
        told.append(committed)
        return original(committed)

    monkeypatch.setattr(head, "absorb", absorb)
    decoder.generate(prompts[:3], max_new_tokens=1, ignore_eos=True)
    (one,) = told
    texts = prompts[:3]
    assert one.own.tolist() == [[token for text in texts for token in text]]
    assert one.count.tolist() == [sum(map(len, texts))]
    assert one.step.slots[0].tolist() == [slot for slot, text in enumerate(texts) for _ in text]
    firsts = [result.tokens[0] for result in decoder.generate(texts, max_new_tokens=1)]
    ahead = [[*text[1:], first] for text, first in zip(texts, firsts, strict=True)]
    assert one.tokens.tolist() == [[token for text in ahead for token in text]]


# --- who is told when slots are given and freed ---------------------------------------------------


@pytest.fixture
def events(monkeypatch):
    """Return what a head that looks texts up was told of slots, in order."""
    told, begin, end = [], toys.NGram.begin_request, toys.NGram.end_request

    def begun(self, slot, prompt):
        told.append(("begin", slot, tuple(prompt)))
        begin(self, slot, prompt)

    def ended(self, slot, text):
        told.append(("end", slot, tuple(text)))
        end(self, slot, text)

    monkeypatch.setattr(toys.NGram, "begin_request", begun)
    monkeypatch.setattr(toys.NGram, "end_request", ended)
    return told


def looking(target, **changes):
    spec = DecoderSpec(head="ngram", tree={"name": "chain", "depth": 2}, **changes)
    return Decoder.from_spec(spec, registry=toys.registry(), target=target)


def checked(events, prompts):
    """Check that each prompt begins and ends once, one after the other in each slot."""
    begun = [text for kind, _, text in events if kind == "begin"]
    assert begun == [tuple(prompt) for prompt in prompts[: len(begun)]]
    own = {}
    for kind, slot, text in events:
        if kind == "begin":
            assert slot not in own, "a slot was given twice"
            own[slot] = text
        else:
            begin = own.pop(slot)
            assert text[: len(begin)] == begin
    assert not own, "a request never ended"
    return len(begun)


@pytest.mark.parametrize("budget", [7, 4096])
def test_who_is_aware_of_requests_is_told_once_of_each(
    budget, pair, prompts, paged, events, monkeypatch
):
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": budget})
    decoder = looking(pair[0], runtime={"max_batch": 3})
    # There are too few blocks for three texts at once, so that slots wait for some.
    monkeypatch.setattr(
        type(decoder._runtime.room), "blocks", lambda self, wanted, slots: max(wanted)
    )
    found = decoder.generate(prompts, max_new_tokens=9, ignore_eos=True)
    assert checked(events, prompts) == len(prompts)
    texts = {(*prompt, *one.tokens) for prompt, one in zip(prompts, found, strict=True)}
    assert {text for kind, _, text in events if kind == "end"} == texts


@pytest.mark.parametrize("after", [0, 3])
def test_requests_end_that_were_being_read_when_a_stream_was_left(
    after, pair, prompts, paged, events, monkeypatch
):
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 20})
    decoder = looking(pair[0])
    order = [prompts[2], prompts[1], prompts[4]]  # the first is decoded while others are read
    stream = decoder.stream(order, max_new_tokens=20, ignore_eos=True)
    for _ in range(1 + after):
        next(stream)
    stream.close()
    assert checked(events, order) == 3
    events.clear()
    decoder.generate(order, max_new_tokens=2)
    assert checked(events, order) == 3


def test_requests_end_once_where_another_stream_is_served_between(pair, prompts, paged, events):
    decoder = looking(pair[0])
    first = decoder.stream(prompts[:2], max_new_tokens=20, ignore_eos=True)
    next(first)
    decoder.generate(prompts[2:4], max_new_tokens=2)
    list(first)
    assert checked(events, prompts) == 4


@pytest.mark.parametrize("place", ["read", "run"])
def test_requests_end_once_where_a_pass_fails(place, pair, prompts, paged, events, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 20})
    decoder, calls = looking(pair[0]), []
    original = getattr(decoder._runtime, place)

    def failing(*args, **options):
        calls.append(place)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(decoder._runtime, place, failing)
        with pytest.raises(PluginError, match="out of memory"):
            decoder.generate(prompts[:4], max_new_tokens=9, ignore_eos=True)
    assert checked(events, prompts) == 4
    events.clear()
    decoder.generate(prompts[:4], max_new_tokens=2)
    assert checked(events, prompts) == 4


def test_a_prompt_that_cannot_begin_costs_no_answer_of_those_before(
    pair, prompts, paged, events, monkeypatch
):
    begin = toys.NGram.begin_request

    def refusing(self, slot, prompt):
        begin(self, slot, prompt)
        if len(prompt) == 3:
            raise RuntimeError("no")

    monkeypatch.setattr(toys.NGram, "begin_request", refusing)
    decoder = looking(pair[0])
    with pytest.raises(PluginError) as caught:
        decoder.generate(prompts[:3], max_new_tokens=1)
    assert set(caught.value.results) == {0, 1}
    assert checked(events, prompts) == 3


def test_prompts_that_are_read_one_by_one_are_lost_one_by_one(pair, prompts, paged, monkeypatch):
    spec = DecoderSpec(head="mtp", tree={"name": "chain", "depth": 2})
    decoder = Decoder.from_spec(spec, registry=toys.registry(), target=pair[0])
    original = decoder._runtime.prefill

    def failing(slots, slot, *args, **options):
        if slot == 1:
            raise RuntimeError("out of memory")
        return original(slots, slot, *args, **options)

    monkeypatch.setattr(decoder._runtime, "prefill", failing)
    with pytest.raises(PluginError, match="out of memory") as caught:
        decoder.generate(prompts[:3], max_new_tokens=1)
    assert set(caught.value.results) == {0}

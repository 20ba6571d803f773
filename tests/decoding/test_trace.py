"""Looking on changes nothing, and shows what was there."""

import pytest
import torch

from eagle import Decoder
from eagle.decoding.trace import Trace
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext
from eagle.spec.building import resolve

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18]]
SAMPLED = {"name": "static", "branching": [3, 2], "sampling": "without-replacement"}


@pytest.fixture
def watched(spec, pair):
    """Make a decoder and its trace."""

    def make(**changes):
        trace = Trace()
        resolved = resolve(spec(**changes), default_registry(), BuildContext(pair[0].info))
        return Decoder(trace.watch(resolved), pair[0]), trace

    return make


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_watched_decoder_gives_the_same_tokens(temperature, watched, spec, pair):
    decoder, _ = watched(tree=SAMPLED)
    other = Decoder.from_spec(spec(tree=SAMPLED), target=pair[0])
    options = {"max_new_tokens": 40, "temperature": temperature, "seed": 4, "ignore_eos": True}
    pairs = zip(
        decoder.generate(PROMPTS, **options), other.generate(PROMPTS, **options), strict=True
    )
    assert all(mine.tokens == theirs.tokens for mine, theirs in pairs)


def test_a_watched_decoder_is_never_captured(watched):
    decoder, _ = watched()
    assert not decoder.resolved.capturable


def test_there_is_nothing_to_see_before_the_first_cycle(watched):
    decoder, trace = watched()
    with pytest.raises(LookupError, match="no cycle"):
        trace.cycle()
    next(decoder.stream(PROMPTS[0]))
    with pytest.raises(LookupError, match="no cycle"):
        trace.cycle()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_slot_shows_its_own_cycle(temperature, watched):
    decoder, trace = watched(tree=SAMPLED)
    given = [[], []]
    options = {"max_new_tokens": 40, "temperature": temperature, "ignore_eos": True}
    for number, event in enumerate(decoder.stream(PROMPTS, **options)):
        before = list(given[event.index])
        given[event.index] += event.tokens
        if number < 2 or event.finish_reason:
            continue
        cycle = trace.cycle(event.index)
        path = [node.token for node in cycle.nodes if node.accepted]
        assert path[0] == before[-1]
        assert (*path[1:], cycle.bonus) == event.tokens
        assert cycle.temperature == pytest.approx(temperature or 1)
        for node in cycle.nodes[1:]:
            assert 0 < node.draft_prob <= 1, "a candidate that was drawn had a chance"
            assert 0 <= node.target_prob <= 1


def test_probabilities_are_the_targets_own(watched, pair):
    decoder, trace = watched()
    events = list(decoder.stream(PROMPTS[0], max_new_tokens=2, ignore_eos=True))
    first, cycle = events[0].tokens[0], trace.cycle()
    with pair[0].stock() as model, torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*PROMPTS[0], first]])).logits[0, -1]
    expected = logits.softmax(-1)
    for node in cycle.nodes:
        if node.depth == 1:
            assert node.target_prob == pytest.approx(expected[node.token].item(), abs=1e-5)

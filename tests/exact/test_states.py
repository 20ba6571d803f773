"""What the output cannot show: a head that is told the wrong things only drafts worse."""

from __future__ import annotations

import pytest
import torch

from eagle import SamplingParams
from eagle.cycle.drafter import HeadDrafter
from eagle.plugin.draws import UniformDraws
from tests.exact.tiny import DEVICES, PROMPTS, exact_decoder

FORK = {"name": "static", "tree": [[0], [1], [0, 0], [0, 1], [1, 0], [1, 0, 0]]}
DYNAMIC = {"name": "dynamic", "nodes": 6, "depth": 4, "top_k": 2}
PARAMS = [
    SamplingParams(temperature=temperature, seed=3, max_new_tokens=40, ignore_eos=True)
    for temperature in (1.0, 0.0)
]


def true_features(decoder, text):
    """Return the target's features ``[1, L, H]`` of a text, by its plain forward."""
    ids = torch.tensor([text], device=decoder.target.device)
    with torch.inference_mode(), decoder.target.stock() as model:
        return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state


def head_states(decoder, tokens, features):
    """Return the head's states over a text, entry t absorbing token t + 1, without its cache."""
    length = len(tokens)
    visible = torch.ones(length, length, dtype=torch.bool, device=features.device).tril()
    with torch.inference_mode():
        return decoder.resolved.head.train_states(
            torch.tensor([tokens], device=features.device),
            torch.tensor([tokens], device=features.device),  # the head `eagle` does not look at it
            [features],
            torch.arange(length, device=features.device)[None],
            visible[None, None],
        )


def slot_of(decoder, index):
    """Return the slot of a prompt, which moves up where blocks let it, once others have ended."""
    requests = decoder.loop.seats.batch.requests
    return next(slot for slot, one in enumerate(requests) if one and one.index == index)


def same(found, expected, what):
    torch.testing.assert_close(found, expected, msg=lambda message: f"{what} is wrong: {message}")


def assert_states_are_the_heads_on_the_true_text(decoder):
    """After every cycle, the state of every slot is that of the head over the whole text."""
    texts = [list(prompt) for prompt in PROMPTS]
    compared = gains = 0
    for event in decoder.stream(PROMPTS, PARAMS):
        text = texts[event.index]
        text += event.tokens
        if event.finish_reason:
            continue
        expected = head_states(decoder, text[1:], true_features(decoder, text)[:, :-1])[0, -1]
        slot, slots = slot_of(decoder, event.index), decoder.loop.seats.slots
        same(slots.state[slot], expected, f"the state after {len(text)} tokens")
        assert slots.lengths[slot] == len(text) - 1
        assert slots.root[slot] == text[-1]
        compared, gains = compared + 1, max(gains, len(event.tokens))
    assert compared > 20
    assert gains > 2, "no long path was committed, so nothing was shown"


def assert_drafts_are_the_heads_along_each_path(decoder):
    """Draft logits are those of the head run on the true text and then on its own states."""
    drafters = []

    class Recorder(HeadDrafter):
        def __init__(self, *args):
            super().__init__(*args)
            self.paths, self.asked = [{-1: ()} for _ in PROMPTS], []
            drafters.append(self)

        def expand(self, tokens, parents, *, level=None):
            logits = super().expand(tokens, parents, level=level)
            for column in range(tokens.shape[1]):
                for paths, above in zip(self.paths, parents[:, column].tolist(), strict=True):
                    paths[len(self.asked)] = (*paths[above], len(self.asked))
                self.asked.append((tokens[:, column].tolist(), logits[:, column]))
            return logits

    texts = [list(prompt) for prompt in PROMPTS]
    compared = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eagle.cycle.cycle.HeadDrafter", Recorder)
        for event in decoder.stream(PROMPTS, PARAMS):
            for number in range(len(drafters[-1].asked) if drafters else 0):
                path = drafters[-1].paths[event.index][number]
                text = texts[event.index]
                features = true_features(decoder, text)[:, :-1]
                tokens = text[1:]
                for node in path:
                    # The state that predicted a drafted token stands where its feature would.
                    state = head_states(decoder, tokens, features)[:, -1:]
                    features = torch.cat((features, state), 1)
                    tokens = [*tokens, drafters[-1].asked[node][0][event.index]]
                states = head_states(decoder, tokens, features)
                same(
                    drafters[-1].asked[number][1][event.index],
                    decoder.target.logits(states)[0, -1],
                    f"the draft behind a path of {len(path)}",
                )
                compared += 1
            texts[event.index] += event.tokens
            if len(texts[0]) > len(PROMPTS[0]) + 25:
                break
    assert compared > 20


def assert_no_uniform_is_read_twice(decoder):
    """Every draw of every request reads a uniform of its own; an idle slot's do not count."""
    seen = []

    class Recorder(UniformDraws):
        def read(self, count):
            read = super().read(count)
            slots = decoder.loop.seats.slots.active[: len(read)] if len(read) > 1 else [True]
            seen.extend(row.tolist() for row, active in zip(read, slots, strict=True) if active)
            return read

    decoder._cycle.draws = Recorder
    params = [PARAMS[0].model_copy(update={"seed": seed}) for seed in range(3)]
    decoder.generate([*PROMPTS, [2]], params)
    values = [value for row in seen for value in row]
    assert len(values) > 200
    assert len(set(values)) == len(values), "a uniform was read twice"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tree", [FORK, DYNAMIC], ids=["static", "dynamic"])
def test_states_are_the_heads_on_the_true_text(tree, device):
    assert_states_are_the_heads_on_the_true_text(exact_decoder(device=device, eager=True, **tree))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tree", [FORK, DYNAMIC], ids=["static", "dynamic"])
def test_drafts_are_the_heads_along_each_path(tree, device):
    assert_drafts_are_the_heads_along_each_path(exact_decoder(device=device, eager=True, **tree))


def test_no_uniform_is_read_twice():
    assert_no_uniform_is_read_twice(exact_decoder(**FORK))

"""Drafters of all levels in one pass, and those made of others, in another shape."""

from __future__ import annotations

import json

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.bench.shapes import Shape
from eagle.bench.subjects import _widened
from eagle.bench.widen import widen_model
from eagle.bench.widen_head import widen_head
from eagle.cache.store import Step
from eagle.errors import RequestError
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target
from tests.strategies.drafters import published_blocks as blocks
from tests.strategies.drafters import trial

# The tiny target has 2 layers, 4 query heads, 2 key-value heads of 8, and a hidden size of 32.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("same-groups", 96, 3, 6, 3, 32, 160),
        Shape("no-groups", 64, 4, 8, 8, 8, 128),
        Shape("larger-groups", 96, 4, 12, 3, 48, 200),
    )
}


EAGLE = {"name": "eagle", "weights": "PAIRS"}  # the folder of the tiny pair's head


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def padded(features, shape, joined):
    """Features of a narrow target as its widened one has them: zeros behind each of them."""
    zeros = features.new_zeros(
        *features.shape[:-1], shape.hidden_size - features.shape[-1] // joined
    )
    return torch.cat([part for one in features.chunk(joined, -1) for part in (one, zeros)], -1)


def drafts(head, features, levels=3):
    text = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(1))
    found = []
    for known in (1, 5, 7):
        root, state = trial.absorbed(head, text, features, known)
        found.append(head.draft(root, state, Step.chain(torch.tensor([known] * 2), levels, 64)))
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False])
def test_medusa_heads_say_the_same(target, shape, tmp_path, own):
    narrow = trial.fresh("medusa", target, heads=3, blocks=2, own_lm_head=own)
    narrow.initialise(target, 0)
    generator = torch.Generator().manual_seed(2)
    for weight in narrow.module.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
    widen_head(narrow, target.info, shape, tmp_path)
    wide_target = Target(widen_model(target.model, shape), None, "wide")
    wide = trial.load("medusa", wide_target, tmp_path)
    features = torch.randn(2, 7, 32, generator=generator)
    expected, found = drafts(narrow, features), drafts(wide, padded(features, shape, 1))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == shape.hidden_size


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_block_drafters_say_the_same(target, shape, tmp_path, causal):
    for folder in ("narrow", "wide"):
        (tmp_path / folder).mkdir()
    files = blocks.zlab(tmp_path / "narrow", blocks.weights(), causal_head=causal)
    narrow = trial.load("parallel", target, files)
    widen_head(narrow, target.info, shape, tmp_path / "wide")
    wide_target = Target(widen_model(target.model, shape), None, "wide")
    wide = trial.load("parallel", wide_target, tmp_path / "wide")
    # Layers 1 and 2 of 2: the last is behind the final norm, so it is the last one there too.
    assert narrow.feature_layers(target.info) == (1, 2)
    assert wide.feature_layers(wide_target.info) == (1, shape.layers)
    features = torch.randn(2, 7, 2 * 32, generator=torch.Generator().manual_seed(3))
    expected, found = drafts(narrow, features), drafts(wide, padded(features, shape, 2))
    torch.testing.assert_close(found, expected, atol=2e-3 * float(expected.std()), rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_what_is_not_known_has_no_place(target, tmp_path):
    files = blocks.zlab(tmp_path, blocks.weights())
    head = trial.load("parallel", target, files)
    head.module.gate = torch.nn.Linear(2, 2)
    with pytest.raises(RequestError, match="no place in a wider head for its gate"):
        widen_head(head, target.info, SHAPES["no-groups"], tmp_path / "wide")


@pytest.mark.parametrize(
    "parts",
    [
        {"head": {"name": "prompt-lookup", "sure": 0.0}, "tree": {"name": "offered"}},
        {"head": "recycling", "tree": {"name": "offered"}},
        {
            "head": {"name": "cascade", "drafters": ["prompt-lookup", EAGLE]},
            "tree": {"name": "offered", "otherwise": "static"},
        },
        {
            "head": {
                "name": "cascade",
                "drafters": [
                    "recycling",
                    {"name": "cascade", "drafters": ["prompt-lookup", EAGLE]},
                ],
            },
            "tree": {"name": "offered", "otherwise": "static"},
        },
    ],
    ids=["prompt-lookup", "recycling", "cascade", "cascade within a cascade"],
)
def test_what_has_no_weights_drafts_alike_and_so_does_a_cascade(pair, parts):
    shape = Shape("same-groups", 96, 3, 6, 3, 32, 160)
    parts = json.loads(json.dumps(parts).replace("PAIRS", str(pair[1])))
    spec = DecoderSpec(**({"features": "auto"} | parts))
    narrow = Decoder.from_spec(spec, target=pair[0])
    wide = _widened(spec, pair[0], Target(widen_model(pair[0].model, shape), None, "wide"), shape)
    prompts = [[5, 6, 7, 5, 6, 7, 5, 6], [10, 12, 14, 16, 18], [40]]
    given = {"max_new_tokens": 40, "ignore_eos": True}
    expected, found = narrow.generate(prompts, **given), wide.generate(prompts, **given)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    accepted = [one.stats.accepted_per_cycle for one in expected]
    assert [one.stats.accepted_per_cycle for one in found] == accepted
    if "otherwise" in spec.tree.settings:
        assert max(map(max, accepted)) > 1  # by the head that has weights

"""An EAGLE-3 head keeps the target's distribution exactly, with every tree and rule."""

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.plugin.sampling import SamplingParams
from eagle.testing import assert_decoder_lossless
from tests.exact.tiny import PROMPTS, _pair

TREES = {
    "chain": {"name": "chain", "depth": 2},
    "fork": {"name": "static", "tree": [[0], [1], [1, 0]]},
    "fork-top-k": {"name": "static", "tree": [[0], [1], [1, 0]], "sampling": "top-k"},
    "dynamic": {"name": "dynamic", "nodes": 3, "depth": 2, "top_k": 2},
}
VARIANTS = {
    "EAGLE-3": {},
    "EAGLE-3.1": {"fc_norm": "each", "feed_back": "after-norm"},
}


@pytest.fixture(scope="module")
def target():
    return _pair(4, "cpu")[0]


@pytest.fixture
def folder(target, tmp_path):
    """Make a head that has opinions, over three of four tokens."""

    def make(**settings):
        strategy = default_registry().get(Role.HEAD, "eagle3").strategy
        layers = tuple(range(target.info.layers + 1))
        config = strategy.config(layers=layers, draft_vocab_size=3, **settings)
        head = strategy.build(config, BuildContext(target.info, fresh=True))
        head.choose_vocabulary(torch.tensor([1, 9, 5, 7]))
        head.initialise(target, 5)
        with torch.no_grad():
            for parameter in head.module.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(20)
        head.save(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_is_the_targets_distribution(target, folder, tree, variant):
    made = DecoderSpec(
        features="auto",
        head={"name": "auto", "weights": str(folder(**VARIANTS[variant]))},
        tree=TREES[tree],
        runtime={"max_batch": 64},
    )
    decoder = Decoder.from_spec(made, target=target)
    assert decoder.resolved.head.draft_vocab.tolist() == [1, 2, 3]
    params = SamplingParams(temperature=1.0)
    assert_decoder_lossless(decoder, PROMPTS, params, tokens=3, tolerance=1e-12)

"""At temperature 1 every phase compiles, over a vocabulary as large as models have."""

import logging

import pytest

from eagle import Decoder, DecoderSpec
from eagle.plugin.sampling import SamplingParams
from eagle.target.causal_lm import Target
from eagle.testing import tiny_head, tiny_target

TREES = {
    "static": {"name": "static", "tree": "reference-25"},
    "dynamic": {"name": "dynamic", "nodes": 60, "depth": 6, "top_k": 10},
    "none": {"name": "none"},
}
PROMPTS = [[3, 4, 5, 6, 7], [10, 12, 14]]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tiny target with a large vocabulary on the device, and the folder of an untrained head."""
    target = tiny_target(vocab_size=49152)
    folder = tmp_path_factory.mktemp("head")
    tiny_head(target).save(folder)
    return Target(target.model.to("cuda"), None, "tiny-large"), folder


def decoder_in(large, tree, compiled):
    target, folder = large
    return Decoder.from_spec(
        DecoderSpec(
            head={"name": "eagle", "weights": str(folder)},
            tree=TREES[tree],
            runtime={"max_batch": 2, "cuda_graph": compiled, "compile": compiled},
        ),
        target=target,
    )


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("tree", TREES)
def test_sampling_compiles_and_says_what_it_says_uncompiled(large, tree, slots, caplog):
    caplog.set_level(logging.WARNING, logger="eagle.runtime")
    params = SamplingParams(max_new_tokens=24, temperature=1.0, seed=3, ignore_eos=True)
    expected, found = (
        [
            result.tokens
            for result in decoder_in(large, tree, mode).generate(PROMPTS[:slots], params)
        ]
        for mode in (False, True)
    )
    assert not [record.message for record in caplog.records if record.name == "eagle.runtime"]
    assert found == expected

"""A target that is spread over two devices, against the same one on one."""

import pytest
import torch

from eagle.target import load_target
from eagle.train.run.run import train
from tests.train.test_spread import assert_same_run, spec  # noqa: F401


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")
def test_a_target_is_spread_over_two_devices(spec):  # noqa: F811
    first = "model.embed_tokens: 0, model.rotary_emb: 0, model.layers.0: 0"
    spread = spec(
        "map", f"target.device_map={{{first}, model.layers.1: 1, model.norm: 1, lm_head: 1}}"
    )
    assert load_target(spread.target, spread.document.folder).device == torch.device("cuda:1")
    train(spec("one", "compile=false"))
    train(spread)
    assert_same_run(spec("one"), spec("map"))

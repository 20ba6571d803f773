"""A widened target is made in parts by the processes that hold it, and is the whole one."""

import os

import torch

from eagle.bench import Shape
from eagle.bench.widen import widen_model
from eagle.target import Target, Together
from eagle.testing import tiny_target
from tests.train.together import run_together

SHAPE = Shape("test", 64, 3, 4, 4, 16, 160)
TOKENS = torch.tensor([[5, 9, 13, 17, 60, 3]])


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits


def _widened(wanted):
    together = Together.join()
    model = widen_model(tiny_target().model, SHAPE, together=together)
    assert model.model.layers[0].mlp.down_proj.weight.shape == (64, 80)
    Target(model, None, "wide")
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    assert together.count == int(os.environ["WORLD_SIZE"])


def test_two_processes_make_the_parts_of_what_one_makes():
    run_together(_widened, logits(widen_model(tiny_target().model, SHAPE)))

"""Kernels are used where they say what PyTorch's operators say, and nowhere else."""

import logging

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.kernels.drawing import draw_by_operators
from eagle.plugin import draws as seam
from eagle.plugin.blocks import drawing
from eagle.plugin.draws import UniformDraws
from eagle.runtime.kernel_check import OperatorDraws, disagreement
from eagle_plugins.acceptance import deciding
from tests.interpreted import DEVICE, INTERPRETED, quick, quiet

__all__ = ["quick"]
pytestmark = [
    quiet,
    pytest.mark.skipif(DEVICE != "cpu" or not INTERPRETED, reason="needs Triton's interpreter"),
]
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, seed=2, ignore_eos=True)
TREES = {
    "static": {"name": "static", "branching": [3, 2]},
    "dynamic": {"name": "dynamic", "nodes": 6, "depth": 3, "top_k": 3},
}


@pytest.fixture
def build(spec, pair, monkeypatch):
    """Build a decoder whose kernels are interpreted."""
    monkeypatch.setattr(seam, "_FUSED", ("cpu",))
    monkeypatch.setattr(drawing, "_BLOCK", 16)
    monkeypatch.setattr(deciding, "_BLOCK", 16)
    return lambda tree: Decoder.from_spec(spec(tree=TREES[tree]), target=pair[0])


def other_token(tokens, exist, probs):
    return (tokens + 1) % probs.shape[-1], exist, probs


def none_exist(tokens, exist, probs):
    return tokens, torch.zeros_like(exist), probs


def other_probs(tokens, exist, probs):
    return tokens, exist, probs * 1.05


def other_bonus(path, count, bonus):
    return path, count, (bonus + 1) % 64


def shorter(path, count, bonus):
    return path, count * 0, bonus


@pytest.mark.parametrize("tree", TREES)
def test_right_kernels_agree_and_are_used(build, tree, caplog):
    decoder = build(tree)
    with torch.inference_mode():
        assert disagreement(decoder._cycle) is None
    decoder.generate([5, 6, 7], SAMPLED)
    assert decoder._cycle.draws is UniformDraws
    assert not [r for r in caplog.records if r.name == "eagle.runtime"]


@pytest.mark.parametrize(
    ("module", "operator", "fault", "what"),
    [
        (drawing, "_draw_level", other_token, "other candidates"),
        (drawing, "_draw_level", none_exist, "other candidates"),
        (drawing, "_draw_level", other_probs, "another draft distribution"),
        (deciding, "_accept", other_bonus, "another bonus token"),
        (deciding, "_accept", shorter, "another count of accepted tokens"),
    ],
)
def test_wrong_kernels_are_left_out_and_that_is_said_once(
    build, monkeypatch, caplog, module, operator, fault, what
):
    right = getattr(module, operator)
    with monkeypatch.context() as here:
        here.setattr(seam, "_FUSED", ())
        expected = build("static").generate([5, 6, 7], SAMPLED)
    monkeypatch.setattr(seam, "_FUSED", ("cpu",))
    monkeypatch.setattr(module, operator, lambda *given: fault(*right(*given)))
    decoder = build("static")
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        for _ in range(2):
            assert decoder.generate([5, 6, 7], SAMPLED).tokens == expected.tokens
    assert decoder._cycle.draws is OperatorDraws
    (message,) = [r.getMessage() for r in caplog.records if r.name == "eagle.runtime"]
    assert what in message


@pytest.mark.parametrize("tree", TREES)
def test_kernels_are_compared_over_the_vocabulary_that_the_head_drafts_from(build, tree):
    cycle = build(tree)._cycle
    cycle.draft_vocab = torch.arange(63, 3, -2)
    with torch.inference_mode():
        assert disagreement(cycle) is None


def test_a_kernel_that_takes_the_vocabulary_for_another_is_noticed(build, monkeypatch):
    cycle, right = build("static")._cycle, deciding._accept
    cycle.draft_vocab = torch.arange(63, 3, -2)
    monkeypatch.setattr(deciding, "_accept", lambda *given: right(*given[:-1], given[-1].roll(1)))
    with torch.inference_mode():
        assert disagreement(cycle) is not None


def test_kernels_that_cannot_run_here_are_left_out(build, monkeypatch, caplog):
    def fails(*given):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(deciding, "_accept", fails)
    decoder = build("dynamic")
    decoder.generate([5, 6, 7], SAMPLED)
    assert "no kernel image is available" in caplog.text


@pytest.mark.parametrize("fault", ["wrong", "absent"])
def test_the_kernels_of_one_draw_are_compared_too(build, monkeypatch, caplog, fault):
    def draw(weights, uniforms):
        if fault == "absent":
            raise RuntimeError("no kernel image is available")
        return (draw_by_operators(weights, uniforms) + 1) % weights.shape[-1]

    monkeypatch.setattr(UniformDraws, "_draw", staticmethod(draw))
    decoder = build("dynamic")
    params = SAMPLED.model_copy(update={"max_new_tokens": 1})  # no cycle draws it
    found = decoder.generate([5, 6, 7], params).tokens
    assert decoder._cycle.draws is OperatorDraws
    assert ("another first token" if fault == "wrong" else "no kernel image") in caplog.text
    monkeypatch.undo()
    assert Decoder(decoder.resolved, decoder.target).generate([5, 6, 7], params).tokens == found


def test_greedy_requests_ask_no_kernel(build, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime.disagreement", lambda cycle: pytest.fail("asked"))
    build("static").generate([5, 6, 7], max_new_tokens=8)


def test_without_kernels_there_is_nothing_to_compare(spec, pair):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    with torch.inference_mode():
        assert disagreement(decoder._cycle) is None

"""A decoder says with kernels, interpreted, what it says in PyTorch, on the same uniforms."""

from __future__ import annotations

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.plugin import sampling as seam
from eagle.plugin.blocks import drawing
from eagle_plugins.acceptance import deciding
from tests.interpreted import DEVICE, INTERPRETED, quick, quiet

__all__ = ["quick"]
pytestmark = [
    quiet,
    pytest.mark.skipif(
        DEVICE != "cpu" or not INTERPRETED, reason="where there is CUDA, tests/gpu does this"
    ),
]
PROMPTS = [[3, 4, 5, 6, 7], [10, 12, 14], [20, 23, 26, 29]]
TREES = {
    "static": {"name": "static", "branching": [3, 2]},
    "dynamic": {"name": "dynamic", "nodes": 6, "depth": 3, "top_k": 3},
    "none": {"name": "none"},
}


@pytest.mark.parametrize("tree", TREES)
def test_kernels_say_what_pytorch_says(tree, spec, pair, monkeypatch):
    monkeypatch.setattr(drawing, "_BLOCK", 16)
    monkeypatch.setattr(deciding, "_BLOCK", 16)
    params = [
        SamplingParams(max_new_tokens=10, temperature=t, min_p=m, seed=seed, ignore_eos=True)
        for seed, (t, m) in enumerate([(1.0, 0.0), (0.0, 0.0), (1.5, 0.05)])
    ]
    calls = []
    accept = deciding.accept
    monkeypatch.setattr(deciding, "accept", lambda *given: calls.append(given) or accept(*given))
    answers = []
    for fused in ((), ("cpu",)):
        monkeypatch.setattr(seam, "_FUSED", fused)
        decoder = Decoder.from_spec(spec(tree=TREES[tree]), target=pair[0])
        answers.append([result.tokens for result in decoder.generate(PROMPTS, params)])
        assert bool(calls) is bool(fused)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("tree", TREES)
def test_phases_are_traced_without_a_break(tree, spec, pair, monkeypatch):
    monkeypatch.setattr(seam, "_FUSED", ("cpu",))
    decoder = Decoder.from_spec(spec(tree=TREES[tree]), target=pair[0])
    cycle = decoder._cycle
    params = SamplingParams(max_new_tokens=4, temperature=1.0, seed=0, ignore_eos=True)
    expected = decoder.generate(PROMPTS[0], params).tokens
    for name in ("draft", "accept"):
        phase = getattr(type(cycle), name)
        cycle.compiled[name] = torch.compile(phase, fullgraph=True, backend="aot_eager")
    assert decoder.generate(PROMPTS[0], params).tokens == expected

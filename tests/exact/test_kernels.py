"""A decoder says with kernels, interpreted, what it says in PyTorch, on the same uniforms."""

from __future__ import annotations

import pytest
import torch

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.plugin import draws as seam
from eagle.plugin.blocks import drawing
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
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


def test_kernels_say_what_pytorch_says_of_drafts_from_fewer_tokens(pair, tmp_path, monkeypatch):
    """The head drafts from 40 of 64 tokens; the kernels accept, and drew the candidates."""
    monkeypatch.setattr(drawing, "_BLOCK", 16)
    monkeypatch.setattr(deciding, "_BLOCK", 16)
    strategy = default_registry().get(Role.HEAD, "eagle3").strategy
    settings = strategy.config(layers=(0, 1, 2), draft_vocab_size=40)
    head = strategy.build(settings, BuildContext(pair[0].info, fresh=True))
    head.choose_vocabulary(torch.arange(64) * 7 % 64)
    head.initialise(pair[0], 5)
    head.save(tmp_path)
    made = DecoderSpec(
        features="auto",
        head={"name": "auto", "weights": str(tmp_path)},
        tree={"name": "static", "branching": [2, 1]},
    )
    params = [
        SamplingParams(max_new_tokens=6, temperature=t, min_p=m, seed=seed, ignore_eos=True)
        for seed, (t, m) in enumerate([(1.0, 0.0), (0.0, 0.0), (1.5, 0.05)])
    ]
    trees = []
    accept = deciding.accept
    monkeypatch.setattr(deciding, "accept", lambda *given: trees.append(given[0]) or accept(*given))
    answers = []
    for fused in ((), ("cpu",)):
        monkeypatch.setattr(seam, "_FUSED", fused)
        decoder = Decoder.from_spec(made, target=pair[0])
        answers.append(decoder.generate(PROMPTS, params))
        assert bool(trees) is bool(fused)
    assert [r.tokens for r in answers[0]] == [r.tokens for r in answers[1]]
    assert [r.stats.accepted_per_cycle for r in answers[0]] == [
        r.stats.accepted_per_cycle for r in answers[1]
    ]
    own = [tree for tree in trees if tree.draft_vocab is not None]
    assert own
    assert all(len(tree.draft_vocab) == tree.draft_probs.shape[-1] == 40 for tree in own)


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

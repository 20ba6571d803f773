"""Rotary tables are made once per compiled pass on a GPU, and say the same."""

import torch
from torch import nn

from eagle.cache.store import Step
from eagle.target import rotary
from eagle.target.causal_lm import Target
from eagle.target.rotary import settle_rotary
from eagle.testing import tiny_target
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig
from tests.interpreted import DEVICE


class Tables(nn.Module):
    def forward(self, positions):
        return positions.cos(), positions.sin()


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.rotary_emb = Tables()
        self.other = Tables()

    def forward(self, positions):
        return self.rotary_emb(positions), self.other(positions)


def test_uncompiled_passes_and_other_modules_are_left_alone(monkeypatch):
    monkeypatch.setattr(rotary, "settled", None)
    body = Body()
    settle_rotary(body)
    settle_rotary(body)
    assert len(body.rotary_emb._forward_hooks) == 1
    assert not body.other._forward_hooks
    body(torch.rand(3))


def test_a_compiled_pass_reads_what_was_made_once(monkeypatch):
    monkeypatch.setattr(rotary, "_DEVICE", DEVICE)
    made = tiny_target()
    target = Target(made.model.to(DEVICE), None, "tiny")
    attention = Sdpa(SdpaConfig(), None)
    cache = target.make_cache(1, 64)
    tokens = torch.arange(3, 8, device=DEVICE)[None]
    step = Step.chain(torch.tensor([0], device=DEVICE), 5, 64)
    graphs = []

    def look(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = target.forward(tokens, step, cache, attention)[0]
        forward = torch.compile(target.forward, fullgraph=True, dynamic=False, backend=look)
        found = forward(tokens, step, cache, attention)[0]
    torch.testing.assert_close(found, expected)
    calls = [n for n in graphs[0].graph.nodes if n.target is torch.ops.eagle.settled.default]
    assert len(calls) == 1

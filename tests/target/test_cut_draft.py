"""A draft head that is cut over two processes drafts what it drafts in one."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from eagle import Decoder, DecoderSpec
from eagle.errors import CheckpointError, PartedError, SpecError
from eagle.plugin import LlamaAttention, LlamaMLP
from eagle.spec import load_spec
from eagle.target import Target, cutting
from eagle.testing import tiny_pair, tiny_target
from tests.strategies.drafters import trial
from tests.train.together import run_together

PROMPTS = [[5, 9, 13, 17], list(range(3, 40)), [60, 3, 7, 10, 12]]
TREES = {
    "static": {"name": "static", "branching": [3, 2, 1]},
    "dynamic": {"name": "dynamic", "nodes": 12, "depth": 4, "top_k": 4},
}


def spec_of(model, head, weights, tree="static", **target):
    return DecoderSpec(
        target={"model": str(model), "dtype": "float32", **target},
        head={"name": head, "weights": str(weights)},
        features={"name": "last-hidden" if head == "eagle" else "layers"},
        tree=TREES[tree],
    )


def answers(decoder):
    greedy = decoder.generate(PROMPTS[0], max_new_tokens=30, ignore_eos=True)
    # More slots than before: caches are made anew.
    sampled = decoder.generate(PROMPTS, max_new_tokens=30, temperature=0.9, seed=3, ignore_eos=True)
    return [(r.tokens, r.stats.accepted_per_cycle) for r in (greedy, *sampled)]


def sizes(decoder):
    """Return the heads of keys and values of a decoder's head, and how many weights MLPs have."""
    network = decoder.resolved.head.module
    inner = [weight for name, weight in network.named_parameters() if ".mlp." in name]
    return network.attention.kv_heads, sum(weight.numel() for weight in inner)


def _drafts(model, heads, wanted):
    for (head, weights, tree), (own, expected) in zip(heads, wanted, strict=True):
        cut = spec_of(model, head, weights, tree, tp_plan="auto", cut_draft=True)
        decoder = Decoder.from_spec(cut)
        assert answers(decoder) == expected, head
        assert sizes(decoder) == (own[0] // 2, own[1] // 2), head
        with pytest.raises(CheckpointError, match="is cut over processes cannot be saved"):
            decoder.resolved.head.save(Path(model).parent / "part")
    for whole in ("auto", False):  # none of these is worth it
        spec = spec_of(model, head, weights, tree, tp_plan="auto", cut_draft=whole)
        decoder = Decoder.from_spec(spec)
        assert answers(decoder) == expected
        assert sizes(decoder) == own


def test_two_processes_draft_what_one_does(tmp_path):
    target, trained = tiny_pair()
    target.model.save_pretrained(tmp_path / "target")
    heads = [("eagle", str(trained), "static"), ("eagle", str(trained), "dynamic")]
    made = {
        "eagle3": trial.fresh("eagle3", target, layers=(1, 2)),
        "parallel": trial.fresh("parallel", target, depth=2, block_size=4),
    }
    for name, head in made.items():
        head.initialise(target, 0)
        head.save(tmp_path / name)
        heads.append((name, str(tmp_path / name), "static"))
    wanted = []
    for head, weights, tree in heads:
        decoder = Decoder.from_spec(spec_of(tmp_path / "target", head, weights, tree))
        wanted.append((sizes(decoder), answers(decoder)))
        accepted = [count for _, cycles in wanted[-1][1] for count in cycles]
        assert len(set(accepted)) > 2, f"{head}: too little was accepted to tell anything"
    run_together(_drafts, str(tmp_path / "target"), heads, wanted)


def _differ(model, folder):
    """Be one of two processes, of which each finds another head where both look."""
    os.chdir(f"{folder}/{os.environ['RANK']}")
    for cut in (True, False):
        decoder = Decoder.from_spec(spec_of(model, "eagle", "head", tp_plan="auto", cut_draft=cut))
        for _ in range(2):
            with pytest.raises(PartedError, match=r"another draft head than process 0: fc\.weight"):
                decoder.generate(PROMPTS[0], max_new_tokens=4)


def test_processes_that_were_given_different_heads_are_told(tmp_path):
    target = tiny_target()
    target.model.save_pretrained(tmp_path / "target")
    for rank in range(2):
        head = trial.fresh("eagle", target)
        head.initialise(target, rank)
        head.save(tmp_path / str(rank) / "head")
    run_together(_differ, str(tmp_path / "target"), str(tmp_path))


def config(**changes):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**sizes, **heads, **changes)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_what_the_parts_make_adds_up_to_what_the_whole_makes(bias, monkeypatch):
    torch.manual_seed(0)
    whole = Block(config(attention_bias=bias))
    x, turn = torch.randn(2, 3, 16), torch.randn(2, 3, 4)
    expected = whole(x, turn)
    made = []
    for rank in range(2):
        part = Block(config(attention_bias=bias))
        part.load_state_dict(whole.state_dict())
        cutting.bring_together(part, cutting.cut_network(part, rank, 2))
        assert (part.attention.heads, part.attention.kv_heads) == (2, 1)
        assert part.attention.q_proj.weight.untyped_storage().nbytes() == 4 * 16 * 8
        assert cutting.cut_network(part, rank, 2) == {}, "cut twice"
        assert part.free.weight.shape == (16, 16), "nobody said that this is cut"
        made.append(part)
    for find in (lambda b: b.attended(x, turn), lambda b: b.mlp(x)):
        sums = []
        monkeypatch.setattr(cutting, "add_up", sums.append)
        for part in made:
            find(part)
        first, second = (out.clone() for out in sums)
        monkeypatch.setattr(cutting, "add_up", lambda out, other=second: out.add_(other))
        torch.testing.assert_close(find(made[0]), find(whole))
    assert first.shape == second.shape == expected.shape


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.mlp = LlamaAttention(config, 0), LlamaMLP(config)
        self.free = nn.Linear(16, 16)

    def attended(self, x, turn):
        def attend(_, query, keys, values):
            keys, values = (t.repeat_interleave(2, dim=1) for t in (keys, values))
            out = nn.functional.scaled_dot_product_attention(query, keys, values)
            return out.transpose(1, 2)

        return self.attention(x, turn.cos(), turn.sin(), attend)

    def forward(self, x, turn):
        return self.free(x) + self.attended(x, turn) + self.mlp(x)


def test_what_does_not_share_out_or_is_not_worth_it_stays_whole():
    block = Block(config())
    assert cutting.cut_network(block, 0, 2, least=10**6) == {}
    assert block.mlp.up_proj.weight.shape == (24, 16)
    found = cutting.cut_network(block, 0, 3)  # of 24 numbers, not of 2 heads
    assert set(found) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert (block.attention.heads, block.mlp.up_proj.weight.shape) == (4, (8, 16))
    assert cutting.cut_network(Block(config()), 0, 5) == {}


class Unplanned(LlamaMLP):
    """Llama's, but for a norm of all inner numbers, which no process has."""

    def forward(self, x):
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(nn.functional.normalize(inner, dim=-1))


class Planned(Unplanned):
    def tp_plan(self, count):
        return super().tp_plan(count)


def test_a_network_with_a_forward_that_no_plan_was_made_for_stays_whole():
    block = Block(config())
    block.mlp = Unplanned(config())
    assert cutting.cut_network(block, 0, 2) == {}
    assert block.attention.heads == 4, "all layers have the same heads"
    block.mlp = Planned(config())
    assert len(cutting.cut_network(block, 0, 2)) == 7


@pytest.mark.parametrize("wrap", [lambda b: nn.ModuleList([b]), lambda b: nn.ModuleList([b.mlp])])
def test_what_was_cut_is_not_cut_again_by_whatever_it_is_found(wrap):
    block = Block(config())
    for network in (wrap(block), wrap(block), block):
        cutting.bring_together(network, cutting.cut_network(network, 0, 2))
    assert block.mlp.down_proj.weight.shape == (16, 12)
    assert len(block.mlp.down_proj._forward_hooks) == 1
    assert (block.attention.heads, block.attention.q_proj.weight.shape) == (2, (8, 16))


def test_weights_that_are_cut_while_something_is_decoded_can_be_used_elsewhere():
    block = Block(config(attention_bias=True))
    with torch.inference_mode():
        cutting.cut_network(block, 0, 2)
    assert not any(weight.is_inference() for weight in block.parameters())


def test_a_draft_is_cut_only_where_processes_hold_the_target():
    with pytest.raises(SpecError, match="should have a tp_plan with cut_draft: true"):
        load_spec("eagle", ["target.cut_draft=true"])
    assert load_spec("eagle", ["target.cut_draft=false"]).target.cut_draft is False
    assert Target.cut_draft == "auto"

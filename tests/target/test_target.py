"""Targets of many architectures: served exactly, or refused with the reason."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import transformers

from eagle import Decoder, DecoderSpec
from eagle.cache.store import BLOCK, Step, gathered
from eagle.errors import TargetError
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.spec.schema import TargetSpec
from eagle.target import Target, load_target, resolve_device
from eagle.target.interfaces import ATTENTION
from eagle.target.loading import refuse
from eagle.testing import ARCHITECTURES, tiny_head, tiny_target
from eagle_plugins.attention.auto import Auto, AutoConfig

PROMPT = [5, 9, 33, 7, 12, 60, 4]


def _sdpa():
    strategy = default_registry().get(Role.ATTENTION, "sdpa").strategy
    return strategy.build(strategy.config(), BuildContext())


def reference(target, prompt, count, **options):
    """Greedy tokens of transformers' own generate, with further options of its."""
    with target.stock() as model:
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_output_is_that_of_transformers(architecture, tmp_path):
    target = tiny_target(architecture)
    tiny_head(target).save(tmp_path)
    spec = DecoderSpec(
        head={"name": "eagle", "weights": str(tmp_path)},
        # An untrained head is nearly always wrong: the tree is wide, so that paths are accepted.
        tree={"name": "static", "branching": [24, 2, 1]},
    )
    decoder = Decoder.from_spec(spec, target=target)
    result = decoder.generate(PROMPT, max_new_tokens=48, ignore_eos=True)
    assert result.tokens == reference(target, PROMPT, 48)
    assert result.stats.tau > 1, "nothing was accepted, so acceptance was not tested"


def test_bfloat16_passes_the_probe():
    tiny_target(dtype=torch.bfloat16).probe(_sdpa())


@pytest.mark.parametrize(("noisy", "passes"), [(False, 1), (True, 5)])
def test_further_own_passes_are_made_only_where_one_does_not_settle_it(noisy, passes, monkeypatch):
    target, made = tiny_target(dtype=torch.bfloat16), []
    target.model.register_forward_hook(lambda module, args, out: made.append(out))
    if noisy:
        monkeypatch.setattr("eagle.target.probing._ROUNDINGS", 0.0)
    target.probe(_sdpa())
    assert len(made) == passes


@pytest.mark.parametrize("wrong", ["mask", "positions", "rows"])
def test_probe_refuses_passes_that_are_not_the_models_own(wrong, monkeypatch):

    tree = Step.tree

    def broken(lengths, depths, ancestors, span):
        if wrong == "mask":
            ancestors = torch.ones_like(ancestors)
        step = tree(lengths, depths * 2 if wrong == "positions" else depths, ancestors, span)
        if wrong == "rows":
            step = Step(step.positions, step.rows.flip(1), step.lengths, step.tail, step.span)
        return step

    monkeypatch.setattr(Step, "tree", broken)
    with pytest.raises(TargetError, match="gives other logits"):
        tiny_target().probe(_sdpa())


@pytest.mark.parametrize("wrong", [False, True])
def test_the_probe_reads_blocks_where_the_backend_finds_rows_in_them(wrong, monkeypatch):
    read = []

    def finding(store, step):
        read.append(step.table)
        return gathered(store, replace(step, table=step.table.flip(1)) if wrong else step)

    monkeypatch.setattr("eagle_plugins.attention.triton.gathered", finding)
    monkeypatch.setattr(Auto, "paged", True)
    monkeypatch.setattr("eagle.target.probing._PROMPT", 2 * BLOCK)
    with pytest.raises(TargetError, match="gives other logits") if wrong else nullcontext():
        tiny_target().probe(Auto(AutoConfig(), BuildContext()))
    assert read


def test_probe_refuses_unknown_treatment_of_logits():
    target = tiny_target()
    target.model.lm_head.register_forward_hook(lambda module, args, out: out * 3)
    target.lm_head.layer = torch.nn.Linear(32, 64, bias=False)
    target.lm_head.layer.weight = target.model.lm_head.weight
    with pytest.raises(TargetError, match="gives other logits"):
        target.probe(_sdpa())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.MambaConfig(), "attention"),
        (transformers.Qwen3NextConfig(), "linear_attention"),
        (
            transformers.LlamaConfig(
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            "rotary embedding",
        ),
    ],
    ids=["t5", "mamba", "qwen3-next", "dynamic-rope"],
)
def test_refuses_what_it_cannot_keep_exact(config, reason):
    with pytest.raises(TargetError, match=reason):
        refuse("some-model", config)


def test_a_target_with_a_table_of_positions_is_served_up_to_its_end():
    config = transformers.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    target = Target(transformers.GPT2LMHeadModel(config).eval(), None, "tiny-gpt2")
    chain = DecoderSpec(head="none", tree="none")
    result = Decoder.from_spec(chain, target=target).generate(PROMPT, ignore_eos=True)
    assert result.tokens == reference(target, PROMPT, 32 - len(PROMPT))
    # A tree that reaches past the table is drafted there, and its nodes are never committed.
    step = Step.chain(torch.tensor([30]), 5, 35)
    target.forward(torch.ones(1, 5, dtype=torch.int64), step, target.make_cache(1, 35), _sdpa())


def test_a_model_that_is_not_there_is_an_error():
    with pytest.raises(TargetError, match="no folder"):
        load_target(TargetSpec(model="./no/such/folder"))
    with pytest.raises(TargetError, match=r"no file.*gguf"):
        load_target(TargetSpec(model="nothing.gguf"))


def test_a_damaged_model_is_an_error(tmp_path):
    tiny_target().model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TargetError, match="cannot be loaded"):
        load_target(TargetSpec(model=str(tmp_path), device="cpu", dtype="float32"))


def test_a_folder_loads_and_works_without_a_tokenizer(tmp_path):
    tiny = tiny_target()
    tiny.model.save_pretrained(tmp_path)
    target = load_target(TargetSpec(model=str(tmp_path), device="cpu", dtype="float32"))
    assert target.tokenizer is None
    plain = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=target)
    found = plain.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
    assert found.tokens == reference(tiny, PROMPT, 8)
    assert found.text == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_an_error():
    with pytest.raises(TargetError, match="no cuda here"):
        resolve_device("cuda")


def test_the_model_says_so_when_used_outside_a_decoder():
    target = tiny_target()
    target.model.set_attn_implementation(ATTENTION)
    with pytest.raises(RuntimeError, match="inside a decoder only"):
        target.model(torch.tensor([PROMPT]))
    with target.stock() as model:
        assert model(torch.tensor([PROMPT])).logits.shape == (1, 7, 64)


def test_a_model_without_pluggable_attention_is_refused():
    model = tiny_target().model
    type(model)._supports_attention_backend, before = False, True
    try:
        with pytest.raises(TargetError, match="AttentionInterface"):
            Target(model, None, "old-style")
    finally:
        type(model)._supports_attention_backend = before

"""Targets that are on several devices, by transformers' own means, against the same one on one."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from eagle import Decoder, DecoderSpec
from eagle.errors import DataError, SpecError, TargetError
from eagle.spec import load_spec
from eagle.spec.schema import TargetSpec
from eagle.target import Target, load_target
from eagle.target.loading import check_split
from eagle.testing import tiny_head, tiny_target
from eagle.train.run.processes import Processes
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec
from tests.train.together import BASE, assert_same_run, run_together, run_two

# Half of it is on disk, and comes into memory when its turn is.
OFFLOADED = (
    "target.device_map={model.embed_tokens: cpu, model.rotary_emb: cpu, model.layers.0: disk, "
    "model.layers.1: cpu, model.norm: cpu, lm_head: disk}"
)


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    tiny_target("llama-gqa").model.save_pretrained(tmp_path / "target")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(output, *overrides):
        changes = [f"output={tmp_path / output}", "target.model=target", *overrides]
        return load_train_spec(tmp_path / "run.yaml", changes)

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_target_is_spread_by_a_device_map(spec, dtype):
    spread = spec("map", OFFLOADED, f"target.dtype={dtype}")
    model = load_target(spread.target, spread.document.folder).model
    assert model.hf_device_map["lm_head"] == "disk"
    assert model.model.layers[0].mlp.up_proj.weight.is_meta, "nothing was spread"
    train(spec("one", f"target.dtype={dtype}"))
    train(spread)
    assert_same_run(spec("one"), spec("map"))


def test_a_device_map_that_needs_one_device_is_no_spreading(spec):
    target = load_target(spec("one", "target.device_map=auto").target, spec("one").document.folder)
    assert not target.spread
    assert target.device == load_target(spec("one").target, spec("one").document.folder).device


def _each_has_half(spec):
    processes = Processes.join(spec.target)
    target = load_target(spec.target, spec.document.folder)
    layer = target.model.model.layers[0].mlp.up_proj
    assert target.spread
    assert layer.weight.to_local().numel() == layer.weight.numel() // 2
    processes.part()


def test_each_of_two_processes_has_half_of_every_layer(spec):
    run_together(_each_has_half, spec("two", "target.tp_plan=auto"))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_target_is_cut_over_two_processes(spec, sharding):
    train(spec("one"))
    run_two(spec("two", "target.tp_plan=auto", f"sharding={sharding}"))
    assert_same_run(spec("one"), spec("two"))


def test_a_run_goes_on_with_its_target_cut(spec):
    train(spec("one"))
    train(spec("two", "steps=3"))
    run_two(spec("two", "target.tp_plan=auto"), resume=True)
    assert_same_run(spec("one"), spec("two"))


def test_decoding_refuses_a_target_that_is_spread_by_a_map(tmp_path, spec):
    with pytest.raises(SpecError, match="should have no device_map: a cycle"):
        load_spec("eagle", ["target.device_map=auto"])
    spread = spec("map", OFFLOADED)
    target = load_target(spread.target, spread.document.folder)
    tiny_head(tiny_target()).save(tmp_path / "head")
    decoder = DecoderSpec(head={"name": "eagle", "weights": str(tmp_path / "head")})
    with pytest.raises(TargetError, match="spread over several devices"):
        Decoder.from_spec(decoder, target=target)


def test_a_model_that_somebody_else_spread_is_recognised(spec):
    path = spec("one").path("target")
    devices = {"model": "cpu", "lm_head": "disk"}
    model = AutoModelForCausalLM.from_pretrained(path, device_map=devices)
    target = Target(model, None, "spread")
    assert target.spread
    assert target.device == torch.device("cpu")


def test_features_of_an_offloaded_target_are_not_cached(spec):
    with pytest.raises(DataError, match="offloaded"):
        train(spec("map", OFFLOADED, "data.features=cached", "evaluation.heldout=0"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["target.tp_plan=auto", "target.device_map=auto"], "not both"),
        (["target.tp_plan=auto", "target.device=cpu"], "device should stay 'auto'"),
        (["target.tp_plan=auto", "data.features=cached"], "on-the-fly with target.tp_plan"),
        (["target.device_map=auto", "compile=true"], "several devices is not compiled"),
    ],
)
def test_what_cannot_be_combined_is_refused(spec, overrides, reason):
    with pytest.raises(SpecError, match=reason):
        spec("out", *overrides)


def test_one_process_cannot_cut_a_target(spec):
    with pytest.raises(TargetError, match="one process for each device; start it with torchrun"):
        train(spec("out", "target.tp_plan=auto"))


@pytest.mark.parametrize(
    ("count", "heads", "kv_heads", "fits"),
    [
        (2, 9, 3, "3 processes can"),
        (3, 8, 4, "2 or 4 processes can"),
        (2, 8, 1, "use target.device_map"),
    ],
)
def test_heads_are_not_cut_in_two(monkeypatch, count, heads, kv_heads, fits):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    text = LlamaConfig(
        num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=8 * heads
    )
    with pytest.raises(TargetError, match=rf"{heads} attention heads \({kv_heads} .* {fits}"):
        check_split("tiny", text)


def test_a_device_map_is_written_and_read(spec):
    mapped = TargetSpec(device_map={"model": 0, "lm_head": "cpu"})
    assert TargetSpec.model_validate(mapped.model_dump(mode="json")) == mapped


def test_a_draft_that_is_to_be_cut_keeps_no_spread_target_from_training():
    spec = load_train_spec("tiny", ["target.tp_plan=auto", "target.cut_draft=true"])
    assert spec.decoder.target.tp_plan is None

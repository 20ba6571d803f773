"""Targets whose weights are no plain tensors: what is served is the quantized model, exactly."""

import gc
import logging
import sys
import types
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle import Decoder, DecoderSpec
from eagle.bench.floors import weight_bytes
from eagle.errors import CompileError, TargetError
from eagle.runtime.aot import AheadPass, ahead
from eagle.spec.schema import TargetSpec
from eagle.target import causal_lm, load_target, loading, quantizing
from eagle.testing import tiny_head, tiny_target

torchao = pytest.importorskip("torchao")
PROMPT = [5, 9, 17, 3, 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("plain")
    tiny_target("llama-gqa").model.save_pretrained(found)
    return found


def load(folder, kind=None, dtype="float32", **changes):
    spec = TargetSpec(model=str(folder), device="cpu", dtype=dtype, **changes)
    return load_target(spec, None, kind)


def decoder(target, head, **runtime):
    spec = DecoderSpec(
        head={"name": "eagle", "weights": str(head)},
        tree={"name": "static", "branching": [3, 2]},
        runtime=runtime,
    )
    return Decoder.from_spec(spec, target=target)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    found = tmp_path_factory.mktemp("head")
    tiny_head(tiny_target("llama-gqa")).save(found)
    return found


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_target_is_probed_and_says_what_it_says_by_itself(folder, head, kind, dtype):
    target = load(folder, kind, dtype)
    assert not target.plain
    assert "torchao" in target.precision
    assert type(target.model.lm_head.weight) is torch.nn.Parameter
    said = decoder(target, head).generate(PROMPT, max_new_tokens=24).tokens
    if dtype == "float32":
        with target.stock() as model:
            out = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False)
        assert list(said) == out[0, len(PROMPT) :].tolist()


def test_quantizing_changes_what_the_target_is(folder):
    one, other = load(folder), load(folder, "int8")
    tokens = torch.tensor([PROMPT])
    with one.stock() as plain, other.stock() as quantized:
        first, second = plain(tokens).logits, quantized(tokens).logits
    assert 1e-5 < (first - second).norm() / first.norm() < 0.05
    assert one.precision != other.precision


def test_a_checkpoint_that_torchao_has_quantized_is_served_as_it_is(folder, head, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(tmp_path / "int8")
    target = load(tmp_path / "int8", dtype="bfloat16")
    assert type(target.model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    decoder(target, head).generate(PROMPT, max_new_tokens=4)
    with pytest.raises(TargetError, match=r"quantized already .torchao.; leave it out"):
        load(tmp_path / "int8", "int8", dtype="bfloat16")


def test_what_is_compiled_ahead_is_not_made_of_quantized_weights(folder, head, caplog):
    target = load(folder, "int8")
    attention = decoder(target, head).resolved.attention
    with caplog.at_level(logging.WARNING):
        assert ahead(target, attention, (), make=True) is None
    assert "passes run uncompiled: what is compiled ahead multiplies plain weights" in caplog.text
    with pytest.raises(CompileError, match="plain weights"):
        AheadPass(target, attention, ()).make()


def test_features_of_a_quantized_target_are_told_from_those_of_the_plain_one(folder):
    from eagle.train.data import fingerprint

    found = {fingerprint(load(folder, kind)) for kind in (None, "int8", "int4")}
    assert len(found) == 3
    assert fingerprint(load(folder, "int8")) in found


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4.5)])
def test_a_pass_reads_the_bytes_that_are_kept_not_those_that_they_stand_for(folder, kind, bits):
    whole, less = (weight_bytes(load(folder, one)) for one in (None, kind))
    numbers = sum(t.numel() for t in load(folder).body.layers.parameters() if t.dim() > 1)
    assert (whole - less) / numbers == pytest.approx(4 - bits / 8, abs=0.25)


def test_quantizing_without_torchao_is_one_clear_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(TargetError, match=r"needs torchao, which is not installed; .* 'quantize'"):
        load(folder, "int8")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_pytorchs_settings_are_left_as_they_are(folder, kind):
    before = torch.get_float32_matmul_precision()
    load(folder, kind)
    assert torch.get_float32_matmul_precision() == before


def test_int4_needs_widths_that_share_scales(tmp_path):
    tiny_target("llama-gqa", intermediate_size=72).model.save_pretrained(tmp_path)
    with pytest.raises(TargetError, match="int4 shares a scale among at least 32 numbers"):
        load(tmp_path, "int4")


def test_int4_on_a_gpu_is_bfloat16():
    with pytest.raises(TargetError, match="int4 multiplies bfloat16 alone on a GPU"):
        quantizing._config("int4", [64], torch.float16, torch.device("cuda"))


def test_a_spec_names_known_formats():
    with pytest.raises(ValueError, match="quantize"):
        DecoderSpec(runtime={"quantize": "int3"})


def test_a_target_that_memory_cannot_hold_is_refused_with_what_would_fit(folder, monkeypatch):
    from eagle.target import memory

    whole = memory.needed(folder, torch.float32)
    held = sum(p.nbytes for p in load(folder).model.parameters())
    assert whole == held
    less = memory.needed(folder, torch.float32, "int8")
    assert less is not None
    assert less < whole
    monkeypatch.setattr(memory, "free_memory", lambda device, **_: less)
    monkeypatch.setattr(
        causal_lm.loading, "load_model", lambda *args: pytest.fail("something was loaded")
    )
    with pytest.raises(TargetError, match=r"for its weights, and cpu has .* free; .*quantize=int8"):
        load(folder)
    half = memory.needed(folder, torch.float32, processes=2)
    monkeypatch.setattr(memory, "free_memory", lambda device, **_: half)
    config = loading.describe(loading.locate(TargetSpec(model=str(folder))))[1]
    with pytest.raises(TargetError, match=r"target.tp_plan=auto over 2 such GPUs"):
        memory.check_memory(
            folder, config, "tiny", dtype=torch.float32, device=torch.device("cuda")
        )


def test_adapters_and_spreading_do_not_go_together():
    with pytest.raises(ValueError, match="merge it once"):
        TargetSpec(tp_plan="auto", adapter="x")


class Int4TilePackedTo4dTensor:
    """What torchao's tensor of that name says of itself; it is filled up on both sides."""

    def __init__(self, whole, scales, zeros, filled):
        (rows, depth), (self.device, self.block_size) = whole.shape, (whole.device, [1, 128])
        self.shape = torch.Size((rows - filled[0], depth - filled[1]))
        spread = (part.T.float().repeat_interleave(128, 1) for part in (scales, zeros))
        scale, zero = spread
        self.qdata = ((whole.float() - 8) * scale + zero).bfloat16()
        self.scale_and_zero = torch.stack((scales, zeros), -1)


@pytest.mark.parametrize("right", [True, False])
def test_layers_of_four_bits_are_rearranged_where_all_numbers_come_back(monkeypatch, right):
    from eagle.kernels import Int4Linear

    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 16, (136, 2048), generator=generator)
    scales = torch.rand(16, 136, generator=generator).bfloat16() / 99
    scales[3, 5] = 0  # a group of equal numbers
    zeros = torch.randn(16, 136, generator=generator).bfloat16() / 9
    zeros[2, 4] = 50  # far from zero, as seen by the steps there
    layer = torch.nn.Linear(1408, 128, dtype=torch.bfloat16).requires_grad_(False)
    del layer.weight
    layer.weight = Int4TilePackedTo4dTensor(whole, scales, zeros, (8, 640))
    off = 0.0 if right else 0.01

    def product(x, weight, group, pairs):
        assert (group, pairs.shape) == (128, (16, 136, 2))
        return x @ (weight + off).T

    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", product)
    monkeypatch.setattr(quantizing, "int4_serves", lambda *_: True)
    parent, kept = torch.nn.Sequential(layer), weakref.ref(layer.weight)
    layer.extra_repr = types.MethodType(lambda self: "", layer)  # torchao's: a circle
    expected, bias = layer.weight.qdata[:128, :1408], layer.bias
    gc.disable()
    try:
        quantizing.rearrange(parent)
        assert (kept() is None) == right, "what is rearranged waits for no collector"
    finally:
        gc.enable()
    found = parent[0]
    assert isinstance(found, Int4Linear) == right
    if right:
        assert torch.equal(found.dense(), expected)
        assert torch.equal(found.bias, bias)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
def test_torchaos_layers_of_four_bits_are_rearranged_to_the_bit(folder):
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    from eagle.kernels import Int4Linear

    layers = torch.nn.Sequential(torch.nn.Linear(1408, 512), torch.nn.Linear(512, 100))
    layers = layers.to("cuda", torch.bfloat16).requires_grad_(False)
    config = Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")
    quantize_(layers, config)
    unit = torch.eye(1408, dtype=torch.bfloat16, device="cuda")
    expected = layers[0](unit) - layers[0].bias
    before = layers[1]
    quantizing.rearrange(layers)
    assert isinstance(layers[0], Int4Linear)
    assert layers[1] is before, "its rows fill no block"
    assert torch.equal(layers[0].dense().T, torch.nn.functional.linear(unit, layers[0].dense()))
    assert (layers[0].dense().T - expected).abs().max() < 1e-2
    x = torch.randn(26, 1408, dtype=torch.bfloat16, device="cuda")
    want = torch.nn.functional.linear(x, layers[0].dense(), layers[0].bias)
    assert (layers[0](x) - want).norm() < 1e-2 * want.norm()

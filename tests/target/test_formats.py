"""Checkpoints that come quantized: served as transformers runs them, or one clear sentence."""

import json
import logging
import shutil
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from eagle import Decoder
from eagle.bench.floors import weight_bytes
from eagle.bench.shapes import Shape
from eagle.bench.widen import widen_model
from eagle.cache.store import Step
from eagle.errors import TargetError
from eagle.kernels import Switch, arrange, int8_linear, left_alone
from eagle.runtime.aot import ahead
from eagle.spec.schema import TargetSpec
from eagle.target import load_target, loading, memory, probing
from eagle.target.causal_lm import Target
from eagle.target.formats import settle
from eagle.target.quantizing import is_plain
from tests import quantized

# Of packages, about each other.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning")
]
PROMPTS = ([5, 9, 17, 3, 40], [10, 12, 14, 16, 18, 20], [60, 4, 9, 14, 19, 24, 29])
KINDS = list(quantized.NEEDS)
# Layers that round what they are given are equal to themselves but for a rounding now and then.
ROUNDS = ("fp8", "w8a8")
DENSE = ("w4a16", "gguf")  # once it is loaded


@pytest.fixture(scope="module")
def plain(pair, tmp_path_factory):
    found = tmp_path_factory.mktemp("formats") / "plain"
    with pair[0].stock() as model:
        model.save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def made(plain, request):
    """A checkpoint of a kind, or a skip that says what it needs."""

    def path(kind):
        for module in quantized.NEEDS[kind]:
            pytest.importorskip(module, reason=f"{kind} needs {module}", exc_type=ImportError)
        folder = plain.parent / kind
        if not folder.exists():
            quantized.make(kind, plain, folder)
        return folder / "tiny.gguf" if kind == "gguf" else folder

    return path


def load(path, dtype="float32", **changes):
    return load_target(TargetSpec(model=str(path), device="cpu", dtype=dtype, **changes))


def by_transformers(path, dtype=torch.float32):
    if path.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": "cpu"})
    from eagle.assets import gguf_options

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, **gguf_options()
    )


def greedy(model, prompt):
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_checkpoint_says_what_transformers_says_with_it(kind, made, plain, spec):
    path = made(kind)
    own = by_transformers(path).eval()
    if kind in ROUNDS:  # in float64 no rounding goes the other way
        own(torch.tensor([[3]]))  # its weights are as they stay
        model = by_transformers(path)
        settle(model)
        target, own = Target(model.double().eval().requires_grad_(False), None, kind), own.double()
    else:
        target = load(path)
    decoder = Decoder.from_spec(spec(), target=target)
    for prompt in PROMPTS:
        said = decoder.generate(prompt, max_new_tokens=24, ignore_eos=True).tokens
        assert said == greedy(own, prompt)
    tokens = torch.tensor([PROMPTS[2]])
    with target.stock() as model, torch.no_grad():
        found, exact = model(tokens).logits.float(), by_transformers(plain)(tokens).logits
    assert 1e-5 < (found - exact).norm() / exact.norm() < 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_checkpoint_is_probed_and_left_alone(kind, dtype, made, spec, caplog):
    target = load(made(kind), dtype)
    assert target.plain == (kind in DENSE)
    layer = target.body.layers[0].mlp.up_proj
    if not target.plain:
        assert not hasattr(layer, "product")
        assert type(layer).__module__.split(".")[0] != "eagle"
        decoder = Decoder.from_spec(spec(), target=target)
        assert ahead(target, decoder.resolved.attention, (), make=True) is None
        assert "passes run uncompiled" in caplog.text
    decoder = Decoder.from_spec(spec(), target=target)
    assert len(decoder.generate(PROMPTS[0], max_new_tokens=8, ignore_eos=True).tokens) == 8
    assert len(caplog.records) <= 4  # nothing is said of every product


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_reckoned_as_what_is_loaded(kind, made):
    path = made(kind)
    target = load(path)
    folder, gguf = (path.parent, path.name) if kind == "gguf" else (path, None)
    asked = memory.needed(folder, torch.float32, gguf=gguf)
    held = {t.data_ptr(): t.nbytes for t in (*target.model.parameters(), *target.model.buffers())}
    for module in target.model.modules():  # what bitsandbytes keeps beside its weights
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        for beside in (getattr(weight, "SCB", None), state and state.absmax, state and state.code):
            if beside is not None:
                held[beside.data_ptr()] = beside.nbytes
    whole = sum(held.values())
    assert asked is not None
    assert abs(asked - whole) < 0.02 * whole


@pytest.mark.parametrize("kind", ["bnb-int8", "bnb-nf4", "gptq"])
def test_what_a_pass_reads_is_what_is_kept(kind, made, plain):
    whole, less = (weight_bytes(load(path)) for path in (plain, made(kind)))
    numbers = sum(t.numel() for t in load(plain).body.layers.parameters() if t.dim() > 1)
    bits = 8.0 if kind == "bnb-int8" else 4.5
    assert (whole - less) / numbers == pytest.approx(4 - bits / 8, abs=0.09)


def test_quantized_weights_are_not_embedded_in_another_shape(made):
    model = by_transformers(made("bnb-int8"))
    with pytest.raises(TargetError, match="quantized weights have no place in another shape"):
        widen_model(model, Shape("wide", 96, 3, 6, 3, 32, 160))


def test_an_adapter_stays_beside_weights_of_four_bits(made, tmp_path):
    peft = pytest.importorskip("peft")
    path, tokens = made("bnb-nf4"), torch.tensor([PROMPTS[0]])
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(by_transformers(path), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        wanted = tuned.eval()(tokens).logits
    tuned.save_pretrained(tmp_path)
    target = load(path, adapter=str(tmp_path))
    assert type(target.body.layers[0].mlp.up_proj.weight).__name__ == "Params4bit"
    with target.stock() as model:
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-3, atol=1e-3)
        plain = by_transformers(path)(tokens).logits
    assert (plain - wanted).abs().max() > 0.1


@pytest.mark.parametrize("offsets", [[0, 2**40], [2**40, 0], [-(2**40), -(2**40) + 16], ["a", 1]])
def test_a_shape_that_is_none_leaves_memory_unknown(offsets, tmp_path):
    one = {"dtype": "I64", "shape": [2], "data_offsets": offsets}
    header = json.dumps({"a.weight_shape": one}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert memory.needed(tmp_path, torch.float32) is None


def test_packed_weights_are_not_spread(made, monkeypatch):
    path = made("w4a16")
    monkeypatch.setattr(loading, "is_spread", lambda model: True)
    with pytest.raises(TargetError, match="are unpacked on one device; leave out"):
        load(path)


def test_a_dtype_that_a_format_does_not_take_is_said(made, caplog):
    target = load(made("bnb-nf4"), "bfloat16")
    assert target.dtype == torch.float32
    assert "target.dtype: bfloat16 is not what" in caplog.text


@pytest.mark.parametrize(
    ("method", "module", "how"),
    [
        ("torchao", "torchao", "this package with its extra 'quantize'"),
        ("bitsandbytes", "bitsandbytes", "this package with its extra 'bitsandbytes'"),
        (
            "compressed-tensors",
            "compressed_tensors",
            "this package with its extra 'compressed-tensors'",
        ),
        ("gptq", "optimum", "gptqmodel and optimum beside this package"),
        ("awq", "gptqmodel", "gptqmodel beside this package"),
    ],
)
def test_a_format_without_its_package_is_one_clear_sentence(
    method, module, how, plain, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)

    def fail(*args, **kwargs):
        raise ImportError("some of its parts are not there")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    shutil.copytree(plain, tmp_path / "model")
    config = json.loads((plain / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": method}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | settings))
    source = loading.locate(TargetSpec(model=str(tmp_path / "model")))
    with pytest.raises(TargetError) as caught:
        loading.load_model(source, torch.float32, torch.device("cpu"))
    needed = f"quantized with {method}, which needs {module.replace('_', '-')}, and that"
    assert needed in str(caught.value)
    assert f"is not installed; install {how}" in str(caught.value)


def tree_of(wrong):
    tree = Step.tree

    def made(lengths, depths, ancestors, span):
        return tree(lengths, depths, torch.ones_like(ancestors) if wrong else ancestors, span)

    return made


@pytest.mark.parametrize("kind", ["bnb-int8", "w8a8"])
def test_a_wrong_tree_is_noticed_in_a_model_that_rounds_its_input(kind, made, spec, monkeypatch):
    target = load(made(kind))
    decoder = Decoder.from_spec(spec(), target=target)
    monkeypatch.setattr(Step, "tree", tree_of(wrong=True))
    with pytest.raises(TargetError, match="gives other logits"):
        target.probe(decoder.resolved.attention)


@pytest.mark.parametrize(
    ("plain", "off", "refused"),
    [(True, 0, False), (True, 1, True), (False, 1, False), (False, 2, False), (False, 6, True)],
)
def test_a_node_that_is_rounded_otherwise_is_no_reason_to_refuse(plain, off, refused):
    class Stub:
        dtype = torch.float32

        class info:  # noqa: N801 - as an attribute
            layers = 4

    Stub.plain = plain
    own = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    found = own.clone()
    places = [(path, depth) for depth in (2, 3, 4) for path in range(3)][:off]
    for path, depth in places:
        found[path, depth] *= 1.02
    again = own * (1 + 1e-7)
    assert (probing._judged(found, [own, again], Stub) is not None) == refused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_passes_beside_one_own_pass_passes_beside_several(dtype):
    class Stub:
        plain = False

        class info:  # noqa: N801 - as an attribute
            layers = 4

    Stub.dtype = dtype
    generator = torch.Generator().manual_seed(0)
    passed = []
    for _ in range(400):
        own = torch.randn(3, 5, 64, generator=generator)
        spread = 10 ** (-4 * torch.rand((), generator=generator) - 0.5) * torch.rand(
            3, 3, 5, 1, generator=generator
        )
        found, *others = own + spread * torch.randn(3, 3, 5, 64, generator=generator)
        passed.append(probing._judged(found, [own], Stub) is None)
        if passed[-1]:
            assert probing._judged(found, [own, *others], Stub) is None
    assert 20 < sum(passed) < 380, "one of the two was hardly tried"


def test_weights_of_other_kinds_are_no_plain_ones():
    def linear(**weights):
        layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
        for name, value in weights.items():
            delattr(layer, name)
            if value is not None:
                layer.register_buffer(name, value)
        return layer

    eight = torch.zeros(8, 8, dtype=torch.int8)
    small = nn.Linear(8, 8).requires_grad_(False).to(torch.float8_e4m3fn)
    rounding = nn.Linear(8, 8).requires_grad_(False)
    rounding.forward = lambda x: nn.Linear.forward(rounding, x.round())
    for odd in (linear(weight=eight), small, rounding):
        assert not is_plain(nn.Sequential(odd, nn.LayerNorm(8)))
    for odd in (linear(weight=eight), linear(weight=None), small, rounding):
        assert left_alone(odd)
        assert int8_linear(odd) is None
        parent = nn.Module()
        parent.gate_proj, parent.up_proj = odd, odd
        arrange(parent, Switch())
        assert parent.up_proj is odd
    plain = nn.Linear(8, 8).requires_grad_(False)
    assert is_plain(plain)
    assert not left_alone(plain)


def test_memory_that_pytorch_can_use_again_is_free(plain, monkeypatch):
    needed = memory.needed(plain, torch.float32)
    text = loading.describe(loading.locate(TargetSpec(model=str(plain))))[1]
    reserved = {"now": needed}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed // 2, 10 * needed))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved["now"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: needed // 4)

    def check():
        memory.check_memory(
            plain, text, "tiny", dtype=torch.float32, device=torch.device("cuda", 0)
        )

    check()  # a half is free, and of what PyTorch holds three quarters
    reserved["now"] = needed // 2
    with pytest.raises(TargetError, match="for its weights, and cuda:0 has"):
        check()


def test_what_is_said_of_every_product_is_said_once(made, caplog):
    load(made("bnb-int8"))
    log = logging.getLogger("bitsandbytes.autograd._functions")
    for _ in range(3):
        log.warning("inputs are cast, test %s", 1)
    assert caplog.text.count("inputs are cast, test 1") == 1

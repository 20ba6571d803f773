"""A pass compiled ahead of time gives the numbers and tokens of an eager one, or is not used."""

import functools
import gc
import logging
import weakref
from collections import namedtuple

import pytest
import torch

from eagle.cache.store import Step
from eagle.decoding.decoder import Decoder
from eagle.errors import AssetError, CompileError
from eagle.kernels.fused_linear import products
from eagle.plugin.sampling import SamplingParams
from eagle.plugin.tree import ancestor_mask
from eagle.runtime import aot as module
from eagle.runtime.aot import AheadPass, ahead, made
from eagle.runtime.export import TracedPass
from eagle.testing import tiny_target
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig

pytestmark = pytest.mark.skipif(module.compiler() is None, reason="there is no C++ compiler")

PROMPTS = [[3, 4, 5, 6, 7], [10, 12, 14]]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The cache folder in which passes of tiny targets are kept: compiling one takes 20 seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(monkeypatch, packages):
    monkeypatch.setenv("EAGLE_CACHE", str(packages))
    return packages


@pytest.fixture
def empty(monkeypatch, tmp_path):
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path))
    return tmp_path


def sdpa():
    return Sdpa(SdpaConfig(), None)


@pytest.fixture
def compiled(cache, pair):
    """The compiled pass of the pair's target."""
    found = AheadPass(pair[0], sdpa(), ())
    found.make()
    assert found.load()
    return found


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "eagle.ahead"]


def steps(length):
    """Chains and a tree behind some text, spans of several lengths."""
    lengths = torch.tensor([length])
    for count, span in ((1, 64), (2, 64), (9, 80), (26, 96)):
        yield count, Step.chain(lengths, count, span)
    parents = torch.tensor([[-1, 0, 0, 1, 1, 2, 3]])
    ancestors = ancestor_mask(parents, 3)
    yield 7, Step.tree(lengths, ancestors.sum(2) - 1, ancestors, 64)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_it_gives_the_numbers_of_an_eager_pass(cache, pair, dtype):
    # Other tests want the pair's pass too, so that it is compiled once for all of them.
    target, attention = pair[0] if dtype == pair[0].dtype else tiny_target(dtype=dtype), sdpa()
    compiled = AheadPass(target, attention, ())
    compiled.make()
    assert compiled.load()
    text = torch.randint(target.embeddings, (1, 60), generator=torch.Generator().manual_seed(0))
    for length in (1, 30):
        for count, step in steps(length):
            caches = [target.make_cache(1, 96) for _ in range(2)]
            outs = []
            for run, kept in zip((target.forward, compiled), caches, strict=True):
                run(text[:, :length], Step.chain(torch.tensor([0]), length, 64), kept, attention)
                outs.append(run(text[:, length : length + count], step, kept, attention)[0])
            eager, found = (out.double() for out in outs)
            error = (eager - found).norm(dim=-1) / eager.norm(dim=-1)
            assert error.max() < TOLERANCE[dtype]
            for one, other in zip(caches[0].store.keys, caches[1].store.keys, strict=True):
                error = (one - other).double().norm() / one.double().norm()
                assert error < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "tree",
    [
        {"name": "static", "branching": [3, 2, 1]},
        {"name": "static", "branching": [2, 2], "sampling": "top-k"},
        {"name": "chain", "depth": 3},
        {"name": "dynamic"},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoders_that_find_it_say_the_same(compiled, pair, spec, tree, temperature):
    make = functools.partial(spec, tree=tree, attention="sdpa")
    eager = Decoder.from_spec(make(runtime={"compile": False}), target=pair[0])
    other = Decoder.from_spec(make(), target=pair[0])
    assert eager._cycle.ahead is None
    assert isinstance(other._cycle.ahead, AheadPass)
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=3)
    for prompts in (PROMPTS[0], PROMPTS[1], PROMPTS):  # the last in two slots, so eagerly
        expected, found = (d.generate(prompts, params) for d in (eager, other))
        if prompts is PROMPTS:
            assert [r.tokens for r in found] == [r.tokens for r in expected]
        else:
            assert found.tokens == expected.tokens


def test_other_weights_of_the_same_sizes_find_it_too(compiled, pair):
    other = tiny_target(seed=5, hidden_size=64, intermediate_size=128, eos_token_id=7)
    other.config.architectures = ["LlamaForCausalLM"]  # as saving a model does
    assert made(other.config, other.dtype) == [compiled.path.stem]
    found = ahead(other, sdpa(), (), make=False)  # the probe compares it with this model
    assert found is not None
    assert found.path == compiled.path


@torch.inference_mode()
def test_a_model_that_was_used_before_finds_it_too(compiled):
    """transformers notes on a model where it came from, and that hidden states were asked for."""
    other = tiny_target(hidden_size=64, intermediate_size=128, eos_token_id=7)
    other.config.architectures = ["LlamaForCausalLM"]
    other.body.name_or_path = "elsewhere"
    with other.stock() as model:
        model(input_ids=torch.tensor([[3, 4, 5]]), output_hidden_states=True, use_cache=True)
    assert AheadPass(other, sdpa(), ()).path == compiled.path


def test_the_stock_model_is_untouched(compiled, pair):
    target = pair[0]
    assert not target.layout.traced
    assert all(isinstance(product.weight, torch.Tensor) for product in products(target.body))
    ids = torch.tensor([[3, 9, 4, 7, 30]])
    fresh = type(target.model)(target.model.config).eval()
    fresh.load_state_dict(target.model.state_dict())
    with target.stock() as model, torch.inference_mode():
        found = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, fresh(input_ids=ids, use_cache=False).logits)


def test_what_the_code_depends_on_is_in_its_name(pair, cache):
    target = pair[0]
    names = {
        AheadPass(target, sdpa(), ()).path,
        AheadPass(target, sdpa(), (1,)).path,
        AheadPass(tiny_target(dtype=torch.bfloat16), sdpa(), ()).path,
        AheadPass(tiny_target(rms_norm_eps=0.1), sdpa(), ()).path,
        AheadPass(tiny_target("qwen2"), sdpa(), ()).path,
    }
    assert len(names) == 5
    assert AheadPass(target, sdpa(), ()).path in names


def test_without_a_package_nothing_is_compiled_unless_asked_for(empty, pair, spec, caplog):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    assert decoder._cycle.ahead is None
    assert said(caplog) == []


def test_without_a_compiler_passes_run_eagerly_and_that_is_said(
    empty, pair, spec, monkeypatch, caplog
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    expected = Decoder.from_spec(spec(), target=pair[0]).generate(PROMPTS[0], max_new_tokens=12)
    with caplog.at_level(logging.WARNING, logger="eagle.ahead"):
        decoder = Decoder.from_spec(spec(runtime={"compile": True}), target=pair[0])
    assert decoder._cycle.ahead is None
    assert decoder.generate(PROMPTS[0], max_new_tokens=12).tokens == expected.tokens
    (message,) = said(caplog)
    assert "C++ compiler" in message


def test_a_model_that_cannot_be_traced_runs_eagerly_and_that_is_said(empty, pair, caplog):
    class Reading(Sdpa):
        def plan(self, step, query_heads, kv_heads, dtype):
            if step.lengths.sum().item() < 0:
                raise AssertionError
            return super().plan(step, query_heads, kv_heads, dtype)

    with caplog.at_level(logging.WARNING, logger="eagle.ahead"):
        assert ahead(pair[0], Reading(SdpaConfig(), None), (), make=True) is None
    (message,) = said(caplog)
    assert "cannot be compiled" in message
    assert not list((empty / "passes").glob("*.pt2"))
    assert not pair[0].layout.traced


def test_a_backend_that_reads_on_the_host_is_not_traced(empty, pair):
    attention = sdpa()
    attention.capturable = False
    with pytest.raises(CompileError, match="not capturable"):
        AheadPass(pair[0], attention, ()).make()


@pytest.mark.parametrize(
    ("load", "said_of_it"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended a process with signal 11"),
        ("import sys; sys.exit('no such thing')", "no such thing"),
    ],
)
def test_code_that_cannot_be_loaded_is_not_kept(empty, pair, monkeypatch, load, said_of_it):
    monkeypatch.setattr(TracedPass, "package", lambda self, path: path.write_bytes(b"code"))
    monkeypatch.setattr(module, "_LOAD", load)
    found = AheadPass(pair[0], sdpa(), ())
    with pytest.raises(CompileError, match=f"cannot be loaded with PyTorch .*{said_of_it}"):
        found.make()
    assert not found.path.exists()
    assert not made(pair[0].config, pair[0].dtype)


def test_what_is_no_package_is_refused_where_it_is_made(empty, pair, monkeypatch):
    monkeypatch.setattr(TracedPass, "package", lambda self, path: path.write_bytes(b"code"))
    with pytest.raises(CompileError, match="cannot be loaded"):
        AheadPass(pair[0], sdpa(), ()).make()


def test_a_damaged_package_is_not_used(compiled, empty, pair, caplog):
    path = AheadPass(pair[0], sdpa(), ()).path
    path.parent.mkdir()
    path.write_bytes(b"no package")
    with caplog.at_level(logging.WARNING, logger="eagle.ahead"):
        assert ahead(pair[0], sdpa(), (), make=False) is None
    (message,) = said(caplog)
    assert str(path) in message


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_package_is_removed_and_made_again(
    compiled, cache, tmp_path, pair, monkeypatch, caplog, damage
):
    whole = compiled.path.read_bytes()
    middle = len(whole) // 2
    path = tmp_path / "passes" / compiled.path.name
    path.parent.mkdir()
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(AheadPass, "make", lambda self: self.path.write_bytes(whole))
    broken = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "empty": b"",
    }
    for make in (False, True):
        path.write_bytes(broken[damage])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="eagle.ahead"):
            found = ahead(pair[0], sdpa(), (), make=make)
        (message,) = said(caplog)
        assert "was damaged and is removed" in message
        assert (found is not None) == make == path.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("as: BFD: error closing x.o: No space left on device"),
    ],
)
def test_a_full_disk_is_said_with_the_space_that_is_needed(empty, pair, monkeypatch, error):
    def full(self, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(TracedPass, "package", full)
    with pytest.raises(AssetError, match=r"is full: about 400 MB"):
        AheadPass(pair[0], sdpa(), ()).make()
    assert not [path for path in (empty / "passes").iterdir() if path.is_dir()]
    assert not made(pair[0].config, pair[0].dtype)


def test_too_little_space_is_said_before_compiling(empty, pair, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: namedtuple("U", "free")(999))
    monkeypatch.setattr(TracedPass, "package", None)
    with pytest.raises(AssetError, match="is full"):
        AheadPass(pair[0], sdpa(), ()).make()


def test_code_that_computes_something_else_is_not_used(compiled, pair, monkeypatch):
    found = AheadPass(pair[0], sdpa(), ())
    own = TracedPass.weights

    def others(self):
        return {name: torch.flip(t, [0]) if t.dim() == 1 else t for name, t in own(self).items()}

    monkeypatch.setattr(TracedPass, "weights", others)
    digest = compiled.path.stem.partition("-")[2]
    monkeypatch.setattr(TracedPass, "digest", lambda self: digest)
    with pytest.raises(CompileError, match="gives other logits"):
        found.load()


@pytest.mark.parametrize("loads", [True, False])
def test_a_compiled_decoder_is_freed_with_its_last_reference(
    compiled, spec, pair, loads, monkeypatch
):
    def refuse(_):
        raise CompileError("it cannot be loaded")

    if not loads:  # what is said of that is kept, as whoever collects records does
        monkeypatch.setattr(AheadPass, "load", refuse)
    made = spec(attention="sdpa", runtime={"compile": True})
    decoder = Decoder.from_spec(made, target=pair[0])
    assert (decoder._cycle.ahead is not None) == loads
    gone = weakref.ref(decoder._cycle)
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()

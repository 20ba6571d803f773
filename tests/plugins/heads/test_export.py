"""Heads written for other engines: no number changes, and what comes back is the same head."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle.errors import CheckpointError
from eagle.testing import tiny_head, tiny_target
from eagle_plugins.heads import export
from tests.plugins.heads.published import VOCAB
from tests.plugins.heads.published import weights as eagle_weights
from tests.plugins.heads.published3 import IDS, authors, specforge, speculators, weights
from tests.plugins.heads.test_eagle3 import build, load
from tests.plugins.heads.test_layouts import publish

PUBLISHERS = {"authors": authors, "specforge": specforge, "speculators": speculators}
PLAIN = {"norm_before_residual": False}
VARIANTS = {
    "EAGLE-3": ("none", PLAIN),
    "normed residual": ("none", {"norm_before_residual": True}),
    "one norm": ("joined", {"norm_before_fc": True, **PLAIN}),
    "EAGLE-3.1": ("each", {"fc_norm": True, "norm_output": True, **PLAIN}),
}


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def same(mine, theirs):
    mine, theirs = (
        {k.replace("layers.0.", "midlayer."): v for k, v in one.items()} for one in (mine, theirs)
    )
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name])
        for name in mine
    )


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "speculators", "eagle"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_head_of_eagle3_comes_back_as_it_went(target, tmp_path, publisher, engine, variant):
    norms, said = VARIANTS[variant]
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights(norms).items()}
    first = build(target, PUBLISHERS[publisher](tmp_path / "a", half, **IDS, **said))
    plain = first._read[0]
    served = plain.norms == "none" and not plain.norm_before_residual
    if engine == "sglang" and not served:
        with pytest.raises(CheckpointError, match="is not served by sglang: its class has neither"):
            first.export(engine, tmp_path / "b")
        assert not (tmp_path / "b").exists()
        return
    command = first.export(engine, tmp_path / "b")
    assert str(tmp_path / "b") in command
    assert same(
        load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    )
    again = load(target, tmp_path / "b")
    for key in ("norms", "norm_before_residual", "feed_back", "layers", "joined", "draft_vocab"):
        assert getattr(again._made, key) == getattr(plain, key)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["norm_before_residual"] is plain.norm_before_residual
    if engine != "speculators":
        assert config["dtype"] == "float16"
    # And from there to the authors' layout: the same files whichever way it went.
    again.export("eagle", tmp_path / "c")
    first.export("eagle", tmp_path / "d")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def test_what_speculators_reads_is_where_it_looks_for_it(target, tmp_path):
    head = build(target, authors(tmp_path / "a", weights("each"), norm_output=True, **IDS))
    command = head.export("speculators", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["speculators_config"]["verifier"]["name_or_path"] == "tiny-llama-gqa"
    assert config["transformer_layer_config"]["hidden_size"] == 32
    assert "draft_vocab_size" not in config["transformer_layer_config"]
    assert (config["draft_vocab_size"], config["fc_norm"], config["norm_output"]) == (
        24,
        True,
        True,
    )
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    assert command.startswith("vllm serve tiny-llama-gqa --speculative-config ")


@pytest.mark.parametrize("engine", export.ENGINES)
@pytest.mark.parametrize("name", ["plain", "with a space", "it's; $HOME"])
def test_a_shell_takes_the_command_as_it_is_meant(engine, name):
    out, target = Path("/heads", name), f"/models/{name}"
    words = shlex.split(export._command("eagle3", engine, out, target))
    if engine == "eagle":
        assert words[3:] == ["--set", f"target.model={target}", "--set", f"head.weights={out}"]
    elif engine == "sglang":
        assert words[words.index("--model-path") + 1] == target
        assert words[words.index("--speculative-draft-model-path") + 1] == str(out)
    else:
        assert words[:4] == ["vllm", "serve", target, "--speculative-config"]
        (settings,) = words[4:]
        assert json.loads(settings)["model"] == str(out)


def test_settings_that_settle_what_files_leave_open_are_written(target, tmp_path):
    folder = speculators(tmp_path / "a", weights(), **IDS)
    build(target, folder, norm_before_residual=True).export("vllm", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["norm_before_residual"] is True


@pytest.mark.parametrize(
    ("engine", "architecture"),
    [
        ("vllm", "LlamaForCausalLM"), ("sglang", "LlamaForCausalLMEagle"),
        ("eagle", "LlamaForCausalLM"),
    ],
)  # fmt: skip
def test_a_head_of_eagle1_comes_back_as_it_went(target, tmp_path, engine, architecture):
    tiny_head(target).save(tmp_path / "a")
    build(target, tmp_path / "a").export(engine, tmp_path / "b")
    assert same(
        load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    )
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == [
        architecture
    ]
    load(target, tmp_path / "b").export("eagle", tmp_path / "c")
    build(target, tmp_path / "a").export("eagle", tmp_path / "d")
    assert (tmp_path / "c/config.json").read_bytes() == (tmp_path / "d/config.json").read_bytes()


@pytest.mark.parametrize("kept", ["all", "model.safetensors", "config.json"])
def test_another_models_files_are_not_replaced(target, tmp_path, kept):
    tiny_head(target).save(tmp_path / "a")
    head, there = build(target, tmp_path / "a"), tmp_path / "there"
    target.model.save_pretrained(there)
    if kept != "all":
        for file in there.iterdir():
            if file.name != kept:
                file.unlink()
    before = {file.name: file.read_bytes() for file in there.iterdir()}
    with pytest.raises(CheckpointError, match="holds the files of something else than a draft"):
        head.export("vllm", there)
    assert {file.name: file.read_bytes() for file in there.iterdir()} == before
    for _ in range(2):  # what an export has written is replaced by the next
        head.export("vllm", tmp_path / "b")


def test_what_an_engine_would_not_take_is_refused(target, tmp_path):
    (tmp_path / "a").mkdir()
    head = build(target, publish(tmp_path / "a", eagle_weights(fc_bias=True)))
    with pytest.raises(CheckpointError, match=r"not served by vllm: its class has no fc\.bias"):
        head.export("vllm", tmp_path / "b")
    with pytest.raises(CheckpointError, match="not served by speculators"):
        head.export("speculators", tmp_path / "b")
    with pytest.raises(CheckpointError, match="the head's own folder"):
        head.export("eagle", tmp_path / "a")
    tiny_head(target, name="token").save(tmp_path / "c")
    ablation = build(target, tmp_path / "c")
    with pytest.raises(CheckpointError, match="an ablation, of the kind 'token'"):
        ablation.export("eagle", tmp_path / "b")


def test_a_head_without_an_lm_head_goes_where_the_targets_is_shared(target, tmp_path):
    tensors = weights(drafts=VOCAB)
    del tensors["lm_head.weight"]
    head = build(target, authors(tmp_path / "a", tensors, draft_vocab_size=VOCAB, **IDS))
    for engine in ("vllm", "sglang", "eagle"):
        head.export(engine, tmp_path / engine)
        assert "lm_head.weight" not in load_file(tmp_path / engine / "model.safetensors")
        assert "through the target's LM head" in build(target, tmp_path / engine).identity
    config = json.loads((tmp_path / "sglang" / "config.json").read_text())
    assert "draft_vocab_size" not in config  # its class then reads the target's
    with pytest.raises(CheckpointError, match="has an LM head of its own, which this head lacks"):
        head.export("speculators", tmp_path / "c")

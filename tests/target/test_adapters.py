"""A PEFT adapter as part of a target: merged, named by a key or by its folder, or refused."""

import json
import logging
import sys
import warnings

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.errors import TargetError
from eagle.spec.schema import TargetSpec
from eagle.target import load_target
from eagle.testing import tiny_target

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient:FutureWarning")  # by peft
TOKENS = torch.tensor([[5, 9, 17, 3, 40]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, an adapter of it, and the logits that peft's own model gives."""
    found = tmp_path_factory.mktemp("tuned")
    model = tiny_target("llama-gqa").model
    model.save_pretrained(found / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():  # else an adapter that eight bits suit less is drawn now and then
        torch.manual_seed(0)
        tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        torch.save(tuned(TOKENS).logits, found / "logits.pt")
    tuned.save_pretrained(found / "adapter")
    changed(found / "adapter", base_model_name_or_path=str(found / "base"))
    return found


def changed(adapter, **keys):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def copied(folder, tmp_path, **keys):
    import shutil

    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    changed(tmp_path / "adapter", **keys)
    return tmp_path / "adapter"


def load(kind=None, **keys):
    return load_target(TargetSpec(device="cpu", dtype="float32", **keys), None, kind)


def logits(target):
    with target.stock() as model, torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("by_folder", [False, True])
def test_an_adapter_is_merged_into_its_base(folder, by_folder):
    adapter, base = str(folder / "adapter"), str(folder / "base")
    target = load(model=adapter) if by_folder else load(model=base, adapter=adapter)
    assert type(target.model).__name__ == "LlamaForCausalLM"
    assert target.plain
    assert not any("lora" in name for name, _ in target.model.named_modules())
    wanted = torch.load(folder / "logits.pt")
    torch.testing.assert_close(logits(target), wanted, rtol=1e-4, atol=1e-4)
    assert (logits(load(model=base)) - wanted).abs().max() > 0.1


def test_a_base_beside_the_adapter_is_found(folder, tmp_path):
    adapter = copied(folder, tmp_path, base_model_name_or_path="../base")
    (tmp_path / "base").symlink_to(folder / "base")
    assert load(model=str(adapter)).info.layers == 2


def test_what_is_quantized_is_quantized_after_merging(folder):
    pytest.importorskip("torchao")
    target = load("int8", model=str(folder / "base"), adapter=str(folder / "adapter"))
    assert not target.plain
    wanted = torch.load(folder / "logits.pt")
    assert (logits(target) - wanted).norm() / wanted.norm() < 0.05


def test_a_missing_base_is_named(folder, tmp_path):
    adapter = copied(folder, tmp_path, base_model_name_or_path="/nowhere/base")
    with pytest.raises(TargetError, match="is an adapter for '/nowhere/base', which is not there"):
        load(model=str(adapter))
    changed(adapter, base_model_name_or_path=None)
    with pytest.raises(TargetError, match="does not say which model it was made for"):
        load(model=str(adapter))


def test_an_adapter_of_another_base_is_refused(folder, tmp_path, caplog):
    tiny_target("llama-gqa", hidden_size=64).model.save_pretrained(tmp_path / "other")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(TargetError, match="does not fit the target") as caught,
    ):
        load(model=str(tmp_path / "other"), adapter=str(folder / "adapter"))
    assert "\n" not in str(caught.value)
    assert "was made for" in caplog.text


def test_weights_that_an_adapter_lacks_are_named(folder, tmp_path):
    adapter = copied(folder, tmp_path, target_modules=["q_proj", "down_proj", "up_proj"])
    with pytest.raises(TargetError, match=r"it lacks .*up_proj"):
        load(model=str(folder / "base"), adapter=str(adapter))


def test_a_folder_without_an_adapter_is_refused(folder):
    with pytest.raises(TargetError, match="there is no folder"):
        load(model=str(folder / "base"), adapter="nowhere")
    with pytest.raises(TargetError, match=r"holds no adapter_config.json"):
        load(model=str(folder / "base"), adapter=str(folder / "base"))


def test_an_adapter_without_peft_is_one_clear_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TargetError, match=r"needs peft, which is not installed; .* extra 'peft'"):
        load(model=str(folder / "adapter"))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [0, 2]]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [9, 17]},
    ],
    ids=["embedding", "head", "layers", "layers twice", "tokens"],
)
def test_weights_that_others_share_are_not_changed_for_them(tmp_path, settings):
    model = tiny_target("llama-gqa", tie_word_embeddings=True).model
    model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, that embeddings are tied
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora" in name or "tokens_delta" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        wanted = tuned(TOKENS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, that embeddings are tied
        tuned.save_pretrained(tmp_path / "adapter")
    changed(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    target = load(model=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(target), wanted, rtol=1e-3, atol=1e-3)
    decoder = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=target)
    first = decoder.generate(TOKENS[0].tolist(), max_new_tokens=1, ignore_eos=True).tokens
    assert first == (int(wanted[0, -1].argmax()),)


@pytest.mark.filterwarnings("ignore")  # of peft, that embeddings are tied
def test_tokens_that_an_adapter_lacks_are_named_where_embeddings_are_tied(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_target("llama-gqa", tie_word_embeddings=True).model
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[9]
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "tokens" not in name}
    save_file(kept, path)
    changed(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(TargetError, match=r"does not fit .*trainable_tokens_delta"):
        load(model=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))


def _tuned(path, config):
    """Save a base with biases and an adapter of it, and return what peft's own model gives."""
    model = tiny_target("qwen2").model
    model.save_pretrained(path / "base")
    tuned, generator = peft.get_peft_model(model, config).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        tuned.save_pretrained(path / "adapter")
        changed(path / "adapter", base_model_name_or_path=str(path / "base"))
        return tuned(TOKENS).logits


@pytest.mark.parametrize("kind", ["VeraConfig", "AdaLoraConfig"])
@pytest.mark.filterwarnings("ignore")  # of peft, on what it saves
def test_what_peft_works_out_or_saves_once_is_not_missed(kind, tmp_path):
    settings = {"target_modules": ["q_proj"], "r": 4, "task_type": "CAUSAL_LM"}
    more = {"total_step": 10} if kind == "AdaLoraConfig" else {}
    wanted = _tuned(tmp_path, getattr(peft, kind)(**settings, **more))
    target = load(model=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(target), wanted, rtol=1e-3, atol=1e-3)


def test_biases_of_the_base_that_an_adapter_trained_and_lacks_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], bias="lora_only", task_type="CAUSAL_LM"
    )
    wanted = _tuned(tmp_path, config)
    given = {"model": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    torch.testing.assert_close(logits(load(**given)), wanted, rtol=1e-3, atol=1e-3)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "bias" not in name}, path)
    with pytest.raises(TargetError, match=r"it lacks .*q_proj.base_layer.bias"):
        load(**given)


def test_an_adapter_that_cannot_be_merged_is_refused_by_its_kind(folder, tmp_path):
    adapter = copied(folder, tmp_path, alora_invocation_tokens=[3, 4])
    with pytest.raises(TargetError, match="is an activated LoRA"):
        load(model=str(folder / "base"), adapter=str(adapter))

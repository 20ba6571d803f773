"""Published layouts of draft heads: read ones compute what they should, others are named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eagle.cache.store import Step
from eagle.errors import CheckpointError
from eagle.plugin import Committed
from eagle.testing import tiny_target
from tests.plugins.heads.published import CONFIG, H, reference, weights
from tests.plugins.heads.test_checkpoint import load


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def embedding(target):
    return target.embed(torch.arange(64)[None])[0].clone()


def lm_head(target):
    return target.model.get_output_embeddings().weight.detach().clone()


def publish(folder, tensors, *, config=None, pickled=False, shards=1):
    """Write a folder as its publishers would."""
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    write = torch.save if pickled else save_file
    if shards == 1:
        write(tensors, folder / f"{stem}.{suffix}")
        return folder
    names, placed = list(tensors), {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        part = names[number::shards]
        write({name: tensors[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def prefixed(tensors):
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def check(target, folder, tensors):
    """Compare a loaded head, with its cache and without, with the reference."""
    head = load(target, folder)
    tokens, features = torch.randint(64, (1, 9)), torch.randn(1, 9, H)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    trained = head.train_states(tokens, tokens, [features], torch.arange(9)[None], visible)
    expected = reference(tensors, target.embed(tokens)[0], features[0])
    torch.testing.assert_close(trained[0], expected, atol=1e-4, rtol=1e-4)
    head.allocate(1, 16)
    step = Step.chain(torch.tensor([0]), 9, 9)
    absorbed = head.absorb(Committed(tokens, tokens, features, torch.tensor([9]), step))
    torch.testing.assert_close(absorbed[0], expected, atol=1e-4, rtol=1e-4)
    return head


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", [False, True])
def test_one_file_or_several_with_a_prefix_or_without(target, tmp_path, pickled, shards, prefix):
    tensors = weights(fc_bias=True)
    stored = prefixed(tensors) if prefix else tensors
    check(target, publish(tmp_path, stored, pickled=pickled, shards=shards), tensors)


@pytest.mark.parametrize("said", [{"qkv_bias": True}, {}, {"attention_bias": False}])
def test_biases_of_queries_keys_and_values_without_one_of_the_output(target, tmp_path, said):
    tensors = weights(qkv_bias=True)
    head = check(
        target, publish(tmp_path, tensors, config={"model_type": "qwen2", **said}), tensors
    )
    head.save(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["qkv_bias"], config["attention_bias"]) == (True, False)
    again = load(target, tmp_path / "again").module.state_dict()
    assert set(again) == set(tensors)


def test_biases_that_the_configuration_denies_are_unexpected(target, tmp_path):
    publish(tmp_path, weights(qkv_bias=True), config={"qkv_bias": False})
    with pytest.raises(CheckpointError, match=r"unexpected layers\.0\.self_attn\.q_proj\.bias"):
        load(target, tmp_path)


def test_biases_that_the_configuration_promises_are_missing(target, tmp_path):
    publish(tmp_path, weights(), config={"qkv_bias": True})
    with pytest.raises(CheckpointError, match=r"missing layers\.0\.self_attn\.q_proj\.bias"):
        load(target, tmp_path)


def test_several_layers(target, tmp_path):
    tensors = weights(layers=3, fc_bias=True)
    head = check(target, publish(tmp_path, tensors, config={"num_hidden_layers": 3}), tensors)
    head.save(tmp_path / "again")
    rounded = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    check(target, tmp_path / "again", rounded)


NORMS = {
    "embedding_layernorm.weight": torch.rand(H),
    "hidden_states_layernorm.weight": torch.rand(H),
}


@pytest.mark.parametrize("said", [{}, {"add_para_norm": True}])
def test_norms_of_hass_in_front_of_the_fc(target, tmp_path, said):
    tensors = weights(fc_bias=True) | NORMS
    head = check(target, publish(tmp_path, tensors, config=said), tensors)
    head.save(tmp_path / "again")
    rounded = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    check(target, tmp_path / "again", rounded)


@pytest.mark.parametrize("lacking", NORMS)
def test_norms_of_hass_come_together(target, tmp_path, lacking):
    tensors = {name: tensor for name, tensor in (weights() | NORMS).items() if name != lacking}
    publish(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=f"missing {lacking}"):
        load(target, tmp_path)
    publish(tmp_path, weights(), config={"add_para_norm": True})
    with pytest.raises(CheckpointError, match=r"missing embedding_layernorm\.weight"):
        load(target, tmp_path)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_targets_own_embedding_and_lm_head_may_be_beside(target, tmp_path, pickled, dtype):
    tensors = weights()
    own = {"embed_tokens.weight": embedding(target), "lm_head.weight": lm_head(target)}
    own = {name: tensor.to(dtype) for name, tensor in own.items()}
    constant = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    check(target, publish(tmp_path, {**tensors, **own, **constant}, pickled=pickled), tensors)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_those_of_another_target_are_refused(target, tmp_path, name):
    publish(tmp_path, weights() | {name: torch.randn(64, H) * 0.02})
    with pytest.raises(CheckpointError, match=rf"comes with {name} that is not that of the target"):
        load(target, tmp_path)


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_a_single_row_of_another_target_is_seen(target, tmp_path, name):
    own = embedding(target) if name.startswith("embed") else lm_head(target)
    own[17] *= -1
    publish(tmp_path, weights() | {name: own})
    with pytest.raises(CheckpointError, match="is not that of the target"):
        load(target, tmp_path)


@pytest.mark.parametrize("shape", [(64, 16), (64,), (0, H)])
def test_an_embedding_of_another_size_is_refused(target, tmp_path, shape):
    publish(tmp_path, weights() | {"embed_tokens.weight": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match="the target 'tiny-llama-gqa' has rows of 32"):
        load(target, tmp_path)


@pytest.mark.parametrize("key", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_an_lm_head_is_the_targets_where_the_target_scales_its_logits(tmp_path, key):
    target = tiny_target()
    setattr(target.config, key, 3.0)
    publish(tmp_path, weights() | {"lm_head.weight": lm_head(target)})
    load(target, tmp_path)
    publish(tmp_path, weights() | {"lm_head.weight": -lm_head(target)})
    with pytest.raises(CheckpointError, match="is not that of the target"):
        load(target, tmp_path)


EAGLE3 = {
    "fc.weight": torch.zeros(H, 3 * H),
    "midlayer.hidden_norm.weight": torch.ones(H),
    "d2t": torch.zeros(16, dtype=torch.int64),
    "t2d": torch.zeros(64, dtype=torch.bool),
    "lm_head.weight": torch.zeros(16, H),
}
LAYER = {"layers.0.input_layernorm.weight": torch.ones(H), "norm.weight": torch.ones(H)}
OTHERS = {
    "EAGLE-3 by its names": (EAGLE3, {}, "a draft head of EAGLE-3"),
    "EAGLE-3 by its configuration": ({}, {"draft_vocab_size": 16}, "a draft head of EAGLE-3"),
    "EAGLE-3 of SpecForge": (
        {}, {"architectures": ["LlamaForCausalLMEagle3"]}, "a draft head of EAGLE-3"
    ),
    "EAGLE-3 by its FC": ({"fc.weight": torch.zeros(H, 3 * H)}, {}, "a draft head of EAGLE-3"),
    "speculators": (
        EAGLE3, {"speculators_model_type": "eagle3"}, r"the layout of speculators \('eagle3'\)"
    ),
    "Medusa": ({}, {"medusa_num_heads": 4}, "a set of Medusa heads"),
    "Medusa by its names": ({"0.0.linear.weight": torch.zeros(H, H)}, {}, "a set of Medusa heads"),
    "DFlash": ({}, {"dflash_config": {}, "block_size": 16}, "a DFlash draft model"),
    "DFlash by its names": (
        {"fc.weight": torch.zeros(H, 5 * H), "hidden_norm.weight": torch.ones(H), **LAYER},
        {},
        "a DFlash draft model",
    ),
    "DSpark": ({"markov_head.markov_w1.weight": torch.zeros(64, 4)}, {}, "a DSpark draft model"),
    "P-EAGLE": ({**EAGLE3, "mask_hidden": torch.zeros(1, 1, 3 * H)}, {}, "a draft head of P-EAGLE"),
    "P-EAGLE of speculators": ({}, {"speculators_model_type": "peagle"}, "a draft head of P-EAGLE"),
    "a language model": (prefixed(LAYER), {}, "a whole language model, not a draft head"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_kind_is_named_with_what_to_do(target, tmp_path, name):
    tensors, config, message = OTHERS[name]
    publish(tmp_path, tensors, config=config)
    with pytest.raises(CheckpointError, match=rf"is .*{message}.* EAGLE-1 or EAGLE-2 for this"):
        load(target, tmp_path)


def test_an_adapter_and_medusas_own_file_are_named(target, tmp_path):
    (tmp_path / "medusa_lm_head.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a set of Medusa heads"):
        load(target, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a PEFT adapter, .* merge it into its model"):
        load(target, tmp_path)


def test_a_name_with_the_prefix_and_without_is_refused(target, tmp_path):
    publish(tmp_path, weights() | {"model.fc.weight": torch.zeros(H, 2 * H)})
    with pytest.raises(CheckpointError, match=r"holds fc\.weight twice"):
        load(target, tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {"fc.weight": 3}}', "has no weight_map"),
        ('{"weight_map": {"fc.weight": "../x.safetensors"}}', "there is no file"),
        ('{"weight_map": {"fc.weight": "config.json"}}', "there is no file"),
        ('{"weight_map": {"fc.weight": "a\\u0000b.safetensors"}}', "there is no file"),
        ('{"weight_map": {"other": "shard.safetensors"}}', "other is not in shard"),
        ("[", "cannot be read"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(target, tmp_path, index, message):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), tmp_path / "shard.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        load(target, tmp_path)

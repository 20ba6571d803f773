"""A target's files are wholly and only what its configuration says, or refused by name."""

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eagle.errors import EagleError, TargetError
from eagle.kernels.fused_linear import arrange
from eagle.kernels.prepacked import Switch, left_alone
from eagle.spec.schema import TargetSpec
from eagle.target import Target, load_target, loading, resolve_device
from eagle.testing import tiny_target


def spec_of(folder):
    return TargetSpec(model=str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Configuration and weights of a tiny target, as its files have them."""
    folder = tmp_path_factory.mktemp("target")
    tiny_target(tie_word_embeddings=False).model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "model.safetensors")


def written(folder, config, weights):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return spec_of(folder)


@pytest.mark.parametrize("key", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_missing_is_refused_by_its_key(key, saved, tmp_path):
    config, weights = saved
    spec = written(tmp_path, config, {name: w for name, w in weights.items() if name != key})
    with pytest.raises(TargetError, match=f"lack {key}"):
        load_target(spec)


@pytest.mark.parametrize("key", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.x.weight"])
def test_a_weight_that_has_no_place_is_refused_by_its_key(key, saved, tmp_path):
    config, weights = saved
    spec = written(tmp_path, config, weights | {key: torch.ones(32)})
    with pytest.raises(TargetError, match=f"no place for, {key}"):
        load_target(spec)


def test_a_weight_of_another_shape_is_refused(saved, tmp_path):
    config, weights = saved
    key = "model.layers.0.mlp.up_proj.weight"
    spec = written(tmp_path, config, weights | {key: torch.ones(3, 32)})
    with pytest.raises(TargetError, match="cannot be"):
        load_target(spec)


def test_what_no_pass_reads_may_be_there_or_not(saved, tmp_path):
    config, weights = saved
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert load_target(written(tmp_path, config, weights | extra)).info.layers == 2


def test_a_tied_head_need_not_be_in_the_files(tmp_path):
    tiny_target(tie_word_embeddings=True).model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_target(spec_of(tmp_path)).info.layers == 2


def test_a_message_names_the_first_few_keys_and_counts_the_rest(saved, tmp_path):
    config, weights = saved
    spec = written(tmp_path, config, {"lm_head.weight": weights["lm_head.weight"]})
    with pytest.raises(TargetError, match=r"model\.embed_tokens\.weight, .*, .* and \d+ more"):
        load_target(spec)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**9},
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"max_position_embeddings": 10**15},
        {"hidden_size": 2**20, "vocab_size": 2**20},
        {"num_hidden_layers": float("nan")},
        {"num_hidden_layers": -1},
        {"vocab_size": 0},
        {"sliding_window": ""},
        {"eos_token_id": 2.5},
    ],
    ids=str,
)
def test_absurd_values_are_refused_with_one_sentence(changes, saved, tmp_path):
    config, weights = saved
    spec = written(tmp_path, config | changes, weights)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    if "sliding_window" in changes:
        config = config | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        spec = written(tmp_path, config | changes, weights)
    with pytest.raises(TargetError) as caught:
        load_target(spec)
    assert "\n" not in str(caught.value)


WITHOUT = ...  # of one repr in every process, so that test ids are the same in all
REFUSED = [
    ({"num_attention_heads": 0}, "num_attention_heads should be a whole number above 0, not 0"),
    ({"num_attention_heads": -2}, "configuration's num_attention_heads should be .*, not -2"),
    ({"num_attention_heads": "4"}, "num_attention_heads should be .* not '4'"),
    (
        {"num_attention_heads": None},
        "config.json has num_attention_heads: null, where a whole number should be",
    ),
    (
        {"num_key_value_heads": [1, 2]},
        r"has num_key_value_heads: \[1, 2\], where a whole number or null should be",
    ),
    ({"eos_token_id": {}}, r"eos_token_id: {}, where a whole number or a list or null should be"),
    ({"tie_word_embeddings": 3}, "has tie_word_embeddings: 3, where true or false should be"),
    ({"model_type": "gpt2", "n_head": 0}, "n_head should be a whole number above 0, not 0"),
    ({"model_type": "gpt2", "n_head": -2}, "n_head should be a whole number above 0, not -2"),
    ({"model_type": "gemma3", "text_config": "x"}, "text_config: 'x', where settings by name"),
    (
        {"model_type": "gemma3", "text_config": {"head_dim": [8]}},
        r"has head_dim: \[8\], where a whole number should be",
    ),
    (
        {"num_attention_heads": 3, "num_key_value_heads": 3},
        r": The hidden size \(32\) is not a mul",
    ),
    ({"num_key_value_heads": 0}, "num_key_value_heads should be a whole number above 0"),
    ({"head_dim": -8}, "head_dim should be a whole number above 0, not -8"),
    ({"intermediate_size": -1}, "intermediate_size should be a whole number above 0, not -1"),
    ({"intermediate_size": 9}, r"shape .*\.down_proj\.weight \(\[32, 64\], where .* \[32, 9\]\)"),
    ({"hidden_act": "sillu"}, "hidden_act: 'sillu', which .* Did you mean 'silu'"),
    ({"rope_parameters": {"rope_type": "lama3"}}, "rope_type: 'lama3', which .* mean 'llama3'"),
    ({"model_type": "lama"}, "model_type: 'lama', which the installed .* mean 'llama'"),
    ({"model_type": ["llama"]}, r"model_type: \['llama'\], which the installed"),
    ({"model_type": WITHOUT}, "config.json has no model_type"),
    ({"model_type": "vit"}, "a ViTConfig is of no causal language model"),
    ({"hidden_size": WITHOUT}, "does not say hidden_size, so its family's is taken: .* 4096"),
    ({"num_hidden_layers": WITHOUT}, "lack .* does not say num_hidden_layers, .* 32"),
    ({"rms_norm_eps": "x"}, "has rms_norm_eps: 'x', where a number should be"),
    ({"dtype": "float99"}, "can make nothing of what its files say .*float99"),
]


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:Missing validation")
@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=lambda one: str(one)[:50])
def test_a_wrong_setting_is_named_and_what_it_should_be(changes, said, saved, tmp_path, capfd):
    config, weights = saved
    changed = {key: value for key, value in (config | changes).items() if value is not WITHOUT}
    with pytest.raises(TargetError, match=said) as caught:
        load_target(written(tmp_path, changed, weights))
    assert "\n" not in str(caught.value)
    assert "alidation error" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err  # the sentence says it


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", r"its config\.json holds \[1\], where settings by name should be"),
        ('"llama"', "its config.json holds 'llama'"),
        ("null", "its config.json holds null, where settings by name should be"),
        ("3", "its config.json holds 3"),
        ('{"a":', "its config.json is no JSON: Expecting value: line 1"),
    ],
)
def test_a_configuration_that_is_none_is_said_to_be_none(text, said, saved, tmp_path):
    spec = written(tmp_path, *saved)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TargetError, match=said):
        load_target(spec)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", '{"a":', "its tokenizer.json is no JSON"),
        ("tokenizer.json", "[]", r"its tokenizer\.json holds \[\]"),
        ("tokenizer.json", "{}", "can make nothing of what its files say .KeyError"),
        ("tokenizer_config.json", '"x"', "its tokenizer_config.json holds 'x'"),
        ("tokenizer_config.json", "{}", "there is no tokenizer.json, nor another file"),
        ("generation_config.json", "[]", "its generation_config.json holds"),
    ],
)
def test_a_file_beside_the_weights_that_is_broken_is_named(name, text, said, saved, tmp_path):
    spec = written(tmp_path, *saved)
    (tmp_path / name).write_text(text)
    with pytest.raises(TargetError, match=said):
        load_target(spec)


def test_a_file_that_cannot_be_read_is_not_said_to_be_no_json(saved, tmp_path):
    spec = written(tmp_path, *saved)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(TargetError, match=r"its config\.json cannot be read: Is a directory"):
        load_target(spec)


def test_what_leaves_no_trace_in_the_log_leaves_the_log_as_it_was(saved, tmp_path):
    filters = list(logging.getLogger("transformers.modeling_utils").filters)
    load_target(written(tmp_path, *saved))
    assert logging.getLogger("transformers.modeling_utils").filters == filters


def test_an_end_token_that_is_no_token_is_refused():
    model = tiny_target().model
    model.generation_config.eos_token_id = 2.5
    with pytest.raises(TargetError, match=r"eos_token_id should be .* not 2\.5"):
        Target(model, None, "tiny")


@pytest.mark.parametrize(
    "name", ["cuda:\u0661", "cuda:\u00b2", "cuda:99999999999999999999", "cuda:300"]
)
def test_a_device_that_cannot_be_is_refused(name):
    with pytest.raises(TargetError, match="there is no cuda"):
        resolve_device(name)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**9, 2**31, 10**30, -(10**18), 0.5, float("nan"), float("inf"), "", "x"]),
    st.lists(
        st.sampled_from(["full_attention", "sliding_attention", "chunked_attention", 3]), max_size=3
    ),
    st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta"]),
        st.sampled_from([0, "x", "yarn", "linear", 2.0]),
        max_size=3,
    ),
)
KEYS = [
    "architectures",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
    "num_labels",
    "dtype",
    "quantization_config",
    "auto_map",
    "is_encoder_decoder",
]
TYPES = ["llama", "mistral", "gemma3_text", "gpt_oss", "gpt2", "mamba", "t5", "nothing"]


def loads_or_is_refused(saved, folder, changes, kind, lost):
    """Load a target whose files were tampered with."""
    config, weights = saved
    config = config | ({"model_type": kind} if kind else {}) | changes
    kept = {name: w for index, (name, w) in enumerate(sorted(weights.items())) if index != lost}
    try:
        target = load_target(written(folder, config, kept))
        _ = target.asked
    except EagleError:
        return
    assert lost is None or lost >= len(weights)


TAMPERED = {
    "changes": st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
    "kind": st.sampled_from([None, None, *TYPES]),
    "lost": st.none() | st.integers(0, 30),
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None)
@given(**TAMPERED)
def test_any_target_folder_loads_or_is_refused(saved, tmp_path_factory, changes, kind, lost):
    loads_or_is_refused(saved, tmp_path_factory.getbasetemp(), changes, kind, lost)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=3000, deadline=None, derandomize=False)
@given(**TAMPERED)
def test_any_target_folder_loads_or_is_refused_at_length(
    saved, tmp_path_factory, changes, kind, lost
):
    loads_or_is_refused(saved, tmp_path_factory.getbasetemp(), changes, kind, lost)


class Quantized(torch.Tensor):
    """A weight that multiplies as somebody else has it, and can be nothing else."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.cat, torch.Tensor.data_ptr):
            raise NotImplementedError(f"{function} of a quantized weight")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_plain_tensors_are_left_alone(dtype):
    model = tiny_target(dtype=torch.float32).model.to(dtype)
    linear = [m for m in model.modules() if type(m) is torch.nn.Linear]
    assert linear
    for layer in linear:
        weight = layer.weight.detach().as_subclass(Quantized)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        assert left_alone(layer)
    before = {name: type(m) for name, m in model.named_modules()}
    arrange(model, Switch())
    assert {name: type(m) for name, m in model.named_modules()} == before
    target = Target(model, None, "quantized")
    assert target.draft_logits() == target.logits
    assert loading.device_of(model.lm_head).type == "cpu"

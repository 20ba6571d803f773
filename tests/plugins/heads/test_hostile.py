"""Folders of draft heads that somebody damaged or made up: one sentence, nothing large built."""

import json
import os
import re
import resource
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from eagle.errors import CheckpointError
from eagle.plugin.blocks.heads.architecture import llama_config
from eagle.testing import tiny_target
from tests.plugins.heads.published import CONFIG, weights
from tests.plugins.heads.test_checkpoint import load
from tests.plugins.heads.test_layouts import publish


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def refusal(target, folder):
    """Return the one sentence that a folder is refused with."""
    with pytest.raises(CheckpointError) as raised:
        load(target, folder)
    said = str(raised.value)
    assert "\n" not in said
    assert len(said) < 1000 + 2 * len(str(folder))
    return said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -32}, "hidden_size should be greater than or equal to 1"),
        ({"hidden_size": 10**30}, "hidden_size should be less than or equal to 131072"),
        ({"hidden_size": 32.5}, "hidden_size should be a valid integer"),
        ({"intermediate_size": 10**12}, "intermediate_size should be less than"),
        ({"num_attention_heads": 0}, "num_attention_heads should be greater"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim should be a multiple of 2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers should be less than or equal to 16"),
        ({"num_hidden_layers": True}, "num_hidden_layers should be a valid integer"),
        ({"vocab_size": "64"}, "vocab_size should be a valid integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps should be"),
        ({"hidden_act": ["silu"]}, "hidden_act should be a valid string"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of num_attention_heads 4"),
        (
            {"hidden_size": 36},
            "36 and num_attention_heads 4 make heads of 9 numbers, .* as head_dim",
        ),
        ({"bos_token_id": [1]}, r"bos_token_id should be a valid integer, not \[1\]"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters: .* 'spiral' is unknown"),
        ({"rope_parameters": {"rope_type": "lama3"}}, "Did you mean 'llama3'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, r"text's length \(rope_scaling: dynamic\)"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling has no factor, which .* 'linear'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
            "no low_freq_factor and no high_freq_factor, which .* 'llama3' needs",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.0}},
            r"rope_scaling\.factor should be greater than 0, not 0\.0",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": "x"}},
            r"rope_parameters\.factor should be a valid number, not \"x\"",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 1e-300}},
            "turns by numbers that are not finite; see .* rope_parameters",
        ),
        ({"rope_scaling": 7}, "rope_scaling should be a mapping, not 7"),
        ({"rope_theta": -1.0}, "rope_theta should be greater than 0"),
        ({"draft_kind": "x" * 99}, "draft_kind should have at most 64"),
    ],
)
def test_a_configuration_of_absurd_values_is_refused_by_its_key(target, tmp_path, changes, message):
    publish(tmp_path, weights(), config=changes)
    said = refusal(target, tmp_path)
    assert re.search(message, said)
    assert str(tmp_path / "config.json") in said


def test_what_transformers_alone_refuses_is_said_without_how_it_found_it(tmp_path, monkeypatch):
    def refused(self, **settings):
        raise ValueError("Class validation error for validator 'x':\n    ValueError: no heads.")

    monkeypatch.setattr("transformers.LlamaConfig.__init__", refused)
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError) as raised:
        llama_config(CONFIG, path)
    assert str(raised.value) == f"{path} is no Llama configuration: no heads."


def test_many_bad_keys_are_one_sentence(target, tmp_path):
    publish(tmp_path, weights(), config={key: [] for key in CONFIG})
    assert ". 7 more are wrong: " in refusal(target, tmp_path)


def test_keys_that_do_not_matter_are_not_read(target, tmp_path):
    """What a Llama configuration would make of them took 5 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bombs = {
        "num_labels": 10**9,
        "id2label": 3,
        "layer_types": ["x"] * 9,
        "quantization_config": {},
    }
    load(target, publish(tmp_path, weights(), config=bombs))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize("text", ["[" * 10**5, "[1]", '{"a": ' + "9" * 5000 + "}", "\xff\xfe"])
def test_a_configuration_that_is_no_json_is_refused(target, tmp_path, text):
    publish(tmp_path, weights())
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json cannot be read" in refusal(target, tmp_path)


def test_a_configuration_far_too_long_is_not_read(target, tmp_path):
    publish(tmp_path, weights())
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**34)
    assert "it is longer than 16 MiB" in refusal(target, tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64]
)
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_that_are_no_real_numbers_are_not_cast(target, tmp_path, dtype, pickled):
    tensors = weights()
    tensors["fc.weight"] = tensors["fc.weight"].to(dtype)
    publish(tmp_path, tensors, pickled=pickled)
    name = str(dtype).removeprefix("torch.")
    assert f"fc.weight is of dtype {name}; a draft head's weights are" in refusal(target, tmp_path)


def quantised(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PyTorch will have no such tensors
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to("meta"), "fc.weight is a meta tensor"),
        (lambda t: t.to_sparse(), "is quantised or sparse"),
        (lambda t: torch.zeros(1, 1).expand(32, 64), "the file holds fewer"),
        (quantised, "fc.weight is of dtype qint8"),
        (lambda t: [t], "does not hold a dictionary of tensors"),
    ],
)
def test_what_a_pickle_may_hold_beside_plain_tensors_is_refused(target, tmp_path, change, message):
    tensors = weights()
    tensors["fc.weight"] = change(tensors["fc.weight"])
    publish(tmp_path, tensors, pickled=True)
    assert message in refusal(target, tmp_path)


@pytest.mark.parametrize("content", [{3: torch.zeros(1)}, [torch.zeros(1)], "text", None])
def test_a_pickle_of_something_else_is_refused(target, tmp_path, content):
    publish(tmp_path, content, pickled=True)
    assert "does not hold a dictionary of tensors" in refusal(target, tmp_path)


def test_a_pickle_of_the_old_format_is_read(target, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(weights(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    load(target, tmp_path)


def test_a_pickle_that_unpacks_to_more_than_it_is_is_not_unpacked(target, tmp_path):
    publish(tmp_path, weights(), pickled=True)
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**24))
    assert "it would unpack to 16,777,216 bytes" in refusal(target, tmp_path)


@pytest.mark.parametrize("weights_", ["a" * 5000, "a\0b", "\ud800"])
def test_a_name_that_no_file_has_is_refused(target, weights_):
    with pytest.raises(CheckpointError, match=r"head\.weights: "):
        load(target, weights_)


SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**9, -(10**9), 2**63, 10**40]),
    st.floats(),
    st.text(max_size=8),
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
)
KEYS = [
    *CONFIG, "head_dim", "rope_scaling", "rope_parameters", "attention_bias", "qkv_bias", "bias",
    "num_labels", "draft_vocab_size", "speculators_model_type", "add_para_norm", "eos_token_id",
    "layer_types", "draft_kind", "model_type", "dtype", "quantization_config",
]  # fmt: skip
ROPE = st.dictionaries(
    st.sampled_from(["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "beta_fast"]),
    SCALAR | st.sampled_from(["linear", "llama3", "yarn", "dynamic", "proportional", "default"]),
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), VALUE | ROPE, max_size=4)


def loads_or_is_refused(target, config, damage):
    """A folder loads, or is refused in a sentence; nothing else comes out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish(folder, weights(), config=config, pickled=damage[2])
        (file,) = folder.glob("*model.*")
        content = bytearray(file.read_bytes())
        place = int(damage[0] * len(content))
        if damage[1] == "cut":
            content = content[:place]
        elif damage[1] is not None:
            content[place : place + 1] = damage[1]
        file.write_bytes(content)
        try:
            load(target, folder)
        except CheckpointError as error:
            said = str(error)
            assert "\n" not in said, said
            assert len(said) < 1200, said


DAMAGE = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.none() | st.just("cut") | st.binary(max_size=2),
    st.booleans(),
)
BOUNDED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BOUNDED
@given(CHANGES, DAMAGE)
def test_any_folder_loads_or_is_refused_in_a_sentence(target, config, damage):
    loads_or_is_refused(target, config, damage)


@pytest.mark.fuzz
@settings(BOUNDED, max_examples=int(os.environ.get("EAGLE_FUZZ", "3000")))
@given(CHANGES, DAMAGE)
def test_any_folder_loads_or_is_refused_in_a_sentence_for_long(target, config, damage):
    loads_or_is_refused(target, config, damage)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"PK\x03\x04", b"{}", os.urandom(512)])
def test_weights_that_are_none_are_refused(target, tmp_path, name, content):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(content)
    refusal(target, tmp_path)


def test_a_head_that_is_refused_leaves_nothing(target, tmp_path):
    publish(tmp_path, {}, config={"hidden_size": 0})
    save_file(weights(), tmp_path / "model.safetensors")
    before = sorted(os.listdir(tmp_path))
    refusal(target, tmp_path)
    assert sorted(os.listdir(tmp_path)) == before

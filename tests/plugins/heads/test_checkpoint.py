"""Draft head checkpoints: the published layout in and out, and everything that is not one."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle.errors import CheckpointError
from eagle.plugin.budget import RankRates
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.testing import tiny_head, tiny_target

LAYOUT = {
    "fc.weight": (32, 64),
    "layers.0.self_attn.q_proj.weight": (32, 32),
    "layers.0.self_attn.k_proj.weight": (16, 32),
    "layers.0.self_attn.v_proj.weight": (16, 32),
    "layers.0.self_attn.o_proj.weight": (32, 32),
    "layers.0.mlp.gate_proj.weight": (64, 32),
    "layers.0.mlp.up_proj.weight": (64, 32),
    "layers.0.mlp.down_proj.weight": (32, 64),
    "layers.0.post_attention_layernorm.weight": (32,),
}

RATES = RankRates(levels=((0.5,),), positions=7, source="this head")


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture
def folder(target, tmp_path):
    tiny_head(target).save(tmp_path)
    return tmp_path


def load(target, folder):
    head = default_registry().get(Role.HEAD, "eagle").strategy
    attention = default_registry().get(Role.ATTENTION, "sdpa").strategy
    made = head.build(head.config(weights=str(folder)), BuildContext(target.info))
    made.feature_size(target.info)
    made.load(target, attention.build(attention.config(), BuildContext()))
    return made


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_head_is_saved_in_the_published_layout(folder):
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == LAYOUT
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert config["bias"] is False
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_what_was_saved_is_loaded(target, folder):
    saved = load_file(folder / "model.safetensors")
    for name, tensor in load(target, folder).module.state_dict().items():
        assert torch.equal(tensor, saved[name].float())


def test_a_published_checkpoint_loads(target, folder):
    """A pickle of tensors, with the FC's bias and the target's own embedding."""
    tensors = load_file(folder / "model.safetensors")
    embedding = target.embed(torch.arange(64)[None])[0].half()
    tensors |= {"fc.bias": torch.ones(32), "embed_tokens.weight": embedding}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load(target, folder).module.fc.bias, torch.ones(32))


def test_missing_unexpected_and_misshapen_tensors_are_all_named(target, folder):
    def change(tensors):
        del tensors["layers.0.mlp.up_proj.weight"]
        tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(3)
        tensors["fc.weight"] = torch.zeros(32, 32)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as raised:
        load(target, folder)
    for part in (
        "missing layers.0.mlp.up_proj.weight",
        "unexpected layers.1.mlp.up_proj.weight",
        "fc.weight is [32, 32], not [32, 64]",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "hidden_size 48, the target 'tiny-llama-gqa' has 32"),
        ({"vocab_size": 100}, "vocab_size 100, the target 'tiny-llama-gqa' has 64"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": 50}, r"config\.json: hidden_size 50 is not a multiple"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
)
def test_a_head_of_another_target_is_refused(target, folder, changes, message):
    reconfigure(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(target, folder)


def test_a_truncated_file_is_refused(target, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load(target, folder)


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_that_is_more_than_tensors_is_not_run(target, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors and was not loaded"):
        load(target, folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hidden_size": 32}'])
def test_a_config_that_is_none_is_refused(target, folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(target, folder)


def test_a_folder_that_is_not_there_is_refused(target, tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        load(target, tmp_path / "nothing")


def test_no_head_is_shipped_for_an_unknown_target(target):
    with pytest.raises(CheckpointError, match=r"no draft head is shipped.*smollm2-135m-instruct"):
        load(target, "auto")


def test_a_full_disk_leaves_the_old_head(target, folder, monkeypatch):
    RATES.write(folder)
    before = (folder / "model.safetensors").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eagle.plugin.blocks.heads.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        tiny_head(target, seed=1).save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    names = ["acceptance.json", "config.json", "model.safetensors"]
    assert sorted(os.listdir(folder)) == names


def test_what_was_measured_of_an_old_head_does_not_outlive_it(target, folder):
    RATES.write(folder)
    load(target, folder).save(folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_the_shipped_head_is_measured():
    from eagle_plugins.heads.checkpoint import SHIPPED

    rates = RankRates.read(SHIPPED / "smollm2-135m-instruct")
    assert rates is not None
    assert (len(rates.levels), rates.positions > 4000) == (8, True)


def test_the_shipped_head_is_small_and_without_bias():
    from eagle_plugins.heads.checkpoint import SHIPPED

    folder = SHIPPED / "smollm2-135m-instruct"
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    assert "fc.bias" not in load_file(folder / "model.safetensors")


def test_states_agree_between_absorbing_and_training(target, folder):
    from eagle.cache.store import Step
    from eagle.plugin.roles import Committed

    head = load(target, folder)
    head.allocate(1, 16)
    tokens, features = torch.randint(64, (1, 9)), torch.randn(1, 9, 32)
    step = Step.chain(torch.tensor([0]), 9, 9)
    own = tokens.roll(1, 1)
    absorbed = head.absorb(Committed(tokens, own, features, torch.tensor([9]), step))
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    trained = head.train_states(tokens, own, [features], torch.arange(9)[None], visible)
    torch.testing.assert_close(absorbed, trained)

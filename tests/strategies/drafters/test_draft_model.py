"""A draft model from files: always right where it is the target itself, else refused by name."""

from __future__ import annotations

import pytest

from eagle import Decoder, DecoderSpec
from eagle.errors import CheckpointError
from eagle.plugin import CausalDrafter
from eagle.target.causal_lm import Target
from tests.vocabularies import byte_fallback, byte_level


@pytest.mark.parametrize("depth", [1, 4])
def test_the_target_as_its_own_draft_model_is_always_right(depth, pair, tmp_path):
    with pair[0].stock() as model:
        model.save_pretrained(tmp_path / "same")
    head = {"name": "draft-model", "model": str(tmp_path / "same")}
    tree = {"name": "chain", "depth": depth}
    made = Decoder.from_spec(DecoderSpec(head=head, tree=tree), target=pair[0])
    found = made.generate([3, 5, 7], max_new_tokens=1 + 6 * (depth + 1), ignore_eos=True)
    assert found.stats.tau == depth + 1


def test_a_folder_without_a_model_is_named(pair, tmp_path):
    head = {"name": "draft-model", "model": str(tmp_path / "nothing")}
    with pytest.raises(CheckpointError, match=r"there is no draft model in .*nothing"):
        Decoder.from_spec(DecoderSpec(head=head, tree="chain"), target=pair[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "llama", "head_dim": "x"}', "configuration's head_dim should be a whole"),
        (
            '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}',
            r"cannot be read: The hidden size \(30\) is not a multiple",
        ),
        ("[1]", r"its config.json holds \[1\], where settings by name should be"),
    ],
)
def test_a_configuration_that_is_none_is_refused_in_one_sentence(text, said, pair, tmp_path):
    (tmp_path / "config.json").write_text(text)
    head = {"name": "draft-model", "model": str(tmp_path)}
    with pytest.raises(CheckpointError, match=said) as raised:
        Decoder.from_spec(DecoderSpec(head=head, tree="chain"), target=pair[0])
    with pytest.raises(CheckpointError) as asked:
        CausalDrafter(tmp_path).state_size(pair[0].info)
    for found in (raised.value, asked.value):
        assert str(tmp_path) in str(found)
        assert "\n" not in str(found)
        assert "alidation error" not in str(found)


def test_a_model_of_other_tokens_is_refused_with_the_first_that_differs(pair, tmp_path):
    with pair[0].stock() as model:
        model.save_pretrained(tmp_path / "other")
        byte_fallback().save_pretrained(tmp_path / "other")
        target = Target(model, byte_level(), "tiny")
        head = {"name": "draft-model", "model": str(tmp_path / "other")}
        with pytest.raises(CheckpointError, match=r"0 is '<unk>' there and '.+' here"):
            Decoder.from_spec(DecoderSpec(head=head, tree="chain"), target=target)

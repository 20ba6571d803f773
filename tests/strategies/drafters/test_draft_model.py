"""A draft model from files: always right where it is the target itself, else refused by name."""

from __future__ import annotations

import pytest

from eagle import Decoder, DecoderSpec
from eagle.errors import CheckpointError
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


def test_a_model_of_other_tokens_is_refused_with_the_first_that_differs(pair, tmp_path):
    with pair[0].stock() as model:
        model.save_pretrained(tmp_path / "other")
        byte_fallback().save_pretrained(tmp_path / "other")
        target = Target(model, byte_level(), "tiny")
        head = {"name": "draft-model", "model": str(tmp_path / "other")}
        with pytest.raises(CheckpointError, match=r"0 is '<unk>' there and '.+' here"):
            Decoder.from_spec(DecoderSpec(head=head, tree="chain"), target=target)

"""What the shipped heads use of a target is what `eagle.plugin.TargetModel` documents."""

from __future__ import annotations

import pytest
import torch

from eagle.plugin import (
    BuildContext,
    Committed,
    Drafted,
    Role,
    Step,
    TargetError,
    TargetModel,
    default_registry,
)
from eagle.target import Target
from eagle.testing import tiny_head, tiny_target
from tests.families import config_of, model_of

FACE = {
    *("info", "device", "dtype", "config"),
    *("embed", "logits", "draft_logits", "lay_out", "draft_model"),
}


class Face:
    """A target with nothing but what the contract names."""

    def __init__(self, target):
        self.__dict__.update({name: getattr(target, name) for name in FACE})


def head_of(name, weights, target):
    strategy = default_registry().get(Role.HEAD, name).strategy
    settings = {} if name == "none" else {"weights": str(weights)}
    return strategy.build(strategy.config(**settings), BuildContext(target.info))


def decoded(head, target, attention):
    """Return states and logits of a text that is absorbed, and of drafts behind it."""
    head.load(target, attention)
    head.allocate(1, 32)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(target.info.vocab_size, (1, 7), generator=generator)
    features = torch.randn(1, 6, head.feature_size(target.info), generator=generator)
    length = torch.zeros(1, dtype=torch.int64)
    step = Step.chain(length, 6, 16)
    states = head.absorb(Committed(text[:, 1:], text[:, :-1], features, length + 6, step))
    below = head.extend(Drafted(text[:, :1], states[:, -1:], 1, Step.chain(length + 6, 1, 16)))
    return states, below, head.logits(states)


def trained(head, target):
    """Return the states of a text, by fresh weights."""
    head.initialise(target, 0)
    text, features = torch.arange(12).view(2, 6), torch.ones(2, 5, target.info.hidden_size)
    positions, visible = torch.arange(5).expand(2, -1), torch.ones(2, 1, 5, 5, dtype=torch.bool)
    return head.train_states(text[:, 1:], text[:, :-1], [features], positions, visible.tril())


def test_the_face_is_what_the_contract_documents():
    declared = {name for name in dir(TargetModel) if not name.startswith("_")}
    assert declared | set(TargetModel.__annotations__) == FACE
    assert all(getattr(TargetModel, name).__doc__ for name in declared)
    assert all(f"        {name}: " in TargetModel.__doc__ for name in TargetModel.__annotations__)


@pytest.mark.parametrize("name", ["eagle", "token", "feature", "feature-unshifted"])
def test_a_target_of_nothing_but_its_face_serves_a_head(name, tmp_path):
    target = tiny_target()
    attention = default_registry().get(Role.ATTENTION, "sdpa").strategy
    attention = attention.build(attention.config(), BuildContext())
    made = head_of(name, tmp_path, target)
    expected = trained(made, target)
    made.save(tmp_path)
    assert torch.equal(trained(head_of(name, tmp_path, target), Face(target)), expected)
    for found, own in zip(
        decoded(head_of(name, tmp_path, target), Face(target), attention),
        decoded(head_of(name, tmp_path, target), target, attention),
        strict=True,
    ):
        assert torch.equal(found, own)


def test_the_head_that_drafts_nothing_needs_no_more_of_a_target():
    target = tiny_target()
    head_of("none", None, target).load(Face(target), None)


def test_a_target_whose_layers_are_of_different_sizes_shapes_no_head():
    target = Target(model_of(config_of("gemma4_text")), None, "uneven")
    with pytest.raises(TargetError, match="'uneven': its layers are of different sizes"):
        tiny_head(target)

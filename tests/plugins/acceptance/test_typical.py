from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from eagle.plugin.draws import UniformDraws
from eagle.plugin.laws import KNOWN_LAWS
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.plugin.sampling import Sampling, TargetProbs
from eagle.plugin.tree import TokenTree, TreeShape, ancestor_mask
from eagle.spec import declared
from eagle_plugins.acceptance import STRATEGIES
from eagle_plugins.acceptance.typical import TypicalConfig, TypicalRule

# Root, its children with tokens 1 and 2, and a child of the second with token 1.
PARENTS = torch.tensor([[-1, 0, 0, 2]])
TREE = TokenTree(
    tokens=torch.tensor([[0, 1, 2, 1]]),
    parents=PARENTS,
    depths=torch.tensor([[0, 1, 1, 2]]),
    ranks=torch.tensor([[0, 0, 1, 0]]),
    ancestors=ancestor_mask(PARENTS, 2),
)
SHAPE = TreeShape(nodes=4, depth=2, siblings=2, expansions=1)


def accept(probs, temperature=1.0, tree=TREE, config=None):
    sampling = Sampling(
        temperature=torch.tensor([temperature]),
        top_k=torch.tensor([0]),
        top_p=torch.tensor([1.0]),
        min_p=torch.tensor([0.0]),
        greedy=temperature == 0,
        filtered=False,
    )
    logits = torch.tensor([probs]).log()
    draws = UniformDraws(torch.zeros(1, 1))
    outcome = TypicalRule(config).accept(tree, TargetProbs(logits, sampling), SHAPE, draws)
    return outcome.path[0].tolist(), int(outcome.count[0]), int(outcome.bonus[0])


def test_the_longest_typical_path_is_kept():
    root, leaf = [0.2, 0.4, 0.4], [0.0, 0.0, 1.0]
    assert accept([root, leaf, [0.1, 0.9, 0.0], leaf]) == ([0, 2, 3], 2, 2)


def test_an_unlikely_candidate_ends_the_path():
    leaf = [0.0, 0.0, 1.0]
    assert accept([[0.2, 0.4, 0.4], leaf, [0.98, 0.01, 0.01], leaf])[:2] == ([0, 1, 0], 1)
    assert accept([[0.98, 0.01, 0.01], leaf, leaf, leaf]) == ([0, 0, 0], 0, 0)


def test_at_temperature_zero_it_decodes_greedily():
    row, leaf = [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]
    assert accept([row, leaf, [0.4, 0.6, 0.0], leaf], temperature=0.0) == ([0, 2, 3], 2, 2)
    assert accept([row, leaf, [0.6, 0.4, 0.0], leaf], temperature=0.0) == ([0, 2, 0], 1, 0)


def test_padding_is_never_accepted():
    parents = torch.tensor([[-1, -1, -1, -1]])
    tree = TokenTree(TREE.tokens, parents, TREE.depths, TREE.ranks, ancestor_mask(parents, 2))
    assert accept([[0.0, 1.0, 0.0]] * 4, tree=tree) == ([0, 0, 0], 0, 1)


def test_the_threshold_follows_the_entropy():
    # Entropy log 4: the threshold is min(0.9, 0.8 / 4) = 0.2, under the 0.25 of every token.
    config = TypicalConfig(epsilon=0.9, delta=0.8)
    assert accept([[0.25] * 4] * 4, config=config)[1] == 2
    assert accept([[0.25] * 4] * 4, config=TypicalConfig(epsilon=0.9, delta=1.0))[1] == 0


def test_it_is_registered_as_lossy_for_every_law():
    (strategy,) = [each for each in STRATEGIES if each.name == "typical"]
    known = declared(default_registry().get(Role.ACCEPTANCE, "typical"))
    assert not known.lossless
    assert known.laws == frozenset(KNOWN_LAWS)
    rule = strategy.build(strategy.config(), BuildContext())
    assert not rule.lossless


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"delta": 1.5}, {"threshold": 0.1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypicalConfig(**wrong)

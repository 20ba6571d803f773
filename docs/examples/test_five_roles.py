"""What the page "Write a plug-in" quotes is held to its roles' contracts, and decodes."""

import five_roles
import pytest
import torch
from five_roles.acceptance import Match
from five_roles.attention import Naive
from five_roles.features import Joined, JoinedConfig
from five_roles.fitted import FittedFan
from five_roles.head import Echo
from five_roles.loss import Choice
from five_roles.tree import Fan, FanConfig

from eagle import Decoder, DecoderSpec
from eagle.plugin import (
    Budget,
    BuildContext,
    Costs,
    Curve,
    IncompatibleError,
    Prediction,
    RankRates,
    Registry,
    SpecError,
    StrategyConfig,
)
from eagle.testing import (
    check_acceptance_rule,
    check_attention_backend,
    check_draft_head,
    check_feature_extractor,
    check_tree_builder,
    tiny_target,
)

CONTEXT = BuildContext()


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture
def registry():
    made = Registry.discover()
    made.register(five_roles, "five-roles", "an-example")
    return made


# [features]
def test_the_feature_extractor_keeps_its_contract(target):
    check_feature_extractor(Joined(JoinedConfig(layers=(0, 1)), CONTEXT), target)


# [head]
def test_the_draft_head_keeps_its_contract(target):
    head = Echo(StrategyConfig(), CONTEXT)
    head.load(target, Naive(StrategyConfig(), CONTEXT))
    check_draft_head(head, target)


# [tree]
@pytest.mark.parametrize("width", [1, 4])
def test_the_tree_builder_keeps_its_contract(width):
    check_tree_builder(Fan(FanConfig(width=width), CONTEXT))


# [fitted]
@pytest.mark.parametrize(("dear", "width"), [(20.0, 2), (10.3, 4)])
def test_the_fitted_fan_is_as_wide_as_pays(dear, width):
    """One to three nodes cost about the same; five cost more, or not."""
    budget = Budget(
        RankRates(levels=((0.6, 0.2, 0.1, 0.08),), positions=1000, source="made up"),
        Costs(
            verify=Curve.of([(1, 10.0), (3, 10.1), (5, dear)]),
            begin=1.0,
            level=Curve.of([(1, 1.0)]),
            rest=0.5,
            context=512,
        ),
    )
    fitted = FittedFan(StrategyConfig(), CONTEXT)
    check_tree_builder(fitted)
    assert fitted.fit(budget).builder.width == width


# [attention]
def test_the_attention_backend_keeps_its_contract():
    check_attention_backend(Naive(StrategyConfig(), CONTEXT))


# [acceptance]
def test_the_acceptance_rule_is_lossless():
    check_acceptance_rule(Match(StrategyConfig(), CONTEXT))


# [loss]
def test_the_loss_is_least_where_the_choice_is_the_targets():
    draft = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    said = Prediction(0, draft, draft, draft, target)
    right, wrong = Choice(StrategyConfig(), CONTEXT)(said)["loss"].tolist()
    assert right < 0.1 < 4 < wrong


# [decode]
def test_all_five_decode_together_and_say_what_the_target_says(registry, target):
    def answer(**parts):
        decoder = Decoder.from_spec(DecoderSpec(**parts), registry=registry, target=target)
        return decoder.generate([3, 1, 4, 1, 5], max_new_tokens=16, ignore_eos=True)

    drafted = answer(head="echo", tree="fan", attention="naive", acceptance="match")
    plain = answer(head="none", tree="none")
    assert drafted.tokens == plain.tokens


# [end]
def test_a_pair_that_does_not_fit_is_refused(registry, target):
    spec = DecoderSpec(features="joined", head="echo", tree="fan")
    with pytest.raises(IncompatibleError, match=r"features of size 64 .* needs 32"):
        Decoder.from_spec(spec, registry=registry, target=target)
    with pytest.raises(SpecError, match="the target has layers 0 to 2"):
        Joined(JoinedConfig(layers=(7,)), BuildContext(target.info))

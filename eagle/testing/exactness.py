"""`assert_lossless`: enumerates what an acceptance rule puts out, and compares with the target.

It knows rules and tree builders by their roles alone. Randomness goes through
`eagle.plugin.Draws`, so an oracle in its place visits every branch and multiplies
probabilities: what is compared are whole distributions, not samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle.plugin import KNOWN_LAWS, AcceptanceRule, Law, NeedsTopology, TreeBuilder, listed
from eagle.testing.exact_batched import check_world
from eagle.testing.exact_scalar import check_world_scalar
from eagle.testing.worlds import World, worlds

if TYPE_CHECKING:
    from hypothesis import settings as Settings

__all__ = ["assert_lossless", "check_world", "check_world_scalar"]


def assert_lossless(
    rule: AcceptanceRule,
    law: Law | str | None = None,
    builder: TreeBuilder | None = None,
    *,
    settings: Settings | None = None,
) -> None:
    """Prove on small worlds that a rule's output has exactly the target's distribution.

    Hypothesis draws vocabularies of 2 to 5 tokens, trees of depth 3 at most and any topology,
    sampling parameters, and target and draft distributions of small integers, with many zeros
    and ties. For each, every outcome of the drafting and of the rule is enumerated; each output,
    continued by the target itself to a common length, must have the probability that the target
    gives it: within 1e-12 for the rule in float64, and equal as fractions for its scalar twin,
    if it has one (an attribute ``scalar``, see `eagle.plugin.scalar_speculative`), under a known
    law. In some worlds drafts are over a vocabulary of their own; in some, siblings of different
    nodes have different laws. Trees are chains for a rule that needs them.

    Args:
        rule: an acceptance rule.
        law: how siblings are drawn, or the name of a known law; None: every law that the rule
            declares, in turn. Of a law of one's own, siblings are drawn as it says of itself.
        builder: drafts the trees instead, by its own law. Its tree must be small under a
            sampled law: every outcome of its draws is enumerated.
        settings: Hypothesis settings; None: those of the active profile, without a deadline.

    Raises:
        AssertionError: some output has another probability than the target gives it; or the
            rule or the builder breaks its contract on the way.
        ModuleNotFoundError: Hypothesis is not installed.
        ValueError: the rule does not declare the law.
    """
    try:
        from hypothesis import HealthCheck, Phase, given
        from hypothesis import settings as make_settings
        from hypothesis import strategies as st
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "assert_lossless needs Hypothesis: pip install 'eagle-decoding[testing]'",
            name=error.name,
        ) from error
    laws = _laws(rule, law, builder)
    chain = isinstance(rule, NeedsTopology) and rule.topology == "chain"
    settings = settings or make_settings(
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )
    scalar = getattr(rule, "scalar", None) if builder is None else None

    def prove(world: World, law: Law) -> None:
        check_world(rule, world, law, builder)
        if scalar is not None and law in KNOWN_LAWS and not world.mixed_laws:
            check_world_scalar(scalar, world, law)

    for each in laws:
        settings(given(worlds(each, builder, chain=chain), st.just(each))(prove))()


def _laws(rule: AcceptanceRule, law: Law | str | None, builder: TreeBuilder | None) -> list[Law]:
    """Return the laws to prove a rule under, all of them declared."""
    if builder is not None:
        # One proof: the builder draws by its own law, the sampled one where it has one.
        drawn = sorted(builder.laws, key=lambda law: (law.fixed, law))
        laws, asked = drawn[:1] or [Law.TOP_K], list(builder.laws)
    elif law is None:
        laws = asked = sorted(rule.laws)
    else:
        laws = asked = [Law.named(law, rule.laws) if isinstance(law, str) else law]
    if undeclared := [one for one in asked if one not in rule.laws]:
        raise ValueError(
            f"{type(rule).__name__} does not declare the law {listed(undeclared)}; "
            f"it declares {listed(rule.laws)}"
        )
    return laws

"""What holds a component to its contract: at the first cycle, in a spec, and in `eagle.testing`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.errors import IncompatibleError, PluginError, SpecError
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.hooks import hookimpl
from eagle.plugin.laws import Law
from eagle.plugin.roles import BuildContext, ComponentSpec, Role, Strategy, StrategyConfig
from eagle.spec.building import resolve
from eagle.testing import assert_capturable
from eagle_plugins.acceptance.speculative import SpeculativeRule
from tests.contracts import toys

PROMPT = [3, 5, 7, 9]


def decoder(pair, spec, tree=None, rule=None):
    class Broken:
        @hookimpl
        def eagle_tree_builders(self):
            return [Strategy("broken", StrategyConfig, lambda *_: tree, "broken")]

        @hookimpl
        def eagle_acceptance_rules(self):
            return [Strategy("broken", StrategyConfig, lambda *_: rule, "broken")]

    made = toys.registry()
    made.register(Broken(), "broken", "broken-plugins", "2")
    parts = ({"tree": "broken"} if tree else {}) | ({"acceptance": "broken"} if rule else {})
    return Decoder.from_spec(spec(**parts), registry=made, target=pair[0])


def changed(change):
    class Changed(StaticTree):
        def build(self, drafter, draws):
            return change(super().build(drafter, draws))

    return Changed(Topology.from_paths([[0], [1], [0, 0]]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: replace(t, tokens=t.tokens[:, :-1]), r"tokens of shape \[1, 3\], .* \[1, 4\]"),
        (lambda t: replace(t, depths=None), "depths of shape NoneType"),
        (lambda t: replace(t, depths=t.depths.float()), "depths of type torch.float32, not torch"),
        (
            lambda t: replace(t, tokens=t.tokens.int()),
            "tokens of type torch.int32, not torch.int64",
        ),
        (lambda t: replace(t, ancestors=t.ancestors.byte()), "ancestors of type torch.uint8"),
        (lambda t: replace(t, tokens=t.tokens + t.depths * 64), "none of the target's 64"),
        (lambda t: replace(t, ancestors=t.ancestors[:, :2]), r"ancestors of shape \[1, 2, 4\]"),
        (lambda t: replace(t, tokens=t.tokens + 1), "a first node that is not the root"),
        (lambda t: replace(t, parents=t.parents + 1), "a root that has a parent"),
        (lambda t: replace(t, parents=t.parents * 0 + torch.tensor([-1, 2, 0, 1])), "before its"),
        (lambda t: replace(t, depths=t.depths * 2), "deeper than the 2 levels declared"),
        (lambda t: replace(t, depths=t.depths.clamp(max=1)), "its parent's plus one"),
        (lambda t: replace(t, ancestors=t.ancestors | True), "others than its ancestors"),
        (lambda t: replace(t, ancestors=t.ancestors & False), "sees others|not see itself"),
    ],
)
def test_the_first_tree_is_checked_and_its_builder_named(change, problem, pair, spec):
    broken = decoder(pair, spec, changed(change))
    with pytest.raises(PluginError, match=problem) as caught:
        broken.generate(PROMPT, max_new_tokens=8)
    assert "tree builder 'broken' (broken-plugins 2), plug-in 'broken'" in str(caught.value)
    assert "build() returned" in str(caught.value)


@pytest.mark.parametrize("captured", [True, False])
def test_fewer_nodes_than_declared_are_for_builders_that_are_not_captured(captured, pair, spec):
    class Growing(StaticTree):
        """Has one more node in each cycle, up to all of them, and then begins again."""

        capturable = captured
        cycles = 0

        def build(self, drafter, draws):
            self.cycles += 1
            nodes = 1 + self.cycles % 4
            tree = super().build(drafter, draws)
            parts = {
                name: getattr(tree, name)[:, :nodes] for name in ("tokens", "parents", "depths")
            }
            seen = tree.ancestors[:, :nodes, :nodes]
            return replace(tree, **parts, ranks=tree.ranks[:, :nodes], ancestors=seen)

    tree = Growing(Topology.from_paths([[0], [1], [0, 0]]))
    made = decoder(pair, spec, tree)
    if captured:
        with pytest.raises(PluginError, match=r"tokens of shape \[1, 2\], .* \[1, 4\]"):
            made.generate(PROMPT, max_new_tokens=8)
        return
    said = made.generate(PROMPT, max_new_tokens=32, ignore_eos=True)
    plain = Decoder.from_spec(spec(tree={"name": "none"}), target=pair[0])
    assert said.tokens == plain.generate(PROMPT, max_new_tokens=32, ignore_eos=True).tokens
    assert said.stats.tau > 1.0
    assert tree.cycles > 4


def test_more_children_than_declared_are_noticed(pair, spec):
    tree = StaticTree(Topology.from_paths([[0], [1], [0, 0]]))

    class Modest:
        shape = replace(tree.shape, siblings=1)
        laws, uniforms, build, capturable = tree.laws, tree.uniforms, tree.build, True

    with pytest.raises(PluginError, match="more children than the 1 declared"):
        decoder(pair, spec, Modest()).generate(PROMPT, max_new_tokens=8)


def test_only_the_first_tree_is_looked_at(pair, spec, monkeypatch):
    looked = []
    monkeypatch.setattr("eagle.cycle.cycle.check_tree", lambda *given, **_: looked.append(given))
    made = Decoder.from_spec(spec(), target=pair[0])
    for _ in range(2):
        made.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    assert len(looked) == 1


def test_a_law_that_a_builder_did_not_declare_is_caught(pair, spec):
    class Sly(StaticTree):
        laws = frozenset({Law.TOP_K})

    sly = decoder(pair, spec, Sly(Topology.from_branching([2])))
    with pytest.raises(
        PluginError,
        match=r"drew siblings by without-replacement, but `laws` declares top-k",
    ):
        sly.generate(PROMPT, max_new_tokens=8, temperature=1.0)


def test_draws_that_a_builder_did_not_declare_are_caught(pair, spec):
    class Greedy(StaticTree):
        uniforms = 1

    tree = Greedy(Topology.from_paths([[0], [1], [0, 0]]))
    with pytest.raises(
        PluginError, match=r"tree builder 'broken'.*build\(\) read 3 uniforms.* declares 1"
    ):
        decoder(pair, spec, tree).generate(PROMPT, max_new_tokens=8, temperature=1.0)


def test_draws_that_a_rule_did_not_declare_are_caught(pair, spec):
    class Thirsty(SpeculativeRule):
        def uniforms(self, shape):
            return 1

    with pytest.raises(PluginError, match=r"acceptance rule 'broken'.*(declares 1|were declared)"):
        decoder(pair, spec, rule=Thirsty()).generate(PROMPT, max_new_tokens=8, temperature=1.0)


def test_a_wrong_state_size_is_named_as_that(pair):
    parts = DecoderSpec(head="lossy", tree="chain")
    wrong = Decoder.from_spec(parts, registry=toys.registry(), target=pair[0])
    with pytest.raises(
        PluginError,
        match=r"draft head 'lossy'.*absorb\(\) returned states of size 64, but state_size\(\) "
        "says 65",
    ):
        wrong.generate(PROMPT, max_new_tokens=8)


@pytest.mark.parametrize(
    ("head", "method", "problem"),
    [
        ("mtp", "extend", r"states of size 63, but state_size\(\) says 64"),
        ("mtp", "logits", "draft logits over 63 tokens, but it drafts from 64"),
        ("at-once", "draft", "draft logits over 63 tokens, but it drafts from 64"),
    ],
)
def test_what_a_head_returns_of_another_size_is_named(head, method, problem, pair, monkeypatch):
    kind = {"mtp": toys.Levels, "at-once": toys.Parallel}[head]
    whole = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, *given: whole(self, *given)[..., :-1])
    parts = DecoderSpec(head=head, tree={"name": "chain", "depth": 2})
    wrong = Decoder.from_spec(parts, registry=toys.registry(), target=pair[0])
    with pytest.raises(PluginError, match=rf"draft head '{head}'.*{method}\(\) returned {problem}"):
        wrong.generate(PROMPT, max_new_tokens=8)


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([1, 2, 2], "names a token of the target twice"),
        ([1, 64], "none of the target's 64"),
        ([1.0, 2.0], "not int64"),
    ],
)
def test_a_draft_vocabulary_that_is_none_is_named(ids, problem, pair, monkeypatch):
    own = torch.tensor(ids)
    spec = DecoderSpec(head="own-end", features="layers", tree="chain")
    wrong = Decoder.from_spec(spec, registry=toys.registry(), target=pair[0])
    monkeypatch.setattr(toys.OwnEnd, "draft_vocab", own)
    with pytest.raises(PluginError, match=f"draft head 'own-end'.*its draft_vocab .*{problem}"):
        wrong.generate(PROMPT, max_new_tokens=8)


def test_a_choice_that_is_none_of_the_alternatives_is_named(pair, monkeypatch):
    monkeypatch.setattr(toys.Varying, "choose", lambda self, seen: 3)
    wrong = Decoder.from_spec(
        DecoderSpec(head="mtp", tree="varying"), registry=toys.registry(), target=pair[0]
    )
    with pytest.raises(PluginError, match=r"'varying'.*choose\(\) returned 3, which is none of"):
        wrong.generate(PROMPT, max_new_tokens=8)


# --- before anything is loaded -------------------------------------------------------------------


def test_an_extractor_of_other_layers_than_the_heads_is_refused(pair):
    context = BuildContext(pair[0].info)
    with pytest.raises(IncompatibleError) as caught:
        resolve(DecoderSpec(head="own-end"), toys.registry(), context)
    message = str(caught.value)
    assert "draft head 'own-end' (toys 1) joins the hidden states 0, 1, 2 of the target" in message
    assert "takes the last alone; use `features: layers`" in message
    given = {"name": "layers", "layers": [0, 2]}
    with pytest.raises(IncompatibleError, match="takes 0, 2"):
        resolve(DecoderSpec(head="own-end", features=given), toys.registry(), context)
    followed = resolve(DecoderSpec(head="own-end", features="layers"), toys.registry(), context)
    assert followed.features.layers == (0, 1, 2)


def test_layers_that_nobody_names_are_asked_for(pair):
    context = BuildContext(pair[0].info)
    with pytest.raises(SpecError, match="the head names no layers, so give some here"):
        resolve(DecoderSpec(head="mtp", features="layers"), toys.registry(), context)
    odd = {"name": "layers", "layers": [0, 7]}
    with pytest.raises(SpecError, match="has no hidden state 7; it has 0 to 2"):
        resolve(DecoderSpec(head="mtp", features=odd), toys.registry(), context)


def test_a_head_that_was_never_trained_is_not_told_of_its_training(pair):
    given = {"name": "layers", "layers": [0, 1]}
    context = BuildContext(pair[0].info)
    with pytest.raises(IncompatibleError) as caught:
        resolve(DecoderSpec(head="mtp", features=given), toys.registry(), context)
    assert "choose an extractor that makes features of size 64" in str(caught.value)
    trained = {"name": "eagle", "weights": str(pair[1])}
    with pytest.raises(IncompatibleError, match="that the head was trained with"):
        resolve(DecoderSpec(head=trained, features=given), toys.registry(), context)


def test_a_nested_strategy_that_nobody_has_is_an_error_of_the_spec():
    wrong = {"name": "cascade", "first": "ngramm", "second": "mtp"}
    with pytest.raises(SpecError, match=r"no draft head is named 'ngramm'\. Did you mean 'ngram'"):
        resolve(DecoderSpec(head=wrong, tree="chain"), toys.registry())
    with pytest.raises(SpecError, match="only happens when a spec is resolved"):
        BuildContext().build(Role.HEAD, ComponentSpec(name="ngram"))


# --- capturable ----------------------------------------------------------------------------------


_READ = torch.Tensor.tolist  # taken before anybody watches


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: 1 if x.any() else 0,
        lambda x: int(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: torch.arange(3).repeat_interleave(x),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: np.from_dlpack(x),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device="cpu", dtype=torch.float32),
        lambda x: f"{x[0]}",
        lambda x: _READ(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.zeros(int(x.max())),
    ],
)
def test_a_hidden_host_read_is_found_on_a_cpu(work):
    given = torch.tensor([1, 2, 3])
    with pytest.raises(AssertionError, match=r"on the host|a shape depends"):
        assert_capturable(lambda: work(given))
    assert given.sum().item() == 6, "what was watched is as it was"


def test_work_of_fixed_shapes_is_capturable():
    given = torch.tensor([1, 2, 3])
    assert_capturable(lambda: given.where(given > 1, 0).gather(0, given - 1).cumsum(0))
    assert_capturable(lambda: given.repeat_interleave(2))
    assert_capturable(lambda: given.to(torch.float32).to(given.device).to(device=given.device))


def test_what_is_made_once_is_no_host_read():
    made = {}

    def work():
        if not made:
            made["sizes"] = torch.tensor([1, 2]).tolist()
        return made

    assert_capturable(work)


@pytest.mark.parametrize("head", ["mtp", "at-once", "draft-model", "ngram", "recalls"])
def test_a_cycle_of_the_toys_reads_nothing_on_the_host(head, pair, monkeypatch):
    made = Decoder.from_spec(
        DecoderSpec(head=head, tree={"name": "static", "branching": [2, 1]}),
        registry=toys.registry(),
        target=pair[0],
    )
    made.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
    run = made._cycle.run

    def watched(*args, **options):
        assert_capturable(lambda: run(*args, **options), warm_up=0)

    monkeypatch.setattr(made._cycle, "run", watched)
    for temperature in (0.0, 1.0):
        made.generate(PROMPT, max_new_tokens=8, temperature=temperature, ignore_eos=True)

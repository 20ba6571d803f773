"""Trees that fit the machine: what is measured, when, where it is kept, and what may go wrong."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import pytest
import torch

from eagle.decoding.decoder import Decoder
from eagle.decoding.resolving import resolve_for
from eagle.decoding.trace import Trace
from eagle.errors import CheckpointError, PluginError, SpecError
from eagle.plugin.budget import Budget, Costs, Curve, Fit, Option, RankRates
from eagle.plugin.capabilities import FittedTree
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Law
from eagle.sizing import choosing
from eagle.sizing.choosing import NO_FILES, NO_FILES_HELP, account, cost_key, fit_tree, recall
from eagle.sizing.costing import measure_costs, measure_slots
from eagle.spec import TargetSpec
from eagle_plugins.attention.auto import Auto
from eagle_plugins.trees.chain import CHAIN

PROMPT = [5, 6, 7]
AUTO = {"name": "static", "size": "auto"}
RATES = RankRates(levels=((0.7, 0.2), (0.6, 0.2), (0.5, 0.2)), positions=100, source="counted")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def head(pair, tmp_path):
    """A copy of the pair's head whose acceptance was measured, as a spec has it."""
    folder = tmp_path / "head"
    shutil.copytree(pair[1], folder)
    RATES.write(folder)
    return {"name": "eagle", "weights": str(folder)}


@pytest.fixture
def measured(monkeypatch):
    """Spare the measuring; the list has an entry for each time."""
    times = []

    def measure(resolved, target, tell):
        times.append(resolved.spec.tree.name)
        tell("measuring")
        return Costs(
            verify=Curve.of([(1, 10.0), (4, 11.0), (61, 100.0)]),
            begin=0.5,
            level=Curve.of([(1, 0.5), (10, 1.0)]),
            rest=0.5,
            context=8,
        )

    def several(resolved, target, tell, counts):
        return {count: measure(resolved, target, tell) for count in counts}

    monkeypatch.setattr("eagle.sizing.choosing.measure_costs", measure)
    monkeypatch.setattr("eagle.sizing.choosing.measure_slots", several)
    return times


@pytest.fixture
def loaded(spec, head, pair):
    """Resolve a spec of the head, and load the head; keyword arguments replace what differs."""

    def make(**changes):
        resolved = resolve_for(
            spec(**({"head": head, "tree": AUTO} | changes)), default_registry(), pair[0]
        )
        resolved.head.load(pair[0], resolved.attention)
        return resolved

    return make


def test_costs_are_measured_once_and_kept(cache, measured, spec, head, pair, capsys):
    first = Decoder.from_spec(spec(head=head, tree=AUTO), target=pair[0])
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Measuring what a cycle costs on this machine")
    assert said[1] == "  measuring"
    shape = first.resolved.tree.shape
    assert said[2].startswith(f"  chosen: {shape.nodes} nodes, {shape.depth} levels; ")
    assert [path.suffix for path in (cache / "costs").iterdir()] == [".json"]

    second = Decoder.from_spec(spec(head=head, tree=AUTO), target=pair[0])
    assert second.resolved.tree.shape == shape
    assert measured == ["static"]
    assert capsys.readouterr().err == ""


def test_trees_of_all_builders_share_what_was_measured(cache, measured, loaded, pair):
    for name in ("static", "dynamic"):
        fitted = fit_tree(loaded(tree={"name": name, "size": "auto"}), pair[0])
        assert not isinstance(fitted.tree, FittedTree)
    assert measured == ["static"]


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": {"max_length": 64}},
        {"runtime": {"compile": True}},
        {"features": {"name": "last-hidden"}, "acceptance": "typical"},
    ],
)
def test_what_changes_the_costs_is_measured_anew(cache, measured, loaded, pair, changes):
    fit_tree(loaded(), pair[0])
    fit_tree(loaded(**changes), pair[0])
    assert len(measured) == len(list((cache / "costs").iterdir())) == 2


def test_another_head_of_the_same_sizes_needs_no_measuring(cache, measured, loaded, pair, tmp_path):
    first = loaded()
    fit_tree(first, pair[0])
    shutil.copytree(first.head.folder, tmp_path / "other")
    fit_tree(loaded(head={"name": "eagle", "weights": str(tmp_path / "other")}), pair[0])
    assert len(measured) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"measured_on": {}, "costs": {}}'])
def test_a_damaged_file_is_measured_anew_and_replaced(cache, measured, loaded, pair, caplog, text):
    shape = fit_tree(loaded(), pair[0]).tree.shape
    (kept,) = (cache / "costs").iterdir()
    whole = kept.read_text()
    kept.write_text(text)
    with caplog.at_level(logging.WARNING, logger="eagle.sizing"):
        assert fit_tree(loaded(), pair[0]).tree.shape == shape
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{kept} cannot be used")
    assert len(measured) == 2
    assert kept.read_text() == whole


def test_what_was_kept_under_another_key_is_not_used(cache, measured, loaded, pair):
    fit_tree(loaded(), pair[0])
    (kept,) = (cache / "costs").iterdir()
    kept.write_text(kept.read_text().replace("torch.float32", "torch.float16"))
    fit_tree(loaded(), pair[0])
    assert len(measured) == 2


def test_a_cache_that_cannot_be_written_stops_nothing(
    cache, measured, loaded, pair, caplog, capsys
):
    cache.write_text("a file where the folder would be")
    with caplog.at_level(logging.WARNING, logger="eagle.sizing"):
        fitted = fit_tree(loaded(), pair[0])
    assert not isinstance(fitted.tree, FittedTree)
    assert f"measured costs cannot be kept in {cache / 'costs'}" in caplog.text
    assert "chosen: " in capsys.readouterr().err


def test_a_head_that_was_never_measured_keeps_the_usual_tree_and_says_so(
    cache, measured, spec, pair, capsys
):
    decoder = Decoder.from_spec(spec(tree=AUTO), target=pair[0])
    shape = decoder.resolved.tree.shape
    said = capsys.readouterr().err
    assert f"this head has no acceptance.json; so the tree has {shape.nodes} nodes" in said
    assert "eagle bench ranks" in said
    assert measured == []
    plain = Decoder.from_spec(spec(tree="static"), target=pair[0])
    assert plain.resolved.tree.shape == shape
    assert decoder.generate(PROMPT, max_new_tokens=8).tokens


def test_a_head_without_files_keeps_the_usual_tree_and_is_told_what_helps(
    cache, measured, spec, pair, capsys
):
    decoder = Decoder.from_spec(spec(tree=AUTO, head="prompt-lookup"), target=pair[0])
    shape = decoder.resolved.tree.shape
    said = capsys.readouterr().err
    assert f"{NO_FILES}; so the tree has {shape.nodes} nodes" in said
    assert said.endswith(f"{NO_FILES_HELP}\n")
    assert measured == []


def test_damaged_rates_are_an_error(cache, measured, loaded, pair):
    resolved = loaded()
    (resolved.head.folder / "acceptance.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"acceptance\.json does not say"):
        fit_tree(resolved, pair[0])


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_a_fitted_decoder_says_what_another_says(cache, measured, spec, head, pair, name):
    fitted = Decoder.from_spec(spec(head=head, tree={"name": name, "size": "auto"}), target=pair[0])
    other = Decoder.from_spec(spec(), target=pair[0])
    expected = other.generate(PROMPT, max_new_tokens=24)
    assert fitted.generate(PROMPT, max_new_tokens=24).tokens == expected.tokens
    assert fitted.resolved.tree.shape != other.resolved.tree.shape


def test_a_watched_decoder_has_the_tree_of_others(
    cache, measured, spec, head, pair, monkeypatch, loaded
):
    wanted = fit_tree(loaded(), pair[0]).tree.shape
    monkeypatch.setattr("eagle.decoding.trace.load_target", lambda *given: pair[0])
    monkeypatch.setattr("eagle.decoding.trace.resolve_for", lambda *given: loaded())
    decoder = Trace().decoder(spec(head=head, tree=AUTO))
    assert decoder.resolved.tree.shape == wanted
    assert len(measured) == 1


def test_the_account_tells_what_is_lacking_and_measures_nothing(cache, measured, loaded, pair):
    resolved = loaded()
    key = cost_key(resolved, pair[0].config, pair[0].dtype, pair[0].device)
    assert recall(key) is None
    unknown = account(resolved, recall(key))
    assert (unknown.rates, unknown.costs, unknown.fit) == (RATES, None, None)
    fitted = fit_tree(resolved, pair[0])
    known = account(resolved, recall(key))
    assert known.fit.chosen.nodes == fitted.tree.shape.nodes
    assert len(measured) == 1


def test_costs_go_by_the_settings_of_the_head_and_not_by_its_folder(loaded, head, pair, tmp_path):
    def key(**settings):
        resolved = loaded(head=head | settings)
        return cost_key(resolved, pair[0].config, pair[0].dtype, pair[0].device)

    elsewhere = shutil.copytree(head["weights"], tmp_path / "elsewhere")
    assert key(weights=str(elsewhere)) == key()
    assert key(lm_head="exact") != key()


def test_costs_of_a_head_that_is_cut_are_not_those_of_a_whole_one(loaded, pair):
    def key(**target):
        resolved = loaded()
        spec = resolved.spec
        own = TargetSpec(model=spec.target.model, dtype=spec.target.dtype, **target)
        resolved = replace(resolved, spec=spec.model_copy(update={"target": own}))
        return cost_key(resolved, pair[0].config, pair[0].dtype, pair[0].device)

    ways = [{"tp_plan": "auto", "cut_draft": cut} for cut in ("auto", True, False)]
    keys = [str(key(**way)) for way in (*ways, {})]
    assert len(set(keys)) == 4
    assert str(key(cut_draft=False)) == keys[-1], "one process cuts nothing"


class Fitting:
    """A chain of two that may be of another size; `answer` is what its `fit` does."""

    def __init__(self, answer):
        self._tree = CHAIN.build(CHAIN.config(depth=2), BuildContext())
        self._answer = answer

    def __getattr__(self, name):
        return getattr(self._tree, name)

    def fit(self, budget):
        return self._answer(budget)


def fit_of(builder):
    return Fit(builder, Option(3, 2, 2.0, 10.0, {}), ())


def test_a_builder_of_ones_own_is_asked_with_rates_and_costs(cache, measured, loaded, pair):
    asked = []
    wanted = loaded(tree={"name": "chain", "depth": 3}).tree

    def answer(budget):
        asked.append(budget)
        return fit_of(wanted)

    fitted = fit_tree(replace(loaded(), tree=Fitting(answer)), pair[0])
    assert fitted.tree is wanted
    (budget,) = asked
    assert isinstance(budget, Budget)
    assert budget.rates == RATES
    assert budget.costs.verify(4) == 11.0


def test_a_builder_may_keep_its_own_size(cache, measured, loaded, pair):
    resolved = replace(loaded(), tree=Fitting(lambda budget: None))
    assert fit_tree(resolved, pair[0]) is resolved


def fails(budget):
    raise ZeroDivisionError("no reason")


def refuses(budget):
    raise SpecError("such a tree cannot be")


def test_a_builder_that_raises_is_named(cache, measured, loaded, pair):
    resolved = replace(loaded(), tree=Fitting(fails))
    with pytest.raises(
        PluginError, match=r"tree builder 'static' .*fit\(\) raised ZeroDivisionError: no reason"
    ):
        fit_tree(resolved, pair[0])
    with pytest.raises(SpecError, match="such a tree cannot be"):
        fit_tree(replace(resolved, tree=Fitting(refuses)), pair[0])


def test_a_component_that_raises_while_it_is_measured_is_named(cache, loaded, pair, monkeypatch):
    resolved = loaded()

    def extract(self, last, hidden_states):
        raise ZeroDivisionError("no features")

    monkeypatch.setattr(type(resolved.features), "extract", extract)
    with pytest.raises(PluginError, match=r"feature extractor 'last-hidden'.*no features"):
        fit_tree(resolved, pair[0])


def test_a_builder_that_changes_its_laws_is_refused(cache, measured, loaded, pair):
    drawn = loaded(tree={"name": "chain", "sampling": "without-replacement"}).tree
    tree = Fitting(lambda budget: fit_of(drawn))
    tree.laws = frozenset({Law.TOP_K})
    with pytest.raises(PluginError, match=r"'static'.*draws siblings by without-replacement, whi"):
        fit_tree(replace(loaded(), tree=tree), pair[0])


def test_a_builder_that_returns_no_fit_is_refused(cache, measured, loaded, pair):
    resolved = replace(loaded(), tree=Fitting(lambda budget: 7))
    with pytest.raises(PluginError, match=r"'static'.*fit\(\) returned a int; it should return an"):
        fit_tree(resolved, pair[0])


# --- trees that follow the number of slots --------------------------------------------------------

BY_SLOTS = {
    "name": "static",
    "size": "by-slots",
    "sampling": "shared-noise",
    "branching": [2, 1],
}


def test_a_lone_request_waits_for_no_measuring_and_several_do_once(
    cache, measured, spec, head, pair, capsys
):
    made = spec(head=head, tree=BY_SLOTS, runtime={"max_batch": 4})
    decoder = Decoder.from_spec(made, target=pair[0])
    decoder.generate(PROMPT, max_new_tokens=3)
    assert measured == []
    assert capsys.readouterr().err == ""
    decoder.generate([PROMPT] * 3, max_new_tokens=3)
    assert len(measured) == len(list((cache / "costs").iterdir())) == 2
    assert decoder.resolved.tree.learned == {2, 4}
    assert capsys.readouterr().err.startswith("Measuring what cycles over up to 4 slots cost")

    again = Decoder.from_spec(made, target=pair[0])
    again.generate([PROMPT] * 3, max_new_tokens=3)
    assert len(measured) == 2
    assert capsys.readouterr().err == ""


def test_a_head_that_was_never_measured_keeps_its_tree(cache, measured, spec, pair):
    decoder = Decoder.from_spec(spec(tree=BY_SLOTS), target=pair[0])
    decoder.generate([PROMPT] * 3, max_new_tokens=3)
    assert measured == []
    assert decoder.resolved.tree.shape.nodes == 5


def test_where_memory_is_short_fewer_slots_are_measured(
    cache, measured, spec, head, pair, monkeypatch, caplog
):
    def short(resolved, target, tell, counts):
        if max(counts) > 4:
            raise torch.OutOfMemoryError("no room")
        return several(resolved, target, tell, counts)

    several = choosing.measure_slots
    monkeypatch.setattr("eagle.sizing.choosing.measure_slots", short)
    made = spec(head=head, tree=BY_SLOTS, runtime={"max_batch": 16})
    decoder = Decoder.from_spec(made, target=pair[0])
    decoder.generate([PROMPT] * 9, max_new_tokens=3)
    assert decoder.resolved.tree.learned == {2, 4}
    assert len(list((cache / "costs").iterdir())) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "want of memory" in line] == [
        f"what cycles over {count} slots cost is not measured for want of memory"
        for count in (16, 8)
    ]


@pytest.mark.parametrize("paged", [False, True])
def test_cycles_over_several_slots_are_timed_by_running_them(
    paged, cache, loaded, pair, monkeypatch
):
    monkeypatch.setattr(Auto, "paged", paged)
    resolved = loaded(tree=BY_SLOTS)
    told = []
    one = measure_costs(resolved, pair[0], told.append)
    found = measure_slots(resolved, pair[0], told.append, [2, 4])
    assert told[-2:] == ["cycles over 4 slots", "cycles over 2 slots"]
    assert set(found) == {2, 4}
    four = found[4]
    assert one.plain is not None
    assert four.plain is not None
    assert four.verify.largest == 16
    assert one.undrafted == one.plain

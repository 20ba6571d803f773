"""A leaderboard: who takes part, what is kept between runs, who is ahead, what its page says."""

from __future__ import annotations

import pytest

from eagle import Decoder, SamplingParams
from eagle.bench.entries import enter, everybody
from eagle.bench.leaderboard import run_leaderboard, shipped_prompts
from eagle.bench.leaderboard_page import leaderboard_page, write_page
from eagle.bench.serving import PLAIN, Server
from eagle.bench.standings import Competitor, Race, Section, read_sections, write_sections
from eagle.errors import DataError, EagleError
from eagle.plugin import Registry, default_registry
from eagle.spec import DEFAULT_STRATEGIES, load_spec, shipped_specs

PARAMS = SamplingParams(max_new_tokens=8, ignore_eos=True)
DOMAINS = {"chat": [[5, 6, 7], [9]], "code": [[10, 11], [40, 41, 42]]}


def section(**points):
    """One with specs whose speed-ups at batch 1 and at batch 4 are given."""
    made = Section("tiny, float32, a CPU", "2 prompts", "0", "eagle bench leaderboard", "python 3")
    for name, (one, four) in points.items():
        made.enter(name, Competitor({}, lossless=name != "lossy", nodes=6, what="a, b, c"))
        for batch, ratio in ((1, one), (4, four)):
            made.add(Race(name, "chat", 0.0, batch, (ratio,), 2, 10, 4, 1.0, 2))
    return made


@pytest.fixture
def decoders(spec, pair):
    plain = spec(head={"name": "none"}, tree={"name": "none"})
    return {
        PLAIN: Decoder.from_spec(plain, target=pair[0]),
        "tree": Decoder.from_spec(spec(), target=pair[0]),
    }


@pytest.fixture
def run(monkeypatch):
    """Run a leaderboard of token ids, and return how often each decoder served."""
    monkeypatch.setattr(
        "eagle.bench.leaderboard.encode", lambda prompt, *args, **more: prompt, raising=True
    )

    def call(into, decoders, **more):
        turns = []
        original = Server.serve

        def serve(self, work, params):
            turns.append(next(n for n, d in decoders.items() if d is self.decoder))
            return original(self, work, params)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Server, "serve", serve)
            specs = more.pop("specs", {name: one.spec for name, one in decoders.items()})
            run_leaderboard(into, decoders, DOMAINS, PARAMS, specs=specs, temperatures=(0, 1),
                            batches=(1, 2), **more)  # fmt: skip
        return turns

    return call


def test_every_cell_is_run_beside_plain_and_no_cell_twice(decoders, run, spec, pair):
    found = Section("a", "b", "c", "d", "e")
    run(found, decoders)
    assert found.modes == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert found.domains == ["chat", "code"]
    for mode in found.modes:
        tree, plain = (found.standing(name, *mode) for name in ("tree", PLAIN))
        assert plain.speedup.median == plain.tau == 1
        assert tree.tau > 1.5
        assert tree.same == ("4 of 4" if mode[0] == 0 else "")
    assert [len(race.ratios) for race in found.races if race.batch == 1] == [2] * 8
    assert run(found, decoders) == [], "all was run already"
    before = list(found.races)
    chain = {"chain": Decoder.from_spec(spec(tree={"name": "chain", "depth": 2}), target=pair[0])}
    assert set(run(found, decoders | chain)) == {"chain", PLAIN}
    assert [race for race in found.races if race.spec == "tree"] == [
        race for race in before if race.spec == "tree"
    ]
    decoders["tree"] = Decoder.from_spec(spec(tree={"name": "chain", "depth": 1}), target=pair[0])
    assert "tree" in run(found, decoders), "what goes by that name now is another"


def test_a_head_that_is_widened_again_goes_by_the_spec_that_was_asked_for(
    decoders, run, spec, pair
):
    asked = {name: decoder.spec for name, decoder in decoders.items()}
    found = Section("a", "b", "c", "d", "e")
    run(found, decoders, specs=asked)
    head = {"name": "eagle", "lm_head": "exact", **asked["tree"].head.settings}
    decoders["tree"] = Decoder.from_spec(spec(head=head), target=pair[0])
    assert run(found, decoders, specs=asked) == []
    assert "tree" in run(found, decoders), "else it is another one"


def test_an_interrupted_run_goes_on_where_it_was(decoders, run, tmp_path):
    path, found = tmp_path / "a.json", Section("a", "b", "c", "d", "e")
    kept = []

    def keep():
        write_sections([found], path)
        kept.append(len(found.races))
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(found, decoders, keep=keep)
    (again,) = read_sections(path)
    assert again == found
    run(again, decoders, keep=lambda: kept.append(0))
    assert len(kept) == 8


def test_who_fails_is_named_with_the_reason_and_the_others_go_on(decoders, run, monkeypatch):
    original, bad = Server.serve, decoders["tree"]

    def serve(self, work, params):
        if self.decoder is bad:
            raise EagleError("/somewhere/else/head lacks a weight; give another one")
        return original(self, work, params)

    monkeypatch.setattr(Server, "serve", serve)
    found = Section("a", "b", "c", "d", "e")
    run(found, decoders)
    assert found.failed == {"tree": "head lacks a weight; give another one"}
    assert {race.spec for race in found.races} == {PLAIN}
    page = leaderboard_page([found], ["a.png"])
    assert "| tree | head lacks a weight; give another one |" in page


def test_the_line_ahead_is_of_those_whom_nobody_beats_at_both():
    found = section(
        plain=(1, 1),
        quick=(2, 0.9),
        broad=(1.4, 1.3),
        beaten=(1.3, 1.3),
        lossy=(9, 9),
        same=(2, 0.9),
    )
    assert found.ahead(0.0) == {"quick": (2, 0.9), "broad": (1.4, 1.3), "same": (2, 0.9)}


def test_figures_of_other_conditions_are_replaced_and_of_other_machines_kept():
    mine, old = section(plain=(1, 1)), section(plain=(1, 1), tree=(2, 2))
    other = Section("tiny, float32, a GPU", "2 prompts", "0", "eagle", "python 3")
    sections = [other, old]
    assert mine.within(sections) is old
    old.inputs = "others"
    assert mine.within(sections) is mine
    assert sections == [other, mine]
    assert Section("new", "", "", "", "").within(sections) is sections[2]


def test_a_damaged_file_of_figures_is_refused(tmp_path):
    path = tmp_path / "a.json"
    assert read_sections(path) == []
    for text in ("{", "[]", '{"format": 0}', '{"format": 1, "sections": [{}]}'):
        path.write_text(text)
        with pytest.raises(DataError, match="begin with --fresh"):
            read_sections(path)


def test_the_page_shows_everybody_in_order_and_its_picture_is_whole(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    found = section(plain=(1, 1), slow=(0.8, 0.5), broad=(1.4, 1.3), lossy=(9, 9))
    page, picture = write_page([found], tmp_path / "board.md")
    text = page.read_text()
    first = text.split("### Temperature 0, batch 1")[1].split("Over plain by domain")[0]
    rows = [line.split(" | ")[0].strip("| ") for line in first.splitlines() if "a, b, c" in line]
    assert rows == ["lossy (not lossless)", "broad", "plain", "slow"]
    assert "![Speed-up with one request at a time and with many](board-1.png)" in text
    assert "    eagle bench leaderboard" in text
    drawn = imread(picture)[..., :3]
    assert drawn.min() < 0.2 < 0.9 < drawn.max()
    assert drawn[:, [0, -1]].min() == 1.0, "nothing is cut off at the sides"


def test_everybody_takes_part_unless_a_shipped_spec_stands_for_it():
    names = everybody(default_registry())
    assert set(shipped_specs()) - {"plain"} <= set(names)
    assert "typical" in names
    used = {load_spec(name).tree.name for name in shipped_specs()} | set(
        DEFAULT_STRATEGIES.values()
    )
    assert not (used | {"plain", "none"}) & set(names) - set(shipped_specs())
    assert "plain" not in names
    assert len(set(names)) == len(names)


def test_a_registered_strategy_takes_its_place_in_the_default_spec():
    (chain, rule, unknown) = enter(["chain", "typical", "nobody"], [], default_registry())
    assert chain.spec.name == "chain"
    assert (rule.spec.name, rule.spec.acceptance.name, rule.spec.tree.name) == (
        "typical", "typical", "static",
    )  # fmt: skip
    assert unknown.spec is None
    assert "no spec is named 'nobody'" in unknown.problem
    assert enter(["typical"], [], Registry())[0].spec is None


def test_prompts_of_every_kind_come_with_the_library():
    prompts = shipped_prompts()
    assert next(iter(prompts)) == "chat"
    assert len(prompts) == 7
    assert all(6 <= len(some) <= 8 for some in prompts.values())
    assert len({text for some in prompts.values() for text in some}) == sum(
        map(len, prompts.values())
    )

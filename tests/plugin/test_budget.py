"""What trees are worth and cost, against brute force and by hand."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagle.errors import CheckpointError
from eagle.plugin.budget import RATES_FILE, Costs, Curve, Fit, Option, RankRates, steady

numbers = st.lists(st.floats(0, 100), max_size=12)


@given(numbers)
def test_steady_values_never_fall_and_keep_their_mean(values):
    found = steady(values)
    assert len(found) == len(values)
    assert all(a <= b for a, b in pairwise(found))
    assert math.isclose(sum(found), sum(values), abs_tol=1e-6)


@given(numbers)
def test_steady_values_are_left_alone(values):
    assert steady(sorted(values)) == pytest.approx(sorted(values))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_steady_is_the_nearest_of_all_rising_sequences(values):
    @cache
    def rising(count, least):
        """Return all sequences of quarters from a least one up that never fall."""
        if not count:
            return [()]
        return [(q, *rest) for q in range(least, 17) for rest in rising(count - 1, q)]

    def miss(sequence):
        return sum((a - b) ** 2 for a, b in zip(sequence, values, strict=True))

    best = min(miss([q / 4 for q in sequence]) for sequence in rising(len(values), 0))
    assert miss(steady(values)) <= best + 1e-9


def test_a_curve_is_straight_between_its_points_and_beyond():
    curve = Curve.of([(10, 4.0), (2, 2.0)])
    assert [curve(size) for size in (1, 2, 6, 10, 14)] == [2.0, 2.0, 3.0, 4.0, 5.0]
    assert curve.largest == 10
    assert Curve.of([(3, 7.0)])(100) == 7.0


def test_a_curve_takes_what_falls_for_noise():
    assert Curve.of([(1, 5.0), (4, 3.0), (8, 9.0)]).points == ((1, 4.0), (4, 4.0), (8, 9.0))


@pytest.mark.parametrize(
    "points",
    [(), ((1, 2.0), (1, 3.0)), ((1, 3.0), (2, 2.0)), ((0, 1.0),), ((1, 0.0),), ((1, math.nan),)],
)
def test_an_impossible_curve_is_refused(points):
    with pytest.raises(ValidationError):
        Curve(points=points)


def costs(verify=((1, 10.0), (61, 40.0)), level=((1, 1.0), (10, 2.0))):
    return Costs(verify=Curve.of(verify), begin=1.5, level=Curve.of(level), rest=0.5, context=512)


def test_a_cycle_costs_the_sum_of_its_parts():
    assert costs().cycle(61, [1, 10]) == 40 + 1.5 + (1 + 2) + 0.5
    assert costs().cycle(1, []) == 10 + 1.5 + 0.5


def test_costs_survive_being_written():
    assert Costs.model_validate_json(costs().model_dump_json()) == costs()


def rates(*levels):
    return RankRates(levels=levels, positions=100, source="some prompts")


@st.composite
def some_rates(draw, most_ranks=3):
    """Levels of falling probabilities, zeros among them."""
    levels = []
    for _ in range(draw(st.integers(1, 3))):
        weights = draw(st.lists(st.integers(0, 6), min_size=0, max_size=most_ranks))
        total = sum(weights) + draw(st.integers(1, 6))
        levels.append(tuple(sorted((weight / total for weight in weights), reverse=True)))
    return rates(*levels)


def all_trees(found, count, depth):
    """Return all sets of so many possible paths, each with its beginnings, by adding one leaf."""
    trees = {frozenset[tuple[int, ...]]()}
    for _ in range(count):
        grown = set()
        for tree in trees:
            for path in [(), *tree]:
                if len(path) < min(depth, len(found.levels)):
                    ranks = range(len(found.levels[len(path)]))
                    grown |= {tree | {(*path, rank)} for rank in ranks} - {tree}
        trees = {tree for tree in grown if value(found, tree) > -1}
    return trees


def value(found, tree):
    """Return the accepted nodes that a tree is expected to have; every path has to be possible."""
    worth = [math.prod(found.levels[d][rank] for d, rank in enumerate(path)) for path in tree]
    return sum(worth) if all(worth) else -math.inf


@given(some_rates(), st.integers(1, 4), st.integers(1, 3))
def test_no_tree_beats_the_likeliest_paths(found, count, depth):
    likeliest = found.likeliest(count, depth)
    paths = [path for path, _ in likeliest]
    assert len(set(paths)) == len(paths) <= count
    assert all(len(path) <= depth for path in paths)
    assert all(len(path) == 1 or path[:-1] in paths[:place] for place, path in enumerate(paths))
    assert [p for _, p in likeliest] == sorted((p for _, p in likeliest), reverse=True)
    assert value(found, paths) == pytest.approx(sum(p for _, p in likeliest))
    # Where fewer are possible, all of them are found.
    trees = all_trees(found, len(paths), depth)
    assert value(found, paths) == pytest.approx(max(value(found, tree) for tree in trees))
    assert len(paths) == count or not all_trees(found, len(paths) + 1, depth)


def test_nothing_is_likeliest_where_no_level_is_asked_for():
    assert rates((0.5,)).likeliest(3, 0) == []


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "at least 1 item"),
        (((0.5, 0.6),), r"levels\[0\]: a lower rank should never be less likely"),
        (((0.5,), (0.8, 0.4)), r"levels\[1\]: the ranks' probabilities exceed 1 together"),
        (((1.5,),), "less than or equal to 1"),
        (((math.nan,),), "equal to"),
    ],
)
def test_impossible_rates_are_refused(levels, message):
    with pytest.raises(ValidationError, match=message):
        rates(*levels)


def test_rates_that_rounding_made_exceed_one_are_taken():
    assert len(rates(tuple(round(1 / 6, 5) for _ in range(6))).likeliest(6, 1)) == 6


def test_rates_are_written_and_read(tmp_path):
    written = rates((0.75, 0.125), (0.5,))
    assert RankRates.read(tmp_path) is None
    assert written.write(tmp_path) == tmp_path / RATES_FILE
    assert RankRates.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [RATES_FILE]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Invalid JSON"),
        ('{"levels": [[0.5]], "positions"', "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"levels": [[0.5]], "source": ""}', "positions: Field required"),
        ('{"levels": [["x"]], "positions": 1, "source": ""}', "levels.0.0: Input should be a"),
        ('{"levels": [[0.1, 0.5]], "positions": 1, "source": ""}', r"levels\[0\]: a lower rank"),
        ('{"levels": [[0.1]], "positions": 1, "source": "", "x": 1}', "x: Extra inputs"),
    ],
)
def test_a_damaged_file_of_rates_is_named_with_what_is_wrong(tmp_path, text, problem):
    (tmp_path / RATES_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{RATES_FILE} does not say.*{problem}") as caught:
        RankRates.read(tmp_path)
    assert "eagle bench ranks" in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_rates_that_cannot_be_read_or_written_are_named(tmp_path):
    (tmp_path / RATES_FILE).mkdir()
    with pytest.raises(CheckpointError, match=f"{RATES_FILE} cannot be read: "):
        RankRates.read(tmp_path)
    with pytest.raises(CheckpointError, match=f"{RATES_FILE} cannot be written: "):
        rates((0.5,)).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RATES_FILE], "nothing is left behind"
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        rates((0.5,)).write(tmp_path / "nowhere")


def option(nodes, depth, tokens, milliseconds):
    return Option(nodes, depth, tokens, milliseconds, {"nodes": nodes})


def test_the_fit_has_the_most_tokens_per_second_and_shows_the_best_of_each_depth():
    options = [
        option(2, 1, 1.5, 10.0), option(4, 1, 1.8, 10.0), option(9, 1, 2.0, 20.0),
        option(6, 2, 2.4, 12.0), option(8, 2, 2.0, 12.0),
        option(7, 3, 2.5, 20.0),
    ]  # fmt: skip
    found = Fit.best(options, lambda chosen: chosen.settings["nodes"])
    assert found is not None
    assert found.chosen == options[3]
    assert found.builder == 6
    assert found.options == (options[1], options[3], options[5])
    assert found.chosen.rate == pytest.approx(200)


def test_of_equally_good_sizes_the_smaller_is_taken():
    options = [option(9, 1, 2.0, 10.0), option(5, 1, 2.0, 10.0), option(3, 2, 2.0, 10.0)]
    found = Fit.best(options, lambda chosen: chosen)
    assert (found.chosen.nodes, [o.nodes for o in found.options]) == (3, [5, 3])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 9))))
def test_no_option_is_better_than_the_fit(sizes):
    options = [option(nodes, depth, float(tokens), 2.0) for nodes, depth, tokens in sizes]
    found = Fit.best(options, lambda chosen: chosen)
    if not options:
        assert found is None
        return
    assert found.builder is found.chosen
    assert found.chosen.rate == max(o.rate for o in options)
    assert [o.depth for o in found.options] == sorted({o.depth for o in options})

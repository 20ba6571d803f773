"""Trees are simulated from ranks: what they accept, by set and along the text."""

import numpy as np
import pytest

from eagle.errors import DataError
from eagle.train.evaluation import simulate
from eagle.train.evaluation.answers import Answer
from eagle.train.evaluation.rates import Ranked
from eagle.train.evaluation.replay import Replay

CHAIN = frozenset({(0,), (0, 0)})
FORK = frozenset({(0,), (1,)})


def ranked(*answers):
    """Answers to prompts of so many tokens, by their ranks at two levels."""
    return Ranked(
        "some",
        tuple(Answer((1,) * prompt, (2,) * len(ranks[0])) for prompt, ranks in answers),
        tuple(Replay(np.array(ranks)) for _, ranks in answers),
    )


def test_tau_is_of_each_tree_and_set():
    right, second = [[0] * 7, [0] * 7], [[1] * 7, [1] * 7]
    found = simulate(
        {"a": ranked((5, right)), "b": ranked((5, second))}, {"chain": CHAIN, "fork": FORK}
    )
    assert found.tau == {"chain": {"a": 3.0, "b": 1.0}, "fork": {"a": 2.0, "b": 2.0}}
    assert found.tree == "chain"


def test_places_count_positions_from_the_beginning_of_the_prompt():
    """Right at first and wrong from the sixtieth token of an answer on."""
    ranks = np.zeros((2, 120), dtype=np.int64)
    ranks[:, 60:] = 3
    (found,) = simulate({"a": ranked((1080, ranks))}, {"chain": CHAIN}).places["a"]
    # The twenty positions before 1,100 are too few, and the last three have no two tokens behind.
    assert (found.start, found.end, found.positions) == (1100, 1200, 97)
    assert found.tau == pytest.approx((40 * 3 + 57) / 97)
    assert found.error == pytest.approx(np.std([3] * 40 + [1] * 57) / np.sqrt(97))


def test_answers_of_one_token_have_nothing_to_simulate():
    with pytest.raises(DataError, match="no answer of two tokens"):
        simulate({"a": ranked((5, [[0], [0]]))}, {"chain": CHAIN})

from __future__ import annotations

import pytest
import torch

from eagle.kernels.racing import clocks, race, race_at

WEIGHTS = torch.tensor([0.5, 0.0, 0.25, 0.2, 0.05])
MANY = 8_000


def made(many=MANY, position=7, vocab=5):
    keys = torch.randint(-(2**63), 2**63 - 1, (many,), generator=torch.Generator().manual_seed(1))
    return clocks(keys, torch.full((many,), position), torch.arange(vocab))


def test_the_winner_is_a_draw_in_proportion_to_the_weights():
    winners = race(WEIGHTS.expand(MANY, -1), made())[0][:, 0]
    found = winners.bincount(minlength=5) / MANY
    deviation = (WEIGHTS * (1 - WEIGHTS) / MANY).sqrt()
    assert found[1] == 0
    assert ((found - WEIGHTS).abs() <= 4 * deviation).all()


def test_the_first_few_are_drawn_without_replacement():
    first, second = race(WEIGHTS.expand(MANY, -1), made(), 2)[0].unbind(1)
    for token in (0, 2):
        rest = second[first == token].bincount(minlength=5) / (first == token).sum()
        left = WEIGHTS.clone()
        left[token] = 0
        assert torch.allclose(rest, left / left.sum(), atol=0.035)
    places, paces = race(WEIGHTS.expand(4, -1), made(4), 5)
    assert (places.sort(1).values == torch.arange(5)).all()
    assert (paces[:, -1] == 0).all()


def test_positions_tokens_and_keys_are_independent_of_each_other():
    here, there = made(position=7), made(position=8)
    columns = torch.cat((here, there), 1)
    assert (columns.mean(0) - 1).abs().max() < 0.06
    correlation = columns.T.corrcoef() - torch.eye(10)
    assert correlation.abs().max() < 0.06
    consecutive = clocks(torch.arange(MANY), torch.zeros(MANY, dtype=torch.int64), torch.arange(2))
    assert torch.stack((consecutive[1:, 0], consecutive[:-1, 0])).corrcoef()[0, 1].abs() < 0.06


def test_clocks_are_a_function_of_key_position_and_token_alone():
    keys, positions = torch.tensor([5, -9]), torch.tensor([3, 2**40])
    whole = clocks(keys, positions, torch.arange(100))
    assert torch.equal(clocks(keys[1:], positions[1:], torch.tensor([17, 4])), whole[1:, [17, 4]])
    assert (whole > 0).all()
    assert whole.isfinite().all()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("nodes", [(), (4,)])
def test_the_operator_is_the_race(count, nodes):
    weights = torch.rand(2, *nodes, 9, generator=torch.Generator().manual_seed(0))
    keys, positions = torch.tensor([5, -7]), torch.tensor([3, 11])
    tokens = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23])
    own = clocks(keys, positions, tokens)
    places, paces = race(weights, own[:, None] if nodes else own, count)
    found = race_at(weights, keys, positions, tokens, count)
    assert torch.equal(found[0], places)
    assert torch.equal(found[1], paces)
    torch.library.opcheck(race_at, (weights, keys, positions, tokens, count))

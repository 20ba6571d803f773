"""Oracles follow the same script in every slot, whatever the last bit of a probability is there."""

import torch

from eagle.testing.oracle import EnumeratingDraws


def drawn(certain, weights):
    """Return what a lane draws with a bernoulli and a categorical, and scripts of the rest."""
    draws = EnumeratingDraws(torch.full((1, 2), -1))
    came = draws.bernoulli(torch.tensor([certain], dtype=torch.float64))
    chosen = draws.categorical(torch.tensor([weights], dtype=torch.float64))
    chance = round(float(draws.probability), 12)
    return bool(came), int(chosen), torch.cat(draws.forks).tolist(), chance


def test_the_last_bit_of_a_probability_does_not_move_a_script():
    wanted = (True, 0, [[1, -1]], 0.25)
    assert drawn(1.0, [0.25, 0.75]) == wanted
    assert drawn(1.0 - 2**-53, [0.25, 0.75]) == wanted
    assert drawn(1.0, [0.25, 0.75, 1e-17]) == wanted
    assert drawn(1.0, [1e-20, 3e-20]) == wanted  # of a residual that is small as a whole


def test_what_is_rare_is_an_outcome_all_the_same():
    came, chosen, forks, _ = drawn(1e-9, [1.0, 1e-9])
    assert (came, chosen) == (False, 0)
    assert [1, -1] in forks
    assert [0, 1] in forks

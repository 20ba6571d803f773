"""The reference of the kernels against PyTorch's own attention."""

import pytest
import torch

from eagle.cache.store import Step
from eagle.plugin.roles import BuildContext
from eagle_plugins.attention.naive import naive_attention
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig


@pytest.mark.parametrize("groups", [1, 3])
def test_it_agrees_with_sdpa_on_random_masks(groups):
    generator = torch.Generator().manual_seed(groups)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    lengths = torch.tensor([0, 1, 9])
    tail = torch.rand(3, 4, 6, generator=generator) < 0.5
    tail[:, :, 2] = True  # SDPA gives NaN to an entry that sees nothing
    query, keys, values = randn(3, 2 * groups, 4, 8), randn(3, 2, 17, 8), randn(3, 2, 17, 8)
    sdpa = Sdpa(SdpaConfig(), BuildContext())
    plan = sdpa.plan(Step(lengths, lengths, lengths, tail, 17), 2 * groups, 2, torch.float64)
    expected = sdpa.attend(query, keys, values, plan, 0.3)
    found = naive_attention(query, keys, values, lengths, tail, 0.3)
    torch.testing.assert_close(found, expected)

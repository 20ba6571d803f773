"""Noise on input features; its randomness follows from the seed and the step alone."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.train.spec import NoiseSpec

__all__ = ["Noise"]


class Noise:
    """Uniform noise (arXiv 2401.15077, section 3.2: U(-0.1, 0.1)).

    Args:
        spec: how much.
        seed: of the run.
        device: where the features are.
    """

    def __init__(self, spec: NoiseSpec, seed: int, device: torch.device) -> None:
        self._spec, self._seed = spec, seed
        self._generator = torch.Generator(device)

    def __call__(
        self, features: Tensor, step: int, documents: Tensor, part: int = 0, parts: int = 1
    ) -> Tensor:
        """Return features with noise added.

        Args:
            features: ``[B, T, F]``.
            step: of the run; each has noise of its own.
            documents: int64 ``[B, T]``, which text of its row each entry belongs to.
            part: which B rows these are of all rows of the step.
            parts: how many times B rows the step has.
        """
        amplitude = self._spec.uniform
        if amplitude == 0:
            return features
        # A generator seeded anew for each step has no state that a checkpoint would have to keep.
        self._generator.manual_seed((self._seed * 1_000_003 + step) % 2**63)
        # The whole step's, so that it does not depend on how its rows are shared out.
        noise = features.new_empty(parts, *features.shape)
        noise = noise.uniform_(-amplitude, amplitude, generator=self._generator)[part]
        if self._spec.scaling == "length":
            lengths = (documents[:, :, None] == documents[:, None]).sum(-1, keepdim=True)
            noise = noise * (512 / lengths).to(noise.dtype)
        return features + noise

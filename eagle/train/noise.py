"""Noise on input features; its randomness follows from the seed and the step alone."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.train.config import NoiseSpec

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

    def __call__(self, features: Tensor, step: int) -> Tensor:
        """Return the features ``[B, T, F]`` with the noise of a step added."""
        amplitude = self._spec.uniform
        if self._spec.scaling == "length":
            amplitude *= 512 / features.shape[1]
        if amplitude == 0:
            return features
        # A generator seeded anew for each step has no state that a checkpoint would have to keep.
        self._generator.manual_seed((self._seed * 1_000_003 + step) % 2**63)
        noise = torch.empty_like(features).uniform_(
            -amplitude, amplitude, generator=self._generator
        )
        return features + noise

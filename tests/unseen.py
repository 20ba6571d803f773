"""Packed passes of which the host knows nothing, attended by plain operators: the kernel's twin."""

from dataclasses import dataclass

import torch

from eagle.cache.store import BLOCK
from eagle.plugin import Step
from eagle_plugins.attention.auto import Auto


@dataclass(frozen=True)
class UnseenPlan:
    """What all layers of one packed pass attend by."""

    step: Step

    def attend(self, query, keys, values, scaling):
        """Return what `eagle_plugins.attention.prompt_kernel.launch` does, of texts in blocks."""
        segments, table = self.step.segments, self.step.table
        place = table.long()[..., None] * BLOCK + torch.arange(BLOCK)
        place = place.flatten(1)[segments.owners]  # [T, M * BLOCK]
        row = torch.arange(place.shape[1])
        real = torch.arange(query.shape[2]) < segments.offsets[-1]
        seen = (row <= self.step.rows[0][:, None]) & real[:, None]
        groups = query.shape[1] // keys.shape[1]
        key, value = (
            store[0][:, place].masked_fill(~seen[..., None], 0).repeat_interleave(groups, 0)
            for store in (keys, values)
        )
        scores = torch.einsum("htd,htrd->htr", query[0], key) * scaling
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
        return torch.einsum("htr,htrd->thd", weights, value)[None]


def unseen(monkeypatch, sizes):
    """Let prompts be read in packed passes over so many tokens, as if they were captured."""
    plan, attend = Auto.plan, Auto.attend

    def planned(self, step, *args):
        if step.segments is not None and step.segments.pieces is None:
            return UnseenPlan(step)
        return plan(self, step, *args)

    def attended(self, query, keys, values, plan, scaling, *scores):
        if isinstance(plan, UnseenPlan):
            return plan.attend(query, keys, values, scaling)
        return attend(self, query, keys, values, plan, scaling, *scores)

    monkeypatch.setattr(Auto, "paged", True)
    monkeypatch.setattr(Auto, "packs_unseen", lambda self, dtype, head_dim: True)
    monkeypatch.setattr(Auto, "plan", planned)
    monkeypatch.setattr(Auto, "attend", attended)
    monkeypatch.setattr("eagle.runtime.packing.SIZES", sizes)
    monkeypatch.setattr("eagle.runtime.warming.SIZES", sizes)

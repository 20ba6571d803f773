"""The training loop: batch, features, noise, head, loss, step; knows no files and no plug-ins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from eagle.errors import NumericalError
from eagle.roles import FeatureExtractor, TrainableHead
from eagle.target import Target
from eagle.train.config import TrainSpec
from eagle.train.features import Features
from eagle.train.journal import Journal
from eagle.train.losses import Loss, LossValue
from eagle.train.noise import Noise
from eagle.train.packing import Batch, Packer, visibility
from eagle.train.schedule import learning_rate
from eagle.train.state import RunState

__all__ = ["Trainer", "compiles"]


def compiles(spec: TrainSpec, target: Target) -> bool:
    """Return whether a run compiles its passes, which then need fixed shapes."""
    return target.device.type == "cuda" if spec.compile == "auto" else spec.compile


class Trainer:
    """One run in memory: the head, its optimizer, and how far it is.

    Args:
        spec: the training spec.
        target: the frozen target, with transformers' own attention in place.
        extractor: the feature extractor.
        head: the head, its weights made or loaded.
        packer: the batches.
        steps: of the whole run.
    """

    def __init__(
        self,
        spec: TrainSpec,
        target: Target,
        extractor: FeatureExtractor,
        head: TrainableHead,
        packer: Packer,
        steps: int,
    ) -> None:
        self.spec, self.target, self.head, self.packer = spec, target, head, packer
        self.steps, self.step, self.seconds = steps, 0, 0.0
        cuda = target.device.type == "cuda"
        compiled = compiles(spec, target)
        self._features = Features(target, extractor, compiled=compiled)
        self._noise = Noise(spec.noise, spec.seed, target.device)
        self._loss = Loss(spec.loss, target.logits, head.logits, compiled=compiled)
        self._states: Callable[..., Tensor] = head.train_states
        if compiled:
            self._states = torch.compile(head.train_states, dynamic=False)
        module = head.module.float().requires_grad_(True).train()
        self._parameters = list(module.parameters())
        matrices = [p for p in self._parameters if p.dim() > 1]
        others = [p for p in self._parameters if p.dim() <= 1]
        optimizer = spec.optimizer
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optimizer.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=optimizer.lr,
            betas=optimizer.betas,
            fused=cuda,
        )

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the head runs."""
        half = self.target.dtype != torch.float32
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=half)

    @property
    def progress(self) -> float:
        """How much of the run the steps so far are, from 0 to 1; see `OptimizerSpec.seconds`."""
        limit = self.spec.optimizer.seconds
        return min(1.0, max(self.step / self.steps, self.seconds / limit if limit else 0.0))

    @property
    def finished(self) -> bool:
        """Whether the run is at its end."""
        return self.progress >= 1

    def state(self) -> RunState:
        """Return what has to be kept to go on from here."""
        return RunState(
            step=self.step,
            seconds=self.seconds,
            head=self.head.module.state_dict(),
            optimizer=self._optimizer.state_dict(),
        )

    def restore(self, state: RunState) -> None:
        """Go on from a state."""
        self.step, self.seconds = state.step, state.seconds
        self.head.module.load_state_dict(state.head)
        self._optimizer.load_state_dict(state.optimizer)

    def run(self, until: int, journal: Journal, deadline: float) -> bool:
        """Train up to a step, or to the end of the run.

        Args:
            until: the step to reach.
            journal: is told the figures of every `log_every` steps.
            deadline: `time.monotonic` at which to stop before that.

        Returns:
            Whether there was time for it.

        Raises:
            NumericalError: the loss is not a number; weights of this call are to be thrown away.
        """
        figures: list[Tensor] = []
        tokens, answered, since = 0, 0, time.monotonic()
        late = False
        while self.step < until and not self.finished and not late:
            batch = self.packer(self.step)
            figures.append(self._step(batch.to(self.target.device)).detached())
            tokens, answered = tokens + batch.tokens.numel(), answered + batch.count
            self.step += 1
            late = time.monotonic() >= deadline
            if self.step % self.spec.log_every == 0 or self.step == until or late:
                # Reading the figures waits for the device: once in a while, not at every step.
                total, feature, token, accuracy = torch.stack(figures).mean(0).tolist()
                now = time.monotonic()
                elapsed, since = now - since, now
                self.seconds += elapsed
                if not math.isfinite(total):
                    raise NumericalError(
                        f"the loss became {total} between steps {self.step - len(figures)} and "
                        f"{self.step}; the last checkpoint is from before. Lower optimizer.lr, or "
                        "tighten optimizer.clip_norm"
                    )
                journal.write(
                    "train",
                    self.step,
                    loss=total,
                    feature=feature,
                    token=token,
                    accuracy=accuracy,
                    lr=self._optimizer.param_groups[0]["lr"],
                    answered=answered / tokens,
                    tokens_per_second=tokens / elapsed,
                    seconds=self.seconds,
                )
                journal.show(self.step, total, accuracy, tokens / elapsed)
                figures, tokens, answered = [], 0, 0
        return not late

    def _step(self, batch: Batch) -> LossValue:
        for group in self._optimizer.param_groups:
            # Of the step's end, so that the warm-up does not begin with a step of size zero.
            group["lr"] = learning_rate(self.spec.optimizer, self.progress + 1 / self.steps)
        self._optimizer.zero_grad(set_to_none=True)
        visible = visibility(batch.documents)
        true, last = self._features(batch.tokens, batch.positions, visible)
        with self.precision():
            ahead = batch.tokens.roll(-1, dims=1)
            noisy = self._noise(true, self.step)
            states = self._states(ahead, noisy, batch.positions, visible)
            value = self._loss(states, true, last, batch.entries, batch.weights, batch.count)
        value.total.backward()  # type: ignore[no-untyped-call]
        if self.spec.optimizer.clip_value:
            torch.nn.utils.clip_grad_value_(self._parameters, self.spec.optimizer.clip_value)
        if self.spec.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.spec.optimizer.clip_norm)
        self._optimizer.step()
        return value

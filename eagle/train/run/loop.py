"""The training loop: batch, features, noise, head, loss, step; knows no files and no plug-ins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eagle.errors import NumericalError
from eagle.plugin import (
    FeatureExtractor,
    OwnVocabulary,
    TrainableHead,
    TrainingLoss,
    TrainsLevels,
)
from eagle.target import Target
from eagle.train.data import Batch, Packer, visibility
from eagle.train.features import Features
from eagle.train.objective import (
    Average,
    Levels,
    Loss,
    LossValue,
    Noise,
    learning_rate,
    level_weights,
    unrolled_states,
)
from eagle.train.run.journal import Journal
from eagle.train.run.processes import Processes
from eagle.train.run.sharding import Sharded, weights_of
from eagle.train.run.state import RunState
from eagle.train.spec import TrainSpec

__all__ = ["Trainer", "compiles"]


def compiles(spec: TrainSpec, target: Target) -> bool:
    """Return whether a run compiles its passes, which then need fixed shapes."""
    pays = target.device.type == "cuda" and not target.spread
    return pays if spec.compile == "auto" else spec.compile


class Trainer:
    """One run in memory: the head, its optimizer, and how far it is.

    Args:
        spec: the training spec.
        target: the frozen target, with transformers' own attention in place.
        extractor: the feature extractor.
        head: the head, its weights made or loaded.
        objective: the loss.
        packer: the batches.
        steps: of the whole run.
        kept: features that were computed before, by number of the batch, instead of the target's
            pass; see `eagle.train.run.shards.Shards`.
        processes: those that train together, by default this one alone.
    """

    def __init__(
        self,
        spec: TrainSpec,
        target: Target,
        extractor: FeatureExtractor,
        head: TrainableHead,
        objective: TrainingLoss,
        packer: Packer,
        steps: int,
        kept: Callable[[int], tuple[Tensor, Tensor]] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.spec, self.target, self.head, self.packer = spec, target, head, packer
        self.steps, self.step, self.seconds = steps, 0, 0.0
        self.processes = processes or Processes()
        # A step's rows are so many batches; processes take turns at them.
        self._parts = spec.accumulate * self.processes.shares
        cuda = target.device.type == "cuda"
        compiled = compiles(spec, target)
        self._features = Features(target, extractor, compiled=compiled)
        self._kept = kept
        self._noise = Noise(spec.noise, spec.seed, target.device)
        # A head of one pass for all levels feeds nothing back.
        self._at_once = isinstance(head, TrainsLevels)
        self._loss = Loss(
            spec.loss,
            objective,
            target.logits,
            head.logits,
            _as_is if self._at_once else head.feed_back,
            level_logits=head.level_logits if isinstance(head, TrainsLevels) else None,
            draft_vocab=head.draft_vocab if isinstance(head, OwnVocabulary) else None,
            compiled=compiled,
        )
        states: Any = head.train_levels if isinstance(head, TrainsLevels) else head.train_states
        if compiled:
            states = torch.compile(states, dynamic=False)
        head.module.float().requires_grad_(True).train()
        self._weights = weights_of(head, states, self.processes, sharding=spec.sharding)
        self._states, self._parameters = self._weights.states, self._weights.parameters
        matrices = [p for p in self._parameters if p.dim() > 1]
        others = [p for p in self._parameters if p.dim() <= 1]
        self._ordered = [*matrices, *others]  # as the optimizer's state numbers them
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
        self._average = Average(self._parameters, optimizer.ema) if optimizer.ema else None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have the weights in the head that are measured and saved; all processes must do so."""
        with ExitStack() as stack:
            if self._average:
                stack.enter_context(self._average.applied())
            stack.enter_context(self._weights.whole())
            yield

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the head runs."""
        half = self.target.dtype != torch.float32
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=half)

    @property
    def sharded(self) -> bool:
        """Whether this process has a part of the head alone."""
        return isinstance(self._weights, Sharded)

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
        """Return what has to be kept to go on from here; all processes must call it."""
        gather = self._weights.gather
        return RunState(
            step=self.step,
            seconds=self.seconds,
            head=gather(self.head.module.state_dict()),
            optimizer=gather(self._optimizer.state_dict()),
            average=gather(self._average.values if self._average else []),
        )

    def restore(self, state: RunState) -> None:
        """Go on from a state, which holds whole tensors in every process.

        The optimizer's settings are the spec's, also where they were others before.

        Raises:
            CheckpointError: it is of another head.
        """
        head = self.head.module.state_dict()
        averaged = self._average.values if self._average else []
        state.check_fit(head, self._ordered, averaged)
        self.step, self.seconds = state.step, state.seconds
        cut = self._weights.cut
        named = dict(self.head.module.named_parameters())
        self.head.module.load_state_dict(
            {name: cut(v, named[name]) if name in named else v for name, v in state.head.items()}
        )
        moments = {
            number: {key: cut(value, self._ordered[number]) for key, value in entry.items()}
            for number, entry in state.optimizer["state"].items()
        }
        own = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**own, "state": moments})
        if self._average:
            pairs = zip(state.average, self._parameters, strict=bool(state.average))
            self._average.restore([cut(value, parameter) for value, parameter in pairs])

    def run(self, until: int, journal: Journal | None, deadline: float) -> bool:
        """Train up to a step, or to the end of the run.

        Args:
            until: the step to reach.
            journal: is told the figures of every `log_every` steps; None in the processes that
                do not write.
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
            batches = [self.packer(number) for number in self._numbers()]
            figures.append(self._step(batches))
            tokens += sum(batch.tokens.numel() for batch in batches)
            answered += sum(batch.count for batch in batches)
            self.step += 1
            due = self.step % self.spec.log_every == 0 or self.step == until
            # Several processes ask whether it is late only when they talk to each other anyway.
            late = time.monotonic() >= deadline and (due or self.processes.count == 1)
            if due or late:
                # Reading the figures waits for the device: once in a while, not at every step.
                (means,) = self.processes.sum([torch.stack(figures).mean(0)])
                total, *parts = means.tolist()
                feature, token, accuracy = np.reshape(parts, (3, -1)).tolist()
                now = time.monotonic()
                elapsed, late = self._agree(now - since, late)
                since = now
                self.seconds += elapsed
                if not math.isfinite(total):
                    raise NumericalError(
                        f"the loss became {total} between steps {self.step - len(figures)} and "
                        f"{self.step}; the last checkpoint is from before. Lower optimizer.lr, or "
                        "tighten optimizer.clip_norm"
                    )
                if journal:
                    rate = tokens * self.processes.shares / elapsed
                    journal.write(
                        "train",
                        self.step,
                        loss=total,
                        feature=feature[0],
                        token=token[0],
                        accuracy=accuracy[0],
                        accuracy_by_level=accuracy,
                        lr=self._optimizer.param_groups[0]["lr"],
                        answered=answered / tokens,
                        tokens_per_step=tokens * self.processes.shares // len(figures),
                        tokens_per_second=rate,
                        seconds=self.seconds,
                    )
                    journal.show(self.step, total, accuracy[0], rate)
                figures, tokens, answered = [], 0, 0
        return not late

    def _agree(self, elapsed: float, late: bool) -> tuple[float, bool]:
        """Return what the clock of the first process says."""
        if self.processes.count == 1:
            return elapsed, late
        clock = torch.tensor([elapsed, late], dtype=torch.float64, device=self.target.device)
        agreed = self.processes.firsts(clock)
        return float(agreed[0]), bool(agreed[1])

    def _numbers(self) -> list[int]:
        """Return the numbers of this process's batches of the next step."""
        begin = self.step * self._parts
        return [
            begin + part for part in range(self.processes.share, self._parts, self.processes.shares)
        ]

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """Take a step and return its figures, this process's part of them; see `LossValue`."""
        for group in self._optimizer.param_groups:
            # Of the step's end, so that the warm-up does not begin with a step of size zero.
            group["lr"] = learning_rate(self.spec.optimizer, self.progress + 1 / self.steps)
        self._optimizer.zero_grad(set_to_none=True)
        moved = [batch.to(self.target.device) for batch in batches]
        weights = [
            level_weights(batch.weights, batch.positions, batch.entries, self.spec.loss.levels)
            for batch in moved
        ]
        (counts,) = self.processes.sum([torch.stack([one.sum(1) for one in weights]).sum(0)])
        figures = []
        for number, batch, weight in zip(self._numbers(), moved, weights, strict=True):
            value = self._loss_of(number, batch, weight, counts)
            value.total.backward()  # type: ignore[no-untyped-call]
            figures.append(value.detached())
        self._weights.reduce()
        if self.spec.optimizer.clip_value:
            torch.nn.utils.clip_grad_value_(self._parameters, self.spec.optimizer.clip_value)
        if self.spec.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.spec.optimizer.clip_norm)
        self._optimizer.step()
        if self._average:
            self._average.update(self.step)
        return torch.stack(figures).sum(0)

    def _loss_of(self, number: int, batch: Batch, weights: Tensor, counts: Tensor) -> LossValue:
        """Return the part that one batch has in the loss of the step."""
        visible = visibility(batch.documents)
        true, last = (
            self._kept(number)
            if self._kept
            else self._features(batch.tokens, batch.positions, visible)
        )
        part = number - self.step * self._parts
        noisy = self._noise(true, self.step, batch.documents, part, self._parts)
        levels, ahead = self.spec.loss.levels, batch.tokens.roll(-1, dims=1)
        given = (ahead, batch.tokens, noisy, batch.positions, visible, levels)
        if self._at_once:
            with self.precision():
                passes: Callable[..., Any] = self._states  # `train_levels`, compiled or not
                return self._loss(passes(*given), true, last, batch.entries, weights, counts)
        if self.spec.loss.through:
            with self.precision():
                unrolled = unrolled_states(self._states, self.head.feed_back, *given)
                return self._loss(unrolled, true, last, batch.entries, weights, counts)
        # In two contexts: autocast may keep the weights that it cast where there was no gradient.
        with self.precision():
            fed = Levels.fed(self._states, self.head.feed_back, *given)
        with self.precision():
            states = fed.states(self._states)
            return self._loss(states, true, last, batch.entries, weights, counts)


def _as_is(states: Tensor) -> Tensor:
    return states

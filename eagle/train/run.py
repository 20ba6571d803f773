"""One training run from a spec to a saved head: puts the parts together, keeps the files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from eagle.document import dump
from eagle.errors import CheckpointError, EagleError, SpecError
from eagle.registry import Registry, default_registry
from eagle.roles import TrainableHead
from eagle.spec import Resolved, resolve
from eagle.target import Target, load_target
from eagle.train.config import TrainSpec
from eagle.train.journal import Journal, say
from eagle.train.loop import Trainer, compiles
from eagle.train.measure import Measure, Measured
from eagle.train.packing import Packer
from eagle.train.prepare import load_corpus
from eagle.train.replay import fixed_paths
from eagle.train.state import RunState, check_identity

__all__ = ["Outcome", "train"]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        head: folder of the last head.
        best: folder of the best head by tau, the last one where nothing was measured.
        measured: figures of the last head.
        step: steps done.
        finished: whether those were all.
    """

    head: Path
    best: Path
    measured: Measured
    step: int
    finished: bool


def train(
    spec: TrainSpec,
    *,
    resume: bool = False,
    registry: Registry | None = None,
    target: Target | None = None,
) -> Outcome:
    """Train a head.

    The run's folder holds ``config.yaml``, ``log.jsonl``, ``checkpoint.pt`` (what resuming needs),
    ``head/`` (the last head) and ``best/`` (the best one).

    Args:
        spec: the training spec.
        resume: go on from the folder's checkpoint, where there is one.
        registry: where strategies are looked up, by default the installed plug-ins.
        target: the target, if it is loaded already.

    Raises:
        SpecError: the spec is wrong, its head cannot be trained, or the folder holds another run.
        DataError: the text or the prompts cannot be used.
        NumericalError: the loss is not a number; the last checkpoint is from before.
        CheckpointError: a checkpoint could not be written or read.
    """
    registry = registry or default_registry()
    parts = resolve(spec.decoder, registry)
    head = _trainable(spec, parts)
    trees = {
        _title(tree.name, tree.settings): fixed_paths(
            resolve(spec.decoder_with(tree), registry).tree, tree.name
        )
        for tree in spec.evaluation.trees
    }
    folder = Path(spec.output).expanduser()
    state = _previous(spec, folder, resume)
    # Before the target's weights: what is wrong with the text shows at once.
    corpus = load_corpus(spec, folder / "text.npz", say, target)
    target = target or load_target(spec.target)
    _check_target(spec, target)
    training, heldout = corpus.split(spec.data.heldout, spec.data.seed)
    packer = Packer(
        corpus,
        training,
        length=spec.data.length,
        batch=spec.batch,
        chunk=spec.loss.chunk if compiles(spec, target) else 1,
        seed=spec.data.seed,
    )
    steps = spec.steps or max(1, round(spec.epochs * packer.rows / spec.batch))
    if state:
        check_identity(state, spec.identity(), corpus.digest, folder / "checkpoint.pt")
    measure = Measure(spec.evaluation, target, parts.features, trees, spec.path)
    measure.gather(corpus, heldout.tolist(), folder / "answers.json", say)
    if spec.start == "checkpoint":
        head.load(target, parts.attention)
    else:
        head.initialise(target, spec.seed)
    with target.stock():
        trainer = Trainer(spec, target, parts.features, head, packer, steps)
        if state:
            trainer.restore(state)
        return _Run(spec, trainer, measure, folder, state or RunState(), corpus.digest).go()


class _Run:
    """The loop around the loop: checkpoints, evaluations, and the end."""

    def __init__(
        self,
        spec: TrainSpec,
        trainer: Trainer,
        measure: Measure,
        folder: Path,
        state: RunState,
        text: str,
    ) -> None:
        self._spec, self._trainer, self._measure, self._folder = spec, trainer, measure, folder
        self._text, self._best = text, state.best
        (folder / "config.yaml").write_text(dump(spec.model_dump(mode="json")))

    def go(self) -> Outcome:
        spec, trainer = self._spec, self._trainer
        deadline = time.monotonic() + (spec.max_seconds or float("inf"))
        measured = Measured({}, {})
        with Journal(self._folder / "log.jsonl", trainer.step, trainer.steps) as journal:
            try:
                last = trainer.finished
                if last:  # resumed at its end
                    measured = self._evaluate(journal)
                while not last:
                    on_time = trainer.run(self._next(), journal, deadline)
                    last = trainer.finished or not on_time
                    if self._due(spec.evaluation.every) or last:
                        measured = self._evaluate(journal)
                    if self._due(spec.save_every) or last:
                        self._save()
            except KeyboardInterrupt:
                self._save()
                journal.say(f"interrupted at step {trainer.step}; go on with --resume")
                raise
        head = self._folder / "head"
        best = self._folder / "best"
        return Outcome(
            head, best if best.is_dir() else head, measured, trainer.step, trainer.finished
        )

    def _next(self) -> int:
        """Return the next step at which something is due."""
        step = self._trainer.step
        spans = [self._spec.save_every, self._spec.evaluation.every]
        stops = [(step // span + 1) * span for span in spans if span]
        return min(*stops, self._trainer.steps)

    def _due(self, every: int | None) -> bool:
        return every is not None and self._trainer.step % every == 0

    def _evaluate(self, journal: Journal) -> Measured:
        trainer = self._trainer
        trainer.head.module.eval()
        with trainer.precision():
            measured = self._measure(trainer.head)
        trainer.head.module.train()
        journal.write("evaluation", trainer.step, **measured.as_dict())
        for line in measured.lines():
            journal.say(f"step {trainer.step} {line}")
        if measured.score is not None and measured.score > self._best:
            self._best = measured.score
            trainer.head.save(self._folder / "best")
        return measured

    def _save(self) -> None:
        """Keep the head, and all that is needed to go on."""
        state = self._trainer.state()
        if not all(torch.isfinite(t).all() for t in state.head.values()):
            raise CheckpointError(
                f"the head's weights are not finite at step {state.step}, so they were not saved; "
                "the last checkpoint is from before"
            )
        state.best, state.text, state.identity = self._best, self._text, self._spec.identity()
        state.save(self._folder / "checkpoint.pt")
        self._trainer.head.save(self._folder / "head")


def _trainable(spec: TrainSpec, parts: Resolved) -> TrainableHead:
    lacking = [
        name
        for name in ("initialise", "train_states", "save")
        if not callable(getattr(parts.head, name, None))
    ]
    if lacking:
        raise SpecError(
            spec.document.sentence(
                ("head",),
                f"the draft head {spec.head.name!r} cannot be trained: it has no "
                f"{', '.join(lacking)} (see eagle.roles.TrainableHead)",
            )
        )
    return parts.head  # type: ignore[return-value]


def _title(name: str, settings: dict[str, object]) -> str:
    """Return what a tree is called in figures: its name and what makes it different."""
    values = [str(value) for value in settings.values()]
    return " ".join([name, *values])


def _previous(spec: TrainSpec, folder: Path, resume: bool) -> RunState | None:
    """Return the state to go on from, after making the run's folder."""
    path = folder / "checkpoint.pt"
    if path.exists() and not resume:
        raise SpecError(
            f"{folder} holds a run already; go on with it with --resume, or give this one another "
            "folder with --set output=FOLDER"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EagleError(f"output: cannot make the folder {folder}: {error.strerror}") from error
    return RunState.load(path) if path.exists() else None


def _check_target(spec: TrainSpec, target: Target) -> None:
    if target.dtype not in (torch.float32, torch.bfloat16):
        raise SpecError("target.dtype: training needs bfloat16 or float32")
    if spec.data.length > target.capacity:
        raise SpecError(
            f"data.length: {spec.data.length} is more than the {target.capacity} tokens that the "
            f"target {target.info.name!r} takes"
        )

"""One training run from a spec to a saved head: puts the parts together, keeps the files."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle.decoding import resolve_for
from eagle.errors import CheckpointError, EagleError, SpecError
from eagle.host import write_text
from eagle.plugin import (
    BuildContext,
    ChoosesVocabulary,
    NamesLayers,
    Registry,
    Role,
    TrainableHead,
    TrainsLevels,
    default_registry,
)
from eagle.spec import Document, Resolved, built, dump, follow_layers, resolve
from eagle.target import Target, load_target, loading
from eagle.train.data import Packer, check_text, load_corpus
from eagle.train.evaluation import Measure, Measured, fixed_paths
from eagle.train.run.board import require_tensorboard
from eagle.train.run.checks import check_head, check_target, memory_explained
from eagle.train.run.journal import Journal, read_log, say
from eagle.train.run.loop import Trainer, compiles
from eagle.train.run.processes import Processes
from eagle.train.run.shards import kept_features
from eagle.train.run.state import RunState, check_identity
from eagle.train.spec import TrainSpec

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
        main: whether this process is the one that measured and wrote, of several.
    """

    head: Path
    best: Path
    measured: Measured
    step: int
    finished: bool
    main: bool = True


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
    processes = Processes.join(spec.target)
    tell = say if processes.main else _say_nothing
    registry = registry or default_registry()
    # A fresh head has no checkpoint whose sizes could be compared with the target's.
    fresh = spec.start == "fresh"
    parts = _fresh(spec, registry, target) if fresh else resolve_for(spec.decoder, registry, target)
    head = _trainable(spec, parts)
    _, settings, objective = built(
        spec.document,
        registry,
        Role.LOSS,
        spec.loss.strategy,
        BuildContext(folder=spec.document.folder),
    )
    check_target(spec, target, parts.features, processes.shares)
    if spec.tensorboard is True:
        require_tensorboard()
    trees = {
        _title(tree.name, tree.settings): fixed_paths(
            resolve(spec.decoder_with(tree), registry).tree, tree.name
        )
        for tree in spec.evaluation.trees
    }
    folder = Path(spec.output).expanduser()
    state = _previous(spec, folder, resume)
    # Before the target's weights: what is wrong with the text shows at once.
    with processes.main_first():
        corpus = load_corpus(
            spec,
            folder / "text.npz",
            tell,
            target,
            resumed=state is not None,
            trusted=not processes.main,
        )
    identity = spec.identity(processes.shares, settings.model_dump(mode="json"))
    if state:
        check_identity(state, identity, corpus.digest, folder / "checkpoint.pt")
    check_text(spec, corpus, processes.shares)
    target = target or load_target(spec.target, spec.document.folder)
    training, heldout = corpus.split(spec.data.heldout, spec.data.seed)
    packer = Packer(
        corpus,
        training,
        length=spec.data.length,
        batch=spec.batch,
        chunk=spec.loss.chunk if compiles(spec, target) else 1,
        seed=spec.data.seed,
        repack=spec.data.repacked,
    )
    steps = spec.steps or max(1, round(spec.epochs * packer.rows / spec.rows(processes.shares)))
    measure = Measure(spec.evaluation, target, parts.features, trees, spec.path)
    if fresh:
        if isinstance(head, ChoosesVocabulary):
            head.choose_vocabulary(corpus.counts(training, target.info.vocab_size))
        head.initialise(target, spec.seed)
    else:
        head.load(target, parts.attention)
    depths = [len(path) for paths in trees.values() for path in paths]
    deepest = max([spec.loss.levels, spec.evaluation.chain, *depths])
    check_head(spec, head, parts.features, objective, target, deepest)
    if processes.measures:
        measure.gather(corpus, heldout.tolist(), folder / "answers.json", tell, keep=processes.main)
    with memory_explained(spec), target.stock():
        kept = None
        if spec.data.features == "cached":
            with processes.main_first():
                kept = kept_features(spec, target, parts.features, packer, corpus.digest, tell)
        trainer = Trainer(
            spec, target, parts.features, head, objective, packer, steps, kept, processes
        )
        if state:
            trainer.restore(state)
        return _Run(
            spec, trainer, measure, folder, state or RunState(), corpus.digest, identity
        ).go()


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
        identity: dict[str, Any],
    ) -> None:
        self._identity = identity
        self._spec, self._trainer, self._measure, self._folder = spec, trainer, measure, folder
        self._text, self._best = text, state.best
        self._processes = trainer.processes
        if self._processes.main:
            write_text(folder / "config.yaml", dump(spec.model_dump(mode="json")))

    def go(self) -> Outcome:
        spec, trainer = self._spec, self._trainer
        deadline = time.monotonic() + (spec.max_seconds or float("inf"))
        measured = Measured({}, {})
        log = self._folder / "log.jsonl"
        journal = (
            Journal(log, trainer.step, trainer.steps, tensorboard=spec.tensorboard)
            if self._processes.main
            else None
        )
        with journal or nullcontext():
            try:
                last = trainer.finished
                if last:  # resumed at its end
                    measured = self._evaluate(journal, final=True)
                    self._save()  # killed behind its checkpoint, it may have left an older head
                while not last:
                    on_time = trainer.run(self._next(), journal, deadline)
                    last = trainer.finished or not on_time
                    if self._due(spec.evaluation.every) or last:
                        measured = self._evaluate(journal, final=last)
                    if self._due(spec.save_every) or last:
                        self._save()
            except KeyboardInterrupt:
                # Processes that each have a part of the head may be interrupted in different
                # steps, and then cannot put it together.
                if not trainer.sharded:
                    self._save()
                if journal:
                    journal.say(f"interrupted at step {trainer.step}; go on with --resume")
                raise
        head = self._folder / "head"
        best = self._folder / "best"
        self._processes.part()
        return Outcome(
            head,
            best if self._best >= 0 and best.is_dir() else head,  # it may be of an earlier run
            measured,
            trainer.step,
            trainer.finished,
            self._processes.main,
        )

    def _next(self) -> int:
        """Return the next step at which something is due."""
        step = self._trainer.step
        spans = [self._spec.save_every, self._spec.evaluation.every]
        stops = [(step // span + 1) * span for span in spans if span]
        return min(*stops, self._trainer.steps)

    def _due(self, every: int | None) -> bool:
        return every is not None and self._trainer.step % every == 0

    def _evaluate(self, journal: Journal | None, *, final: bool) -> Measured:
        trainer = self._trainer
        measured = Measured({}, {})
        with trainer.ready():
            if self._processes.measures:
                trainer.head.module.eval()
                with trainer.precision():
                    measured = self._measure(trainer.head, final=final)
                trainer.head.module.train()
            if journal is None:
                return measured
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
        if self._processes.main:
            if not all(torch.isfinite(t).all() for t in state.head.values()):
                raise CheckpointError(
                    f"the head's weights are not finite at step {state.step}, so they were not "
                    "saved; the last checkpoint is from before"
                )
            state.best, state.text = self._best, self._text
            state.identity = self._identity
            state.save(self._folder / "checkpoint.pt")
        with self._trainer.ready():
            if self._processes.main:
                self._trainer.head.save(self._folder / "head")


def _fresh(spec: TrainSpec, registry: Registry, target: Target | None) -> Resolved:
    """Return the parts with a head whose weights are yet to be made."""
    parts = resolve(spec.decoder, registry, BuildContext(folder=spec.document.folder, fresh=True))
    if not isinstance(parts.head, NamesLayers):
        return parts
    if target is not None:
        info = target.info
    else:
        info = loading.describe(loading.locate(spec.target, spec.document.folder))[0]
    return follow_layers(parts, info)


def _trainable(spec: TrainSpec, parts: Resolved) -> TrainableHead:
    passes = ("train_states", "feed_back")
    if isinstance(parts.head, TrainsLevels):
        passes = ("train_levels", "level_logits")
    lacking = [
        name
        for name in ("initialise", *passes, "save")
        if not callable(getattr(parts.head, name, None))
    ]
    if lacking:
        raise SpecError(
            spec.document.sentence(
                ("head",),
                f"the draft head {spec.head.name!r} cannot be trained: it has no "
                f"{', '.join(lacking)} (see eagle.plugin.TrainableHead)",
            )
        )
    return parts.head  # type: ignore[return-value]


def _say_nothing(message: str) -> None:
    """Take the place of `say` in processes that another one speaks for."""


def _title(name: str, settings: dict[str, object]) -> str:
    """Return what a tree is called in figures: its name and what makes it different."""
    values = [str(value) for value in settings.values()]
    return " ".join([name, *values])


def _check_config(path: Path) -> None:
    """Refuse to write the config of a run over a file that no run wrote: a user's own, say.

    Raises:
        SpecError: it is there.
    """
    try:
        data = Document.read(path).data if path.exists() else {}
        ours = not data or ("output" in data and dump(data) == path.read_text(encoding="utf-8"))
    except SpecError:
        ours = False
    if not ours:
        raise SpecError(
            f"{path} is there and was not written by a run, so it is not replaced; give this run "
            "another folder with --set output=FOLDER"
        )


def _previous(spec: TrainSpec, folder: Path, resume: bool) -> RunState | None:
    """Return the state to go on from, after making the run's folder."""
    path = folder / "checkpoint.pt"
    # A checkpoint may have been removed to make room, and what the run was for is still there.
    if not resume and any((folder / name).exists() for name in (path.name, "head", "best")):
        raise SpecError(
            f"{folder} holds a run already; go on with it with --resume, or give this one another "
            "folder with --set output=FOLDER"
        )
    _check_config(folder / "config.yaml")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EagleError(f"output: cannot make the folder {folder}: {error.strerror}") from error
    if not path.exists():
        return None
    state = RunState.load(path)
    read_log(folder / "log.jsonl")  # before anything is done, so that a damaged one shows at once
    return state

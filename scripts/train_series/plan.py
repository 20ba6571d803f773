"""What a plan may say: texts, trainings, and what their heads are measured on; starts nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from string import Template
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = ["Evaluation", "Plan", "Training", "load_plan", "overrides", "read_yaml"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Model):
    """A file of text that trainings read, and how it is made where it is not given.

    Attributes:
        file: its name.
        command: words of `eagle` that make it. ``$NAME`` stands for the file of a text.
        seconds: as long as the command may take; what it has written by then is used.
    """

    file: Name
    command: str
    seconds: Positive | None = None

    def words(self, files: dict[str, Path]) -> list[str]:
        """Return the command's words, with the texts' files put in."""
        names = {name: str(path) for name, path in files.items()}
        return [Template(word).substitute(names) for word in shlex.split(self.command)]


class Training(_Model):
    """One run of ``eagle train``; of `steps`, `tokens` and `seconds` it has exactly one.

    Attributes:
        name: of its folder, and in results.
        config: a shipped training config, or the path of one, from the plan's folder.
        text: which of the plan's texts it reads; without one, the config's own sources.
        set: settings of the config.
        tokens: to train on.
        steps: to take.
        seconds: of training; the learning rate follows the clock.
        rate: tokens a second that it is reckoned to see alone, to tell whether there is time.
        variant: what the table and the bars call it; runs of one variant differ by chance alone.
        series: the curve against training tokens that it is a point of.
        keep: whether its head is wanted afterwards.
    """

    name: Name
    config: str
    text: str | None = None
    set: dict[str, Any] = {}
    tokens: Count | None = None
    steps: Count | None = None
    seconds: Positive | None = None
    rate: Positive | None = None
    variant: str | None = None
    series: str | None = None
    keep: bool = False

    @model_validator(mode="after")
    def _has_one_length(self) -> Training:
        if sum(one is not None for one in (self.tokens, self.steps, self.seconds)) != 1:
            raise ValueError("should have one of tokens, steps and seconds")
        return self

    @property
    def reckoned(self) -> float:
        """Seconds that its training takes alone, as far as the plan knows."""
        if self.seconds is not None:
            return self.seconds
        return self.tokens / self.rate if self.tokens and self.rate else 0.0


class Evaluation(_Model):
    """What every head is asked by ``eagle bench ranks``.

    Attributes:
        trees: as in a spec; the first one's tau is what is drawn.
        prompts: files by kind of text, from the plan's folder.
        limit: prompts of each.
        max_new_tokens: of an answer.
        set: settings of the decoder spec.
    """

    trees: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    prompts: Annotated[dict[Name, str], Field(min_length=1)]
    limit: Count = 8
    max_new_tokens: Annotated[int, Field(ge=2)] = 128
    set: dict[str, Any] = {}


class Plan(_Model):
    """A series.

    Attributes:
        about: what it is to show.
        minutes: for everything.
        at_once: trainings side by side.
        texts: made first, in this order.
        set: settings of every training.
        runs: what matters most, or takes longest, first.
        beside: heads that are measured and not trained, by name: settings of the decoder spec.
        evaluation: what all heads are asked.
    """

    about: str
    minutes: Positive = 9.0
    at_once: Count = 4
    texts: dict[Name, Text] = {}
    set: dict[str, Any] = {}
    runs: Annotated[tuple[Training, ...], Field(min_length=1)]
    beside: dict[Name, dict[str, Any]] = {}
    evaluation: Evaluation

    @model_validator(mode="after")
    def _names_fit(self) -> Plan:
        names = [*(run.name for run in self.runs), *self.beside, *self.texts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of its runs, heads and texts are called {twice[0]!r}")
        for run in self.runs:
            if run.text is not None and run.text not in self.texts:
                known = ", ".join(self.texts) or "none"
                raise ValueError(f"{run.name}: there is no text {run.text!r}; there is {known}")
        for name, text in self.texts.items():
            try:
                text.words({known: Path(known) for known in self.texts})
            except (KeyError, ValueError) as error:
                raise ValueError(f"texts.{name}.command: {error}") from error
        return self

    def asked(self, run: Training, more: dict[str, Any]) -> str:
        """Return a digest of what decides a run's weights; *more* are settings given besides.

        Where files lie may differ between machines; what they hold may not.
        """
        told = run.model_dump(exclude={"config", "variant", "series", "keep", "rate"})
        config = Path(run.config)
        held = _text_of(config) if config.is_absolute() else run.config
        text = self.texts[run.text].model_dump() if run.text else None
        return digest(told, held, text, self.set, more)

    @property
    def measured(self) -> str:
        """A digest of what every head is asked: figures of other questions do not compare."""
        said = self.evaluation
        held = {name: _text_of(Path(file)) for name, file in said.prompts.items()}
        return digest(said.model_dump(exclude={"prompts"}), held)


def digest(*parts: Any) -> str:
    """Return a short name for some values: equal only where they are."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _text_of(path: Path) -> str:
    """Return a file's text.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: the byte {error.start} is not UTF-8 text") from error


class _Loader(yaml.SafeLoader):
    """YAML without dates, which no setting takes, and without keys that are given twice.

    It is not `eagle.spec`'s: that refuses aliases and merged keys, which a spec does not need and
    a plan is made of. And to import it takes seconds and PyTorch's memory, which this process has
    no use for: it starts those that know `eagle`, from a copy that is made later. Numbers are read
    alike, since a plan's settings end up in specs.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, of whose keys none is there twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a point and a sign in ``1.0e+3``, and takes ``1e3`` for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, label: str) -> Any:
    """Return what YAML text holds, all of which JSON can hold, too.

    Raises:
        ValueError: it is no such text; one sentence that begins with the label.
    """
    try:
        data = yaml.load(text, _Loader)
        json.dumps(data, ensure_ascii=False).encode()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{label}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{label}: has half of a surrogate pair, which is no text") from error
    except RecursionError as error:
        raise ValueError(f"{label}: is nested too deeply") from error
    except (TypeError, ValueError) as error:  # a set, say, or a number of thousands of digits
        raise ValueError(f"{label}: has a value that no setting can have: {error}") from error
    return data


def load_plan(path: Path) -> Plan:
    """Read a plan; paths in it start at its folder.

    Raises:
        ValueError: it is no plan; one sentence that says where.
        OSError: it cannot be read.
    """
    data = read_yaml(_text_of(path), str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: should be a mapping with `runs` and `evaluation`")
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = "there is no such key"
        raise ValueError(f"{path}: {key + ': ' if key else ''}{problem}") from error
    folder = path.resolve().parent
    found = plan.evaluation.model_copy(
        update={"prompts": {k: str(folder / file) for k, file in plan.evaluation.prompts.items()}}
    )
    runs = tuple(
        run.model_copy(update={"config": str(folder / run.config)})
        if Path(run.config).suffix in (".yaml", ".yml")
        else run
        for run in plan.runs
    )
    return plan.model_copy(update={"evaluation": found, "runs": runs})


def overrides(*settings: dict[str, Any]) -> list[str]:
    """Return ``--set`` words of settings, later ones in place of earlier ones."""
    merged: dict[str, Any] = {}
    for one in settings:
        merged |= one
    return [
        word for key, value in merged.items() for word in ("--set", f"{key}={json.dumps(value)}")
    ]

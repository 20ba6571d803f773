"""YAML files that users write: reads them, applies overrides, explains what is wrong with them.

It knows keys, lines and pydantic models; it does not know what any of them means.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from eagle.errors import SpecError, clipped
from eagle.plugin import KeyPath, explain

__all__ = ["Document", "dump", "read_value"]

Model = TypeVar("Model", bound=BaseModel)

_LONGEST = 1 << 18  # characters of a file: parsing takes a second for each half of that
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_DEEPEST = 64  # keys and indices on the way to a value


@dataclass(frozen=True)
class Document:
    """The content of one YAML file, with the place of every key.

    Attributes:
        label: what messages call it: the file's path, a shipped spec's name, or "spec".
        data: its mapping.
        places: where each key path was written, ``file:line`` or the override.
        folder: folder of the file; relative paths in it start here.
        text: the file's text, without overrides.
    """

    label: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    text: str = ""

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a YAML file.

        Raises:
            SpecError: it cannot be read, is not YAML, or is no mapping.
        """
        try:
            # No more than is parsed: what is given may be a device, or end nowhere.
            with path.open(encoding="utf-8") as file:
                text = file.read(_LONGEST + 1)
        except UnicodeDecodeError as error:
            raise SpecError(f"{path}: not YAML: byte {error.start} is not UTF-8 text") from error
        except OSError as error:
            raise SpecError(f"{clipped(str(path))}: cannot be read: {error.strerror}") from error
        except ValueError as error:  # a name with NUL or half a surrogate pair
            raise SpecError(f"{str(path)!a}: cannot be read: {error}") from error
        return cls.parse(text, str(path), path.parent)

    @classmethod
    def parse(cls, text: str, label: str, folder: Path | None = None) -> Document:
        """Parse YAML text; see `read`."""
        if len(text) > _LONGEST:
            raise SpecError(f"{label}: is longer than the {_LONGEST:,} characters that are read")
        places: dict[KeyPath, str] = {}
        try:
            data = _load(text, label, places)
        except yaml.YAMLError as error:
            raise SpecError(f"{label}{_line(error)}: not YAML: {_cause(error)}") from error
        except (RecursionError, ValueError) as error:
            raise SpecError(f"{label}: {_beyond(error)}") from error
        if not isinstance(data, dict):
            found = "empty" if data is None else f"a {_kind(data)}"
            raise SpecError(
                f"{label}: must be a mapping of keys to values, but the file is {found}"
            )
        return cls(label, data, places, folder or Path(), text)

    def override(self, assignments: Sequence[str], short: Mapping[str, str]) -> Document:
        """Return a copy with some keys set.

        Args:
            assignments: ``path.to.key=value`` each, the value in YAML.
            short: top-level keys whose value may be a plain string, short for ``{name: string}``,
                with the name that stands where the document gives none.

        Raises:
            SpecError: an assignment is malformed, or goes through something that is no mapping.
        """
        data: dict[Any, Any] = copy.deepcopy(self.data)
        places = dict(self.places)
        for assignment in assignments:
            path, value = _assignment(assignment)
            _descend(data, path, short, assignment)[path[-1]] = value
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]
            places[path] = f"--set {clipped(assignment)}"
        return replace(self, data=data, places=places)

    def place(self, path: KeyPath) -> str:
        """Return where a key path, or else the nearest one above or below it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        # An override may have made a mapping out of nothing: then only what is below has a place.
        below = (place for key, place in self.places.items() if path and key[: len(path)] == path)
        return next(below, self.label)

    def sentence(self, path: KeyPath, problem: str) -> str:
        """Return a problem with its place and key path in front."""
        key = clipped(".".join(map(str, path)))
        return f"{self.place(path)}: {key + ': ' if key else ''}{problem}"

    def validate(self, model: type[Model], data: Mapping[str, Any], prefix: KeyPath = ()) -> Model:
        """Make a model of (a part of) the document.

        Args:
            model: the pydantic model.
            data: the part.
            prefix: key path of that part.

        Raises:
            SpecError: one sentence, on a line of its own, for each of the first few keys that are
                wrong, and how many more there are.
        """
        try:
            # JSON mode with `strict` takes lists for tuples and strings for enums, as it must,
            # but not "3" or true for the number that was asked for.
            return model.model_validate_json(json.dumps(data, default=str), strict=True)
        except ValidationError as error:
            problems = explain(error, model, data, prefix)
            sentences = [self.sentence(prefix + path, text) for path, text in problems.items()]
            raise SpecError("\n".join(sentences)) from error
        except RecursionError as error:
            raise SpecError(self.sentence(prefix, "is nested too deeply")) from error


def dump(data: Mapping[str, Any]) -> str:
    """Return YAML text that reads back as *data*."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_value(text: str) -> Any:
    """Return one YAML value.

    Raises:
        ValueError: it is none.
    """
    try:
        return _load(text, "", {})
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {_cause(error)}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(_beyond(error)) from error
    except SpecError as error:  # a key is given twice, say
        raise ValueError(str(error).removeprefix(":1: ")) from error


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's scalars (``1e-3`` is a number, ``no`` a string) and without aliases.

    Aliases can repeat or contain themselves without end, and no spec needs them.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, refusing aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


class _Dumper(yaml.SafeDumper):
    """Quotes a string where `_Loader` would read something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _load(text: str, label: str, places: dict[KeyPath, str]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _locate(node, (), label, places)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _locate(node: yaml.Node, path: KeyPath, label: str, places: dict[KeyPath, str]) -> None:
    """Note the line of every key, make every key a string, and refuse keys given twice.

    Raises:
        SpecError: one is, or a key or a value is no text that can be written down.
        RecursionError: deeper than any spec, and than Python could go on with.
    """
    if len(path) > _DEEPEST:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key.tag = "tag:yaml.org,2002:str"
            place = f"{label}:{key.start_mark.line + 1}"
            if isinstance(key, yaml.ScalarNode):
                key.value = _text(key.value, place, path)
            here = (*path, str(key.value))
            if here in places:
                raise SpecError(f"{place}: {'.'.join(map(str, here))}: is given twice")
            places[here] = place
            _locate(value, here, label, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*path, index)] = f"{label}:{value.start_mark.line + 1}"
            _locate(value, (*path, index), label, places)
    else:
        node.value = _text(node.value, f"{label}:{node.start_mark.line + 1}", path)


def _text(said: str, place: str, path: KeyPath) -> str:
    """Return a key or a value with surrogate pairs, which JSON writes, as the characters they are.

    Raises:
        SpecError: it has half of one.
    """
    if not _HALF.search(said):
        return said
    try:
        return said.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        key = ".".join(map(str, path))
        raise SpecError(f"{place}: {key + ': ' if key else ''}{_no_text(said)}") from None


def _no_text(said: str) -> str:
    return f"{clipped(ascii(said))} is not text that UTF-8 can hold: it has half a surrogate pair"


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _cause(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "problem", None), getattr(error, "context", None)]
    return ", ".join(part for part in parts if part) or " ".join(str(error).split())


def _beyond(error: Exception) -> str:
    """Return what is wrong with YAML that Python cannot hold."""
    deep = isinstance(error, RecursionError)
    return "is nested too deeply" if deep else f"has a value that cannot be read: {error}"


def _assignment(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    path, shown = tuple(key.strip().split(".")), clipped(text)
    if _HALF.search(text):  # what was no UTF-8 on the command line, Python has so
        raise SpecError(f"--set: {_no_text(text)}")
    if not equals or not all(path):
        raise SpecError(f"--set {shown}: must look like path.to.key=value")
    try:
        if len(path) > _DEEPEST:
            raise RecursionError
        return path, _load(value, "--set", {})
    except yaml.YAMLError as error:
        raise SpecError(f"--set {shown}: the value is not YAML: {_cause(error)}") from error
    except (RecursionError, ValueError) as error:
        raise SpecError(f"--set {shown}: {_beyond(error)}") from error
    except SpecError as error:  # a key is given twice, say
        raise SpecError(f"--set {shown}: {str(error).removeprefix('--set:1: ')}") from error


def _descend(
    data: dict[str | int, Any], path: KeyPath, short: Mapping[str, str], assignment: str
) -> dict[str | int, Any]:
    """Return the mapping that holds the last key of a path, creating what is missing."""
    here: dict[str | int, Any] = data
    for depth, key in enumerate(path[:-1]):
        if depth == 0 and key in short:
            name = here.get(key)
            if name is None or isinstance(name, str):
                here[key] = {"name": name or short[str(key)]}
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            above = ".".join(map(str, path[: depth + 1]))
            raise SpecError(
                f"--set {clipped(assignment)}: {above} is {clipped(repr(here))}, a {_kind(here)} "
                "without keys; set it as a whole"
            )
    return here


def _kind(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "list"}
    return kinds.get(type(value), type(value).__name__)

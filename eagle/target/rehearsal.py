"""Runs a Jinja template for what it costs, and stops it at a bound; knows no tokenizer.

Transformers' sandbox keeps a template from files and attributes, not from loops in loops or from a
string times a thousand million. Here its loops are counted against the clock, and whatever
multiplies is looked at before it does.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import Any

__all__ = ["UnboundedError", "rehearse"]

_SECONDS = 10.0
_FACTOR = 1000  # times the text allowed, that a replacement may make where it replaces all
_BITS = 10_000  # of a number
_WIDTH = re.compile(r"\d{7}")  # in a format


class UnboundedError(Exception):
    """A template goes on beyond its bounds; the message follows on "the chat template"."""


def rehearse(source: str, values: Mapping[str, Any], most: int) -> None:
    """Run a template; what it raises by itself is left to the run that counts.

    Args:
        source: the template.
        values: what it is given.
        most: characters that it may make.

    Raises:
        UnboundedError: it makes more, or takes longer than ten seconds.
    """
    template = _compiled(source)
    environment, size = template.environment, 0
    environment.begin(most)
    try:
        for piece in template.generate(**values):
            size += len(piece)
            environment.check(size)
    except UnboundedError:
        raise
    except Exception:
        return


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    from jinja2 import nodes, visitor
    from transformers.utils import chat_template_utils

    class Counting(visitor.NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as Jinja names it
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(self._call("tick", [])))
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            return self._call("joined", node.nodes)

        def _call(self, name: str, given: list[nodes.Expr]) -> nodes.Call:
            return nodes.Call(nodes.EnvironmentAttribute(name), given, [], None, None)

    # The environment alone: compiling a template there works out the products of constants.
    environment = chat_template_utils._compile_jinja_template("").environment.overlay()
    environment.__class__ = type("Bounded", (_Bounds, type(environment)), {})
    environment.filters = {
        name: environment.bounded(name, call) for name, call in environment.filters.items()
    }
    tree = Counting().visit(environment.parse(source))
    return environment.from_string(tree.set_environment(environment))


class _Bounds:
    """Put in front of a sandboxed environment."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    binop_table: dict[str, Callable[[Any, Any], Any]]
    _run = threading.local()

    def begin(self, most: int) -> None:
        self._run.most, self._run.end = most, time.monotonic() + _SECONDS

    def tick(self) -> None:
        """Refuse to go on where time is up."""
        if time.monotonic() > self._run.end:
            raise UnboundedError(f"takes longer than {_SECONDS:g} seconds")

    def check(self, size: int, factor: int = 1) -> None:
        """Refuse so much text, and to go on where time is up."""
        self.tick()
        if size > self._run.most * factor:
            raise UnboundedError(f"makes more than {self._run.most:,} characters of these messages")

    def joined(self, *parts: Any) -> str:
        """Do what ``~`` does."""
        return self.concat(str(part) for part in parts)

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a macro or a block."""
        texts = list(parts)
        self.check(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, as the sandbox does."""
        # The sandbox wraps the methods that format.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):
            self._look(function.__name__, (owner, *args), kwargs)
        result = super().call(context, function, *args, **kwargs)  # type: ignore[misc]
        self.check(_length(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out a product, a power, a sum or a format."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if numbers and operator in ("*", "**"):
            times = right if operator == "**" else 1
            self.check(left.bit_length() * max(times, 1) > _BITS and self._run.most + 1)
        elif operator == "*":
            self.check(_length(left, number=True) * _length(right, number=True))
        elif operator == "+":
            self.check(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            self._look("format", (left, right), {})
        return self.binop_table[operator](left, right)

    def bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that looks at what it is given first."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._look(name, args, kwargs)
            result = function(*args, **kwargs)
            self.check(_length(result))
            return result

        return call

    def _look(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        if name == "join":
            lists = [each for each in given if isinstance(each, (list, tuple))]
            pieces = [len(str(piece)) for each in lists for piece in each]
            between = max((len(each) for each in given if isinstance(each, str)), default=0)
            self.check(sum(pieces) + len(pieces) * between)
        elif name == "replace":
            size = 1
            for each in given:
                size *= max(_length(each), 1)
            self.check(size, _FACTOR)
        else:  # widths: a sandbox's own values are no plain numbers
            self.check(max((each for each in given if type(each) is int), default=0))
            texts = [each for each in given if isinstance(each, str)]
            if name in ("format", "format_map") and any(map(_WIDTH.search, texts)):
                self.check(self._run.most + 1)


def _length(value: Any, *, number: bool = False) -> int:
    if isinstance(value, int):
        return value if number else 0
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0

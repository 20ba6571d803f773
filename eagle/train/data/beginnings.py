"""Every beginning of a conversation as its chat template renders it, from one run of the template.

A template is a program, so nothing holds for all of them. One that goes through the messages in
order, and has not looked ahead by the time it takes the next, has done by then all that it does on
the messages before; what is left is what stands behind its loop. That part is put at the loop's
start as well, and the messages are watched while the template runs. What looks ahead, or has
another form, is left to whoever asks: to render each beginning by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

__all__ = ["Beginning", "beginnings"]

Beginning = tuple[int, str]
"""How many characters it has in common with the whole, and what follows on them."""

_ASIDE, _BACK, _WALK, _AHEAD = (f"eagle_{name}" for name in ("aside", "back", "walk", "ahead"))
_BACKWARD = ("index", "index0", "first", "previtem", "depth", "depth0", "cycle", "changed")
# What may stand behind the loop: it decides and says, and leaves everything as it was.
_HARMLESS = frozenset(
    {"Output", "TemplateData", "If", "Name", "Const", "Compare", "Operand", "And", "Or", "Not"}
    | {"Test", "Getattr", "Getitem", "Add", "Concat", "CondExpr", "Filter", "Call", "Neg"}
)
_NAMED = frozenset({"trim", "length", "defined", "undefined", "none", "true", "false", "string"})


def beginnings(
    source: str, values: Mapping[str, Any], whole: str, wanted: Iterable[int]
) -> dict[int, Beginning]:
    """Return what a template makes of the first messages of a conversation, where it can be told.

    Args:
        source: the template.
        values: what it is given, ``messages`` among it.
        whole: what it makes of them; nothing here bounds it, so that was seen to end.
        wanted: how many messages, for each beginning that is asked for.
    """
    try:
        template = _instrumented(source)
        if template is None:
            return {}
        run = _Run(values["messages"], wanted)
        calls = {_ASIDE: run.aside, _BACK: run.back, _WALK: run.walk, _AHEAD: run.ahead}
        for piece in template.generate(**{**values, **calls, "messages": _Watched(run, 0)}):
            run.take(piece)
    except Exception:  # anybody's code, which is given something that is no list
        return {}
    # A test like `is sequence` swallows what a watched list raises.
    return {} if run.looked or "".join(run.said) != whole else run.found


class _AheadError(Exception):
    """The template looks at what a beginning would not have."""


class _Run:
    """One run: how far the template has read, and what it has said by then."""

    def __init__(self, messages: Sequence[Any], wanted: Iterable[int]) -> None:
        self.messages, self.wanted = messages, frozenset(wanted)
        self.said: list[str] = []
        self.found: dict[int, Beginning] = {}
        self.looked = False
        self.count: int | None = None
        """Messages that there are, as what stands behind the loop sees it."""
        self._known = self._least = self._here = self._size = 0
        self._walks = False
        self._aside: list[str] | None = None

    def take(self, piece: str) -> None:
        """Take a piece of the text."""
        if self._aside is not None:
            self._aside.append(piece)
        else:
            self.said.append(piece)
            self._size += len(piece)

    def walk(self, messages: Any) -> Iterator[Any]:
        """Yield what the loop goes through."""
        if type(messages) is not _Watched or self._walks:
            self.ahead()
        # What had been looked at before is the same only for beginnings that have it.
        self._walks, self._least = True, self._known
        for place in range(messages._start, len(self.messages)):
            self._here, self._known = place, max(self._known, place + 1)
            yield self.messages[place]
        self.count = len(self.messages)

    def aside(self) -> bool:
        """Begin what stands behind the loop, if it is wanted at this message."""
        if self._here not in self.wanted or self._here < self._least:
            return False
        self.count, self._aside = self._here, []
        return True

    def back(self) -> None:
        """End what stands behind the loop."""
        text = "".join(self._aside or ())
        text.encode()  # what UTF-8 cannot hold is refused where each is rendered by itself
        self.found[self._here] = (self._size, text)
        self.count = self._aside = None

    def see(self, place: int) -> None:
        """Allow a look at a message that was seen, and before the loop at any that is there."""
        if place >= self._known:
            if self._walks or place >= len(self.messages):
                self.ahead()
            self._known = place + 1

    def ahead(self, *_: Any) -> NoReturn:
        """Refuse to say what is ahead."""
        self.looked = True
        raise _AheadError


class _Watched:
    """The messages from one on; no list, so that nothing is learnt of it that is not seen here."""

    __slots__ = ("_run", "_start")

    def __init__(self, run: _Run, start: int) -> None:
        self._run, self._start = run, start

    def __getitem__(self, which: Any) -> Any:
        run = self._run
        if run.count is not None:
            return run.messages[self._start : run.count][which]
        if isinstance(which, slice):
            start, rest = which.start or 0, (which.stop, which.step)
            if type(start) is int and start >= 0 and rest == (None, None):
                return _Watched(run, self._start + start)
        elif type(which) is int and which >= 0:
            run.see(self._start + which)
            return run.messages[self._start + which]
        return run.ahead()

    def __bool__(self) -> bool:
        if self._run.count is None:
            self._run.see(self._start)
            return True
        return self._start < self._run.count

    def __len__(self) -> int:
        if self._run.count is None:
            self._run.ahead()
        return max(0, self._run.count - self._start)

    def _whatever(self, *_: Any) -> NoReturn:
        self._run.ahead()

    __iter__ = __contains__ = __eq__ = __repr__ = __getattr__ = _whatever
    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=8)
def _instrumented(source: str) -> Any:
    """Return a template that says what stands behind its loop at the loop's start; None if none."""
    from jinja2 import nodes, visitor
    from transformers.utils import chat_template_utils

    class Forward(visitor.NodeTransformer):
        """Has a loop's body ask where it looks ahead."""

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as Jinja names it
            node.iter = self.visit(node.iter)  # its body has a `loop` of its own
            return node

        def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802
            if isinstance(node.node, nodes.Name) and node.attr in _BACKWARD:
                return node
            return self.generic_visit(node)

        def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
            return call(_AHEAD) if node.name == "loop" else node

    def call(name: str, *given: nodes.Expr) -> nodes.Call:
        return nodes.Call(nodes.Name(name, "load"), list(given), [], None, None)

    def names(tree: Sequence[nodes.Node], *kinds: str) -> set[str]:
        found = (name for node in tree for name in _all(node) if isinstance(name, nodes.Name))
        return {name.name for name in found if name.ctx in kinds}

    environment = chat_template_utils._compile_jinja_template("").environment.overlay()
    tree, again = environment.parse(source), environment.parse(source)
    loops = [at for at, node in enumerate(tree.body) if isinstance(node, nodes.For)]
    if not loops:
        return None
    loop, behind = tree.body[loops[-1]], again.body[loops[-1] + 1 :]
    set_within = names([loop.target, *loop.body], "store", "param") | {"loop"}
    if (
        loop.test
        or loop.else_
        or loop.recursive
        or not all(_harmless(one) for node in behind for one in _all(node))
        or set_within & names(behind, "load")
        or any("loop" in names(one.else_, "load") for node in loop.body for one in _all(node)
               if isinstance(one, nodes.For))
    ):  # fmt: skip
        return None
    loop.iter = call(_WALK, loop.iter)
    aside = [nodes.Scope(behind), nodes.ExprStmt(call(_BACK))]
    body = [Forward().visit(node) for node in loop.body]
    loop.body = [nodes.If(call(_ASIDE), aside, [], []), *body]
    return environment.from_string(tree.set_environment(environment))


def _all(node: Any) -> list[Any]:
    from jinja2 import nodes

    return [node, *node.find_all(nodes.Node)]


def _harmless(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "Call":
        return getattr(node.node, "name", None) == "raise_exception"
    if kind in ("Filter", "Test"):
        return node.name in _NAMED
    if kind == "Operand":
        return node.op not in ("in", "notin")
    return kind in _HARMLESS

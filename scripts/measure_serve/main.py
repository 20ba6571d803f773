"""What a server costs over its engine: tokens per second at a batch, and time to the first token.

All ways answer the same prompts from one process, in rounds, each round in an order of its own: the
engine through handles; the server to clients in a process of their own, over kept connections, as
clients of OpenAI's have, and over new ones; and two servers that do less than one has to
(`measure_serve.floors`). What the server costs over the engine contains what its clients and the
sockets take: nothing is taken off, and the floors say how much any server would cost. On the
engine's side a batch is waited for, not read event by event, which would be more work.

A prompt's pass varies by more than what is looked for. So what lies outside it is told by itself:
the engine's own figure of the pass is taken off each request. What a server's threads cost the pass
is not in that, but in the whole.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from eagle.bench import PROMPTS
from eagle.decoding import Engine, Handle
from measure_serve.asking import REST, Order, Taken, apart, clients
from measure_serve.figures import First, Whole, batch_lines, first_lines
from measure_serve.many import measure_many
from measure_serve.sites import bare, frozen, greeting, serving, spent_by_servers

__all__ = ["main"]

ENGINE, KEPT, OWN, BARE, HELLO = (
    "the engine",
    "the server, a kept connection",
    "the server, a connection of its own",
    "a socket before the engine, without HTTP",
    "uvicorn and FastAPI without an engine",
)
PARAMS = {"temperature": 0, "ignore_eos": True}


class Noting(Engine):
    """An engine that knows what it was asked last."""

    last: Handle

    def submit(self, *args: Any, **how: Any) -> Handle:
        """See `eagle.Engine.submit`."""
        self.last = super().submit(*args, **how)
        return self.last


@contextmanager
def opened(engine: Engine) -> Iterator[dict[str, int]]:
    """Have all servers for the length of a block; gives their ports."""
    with ExitStack() as stack:
        port = stack.enter_context(serving(engine))
        hello = stack.enter_context(greeting(engine))
        yield {KEPT: port, OWN: port, HELLO: hello, BARE: stack.enter_context(bare(engine))}


class Ways:
    """The ways to be answered.

    Args:
        engine: what answers.
        ask: has clients ask.
        ports: of the servers.
    """

    def __init__(
        self, engine: Noting, ask: Callable[[Order], Taken], ports: dict[str, int]
    ) -> None:
        self._engine, self._ask, self._ports = engine, ask, ports

    def first(self, name: str) -> First:
        """Return what a first token took."""
        if name == ENGINE:
            time.sleep(REST)
            began = time.perf_counter()
            event = next(iter(self._engine.submit(PROMPTS[0], max_new_tokens=2, **PARAMS)))
            assert isinstance(event.text, str)  # it is made when it is looked at
            seconds = time.perf_counter() - began
        else:
            taken = self._ask(Order(self._ports[name], PROMPTS[:1], 2, keep=name != OWN))
            seconds = taken.first - taken.began
            if name == HELLO:
                return First(seconds)
        return First(seconds, self._engine.last.result().stats.time_to_first_token)

    def whole(self, batch: int, tokens: int, name: str) -> Whole:
        """Return what a batch took."""
        prompts = tuple(PROMPTS[place % len(PROMPTS)] for place in range(batch))
        spent = time.process_time()
        if name == ENGINE:
            time.sleep(REST)
            began = time.perf_counter()
            handles = [self._engine.submit(one, max_new_tokens=tokens, **PARAMS) for one in prompts]
            for handle in handles:
                assert isinstance(handle.result().text, str)
            return Whole(time.perf_counter() - began, time.process_time() - spent)
        serving = spent_by_servers()
        taken = self._ask(Order(self._ports[name], prompts, tokens))
        return Whole(
            taken.ended - taken.began,
            time.process_time() - spent,
            taken.spent,
            spent_by_servers() - serving,
        )


def turns(ways: list[str], what: Callable[[str], Any], rounds: int) -> dict[str, list[Any]]:
    """Return what each of the ways took, round by round, behind one that warms up."""
    shuffle, found = random.Random(0).shuffle, {name: list[Any]() for name in ways}
    for number in range(-1, rounds):
        order = list(ways)
        shuffle(order)
        for name in order:
            taken = what(name)
            if number >= 0:
                found[name].append(taken)
    return found


def loop_name() -> str:
    """Return whose event loop the servers run in."""
    # With a logging of its own, it would have all servers log each request.
    factory = uvicorn.Config("", log_config=None).get_loop_factory()
    return getattr(factory, "__module__", "asyncio").partition(".")[0]


def measure(ways: Ways, given: argparse.Namespace) -> None:
    """Ask by all ways, and print what that took."""
    print(f"uvicorn {uvicorn.__version__} on {loop_name()}", flush=True)
    first = turns([ENGINE, KEPT, OWN, BARE, HELLO], ways.first, given.first)
    print(*first_lines(first, ENGINE, HELLO), sep="\n", flush=True)
    whole = partial(ways.whole, given.batch, given.tokens)
    found = turns([ENGINE, OWN, BARE], whole, given.rounds)
    print(*batch_lines(found, ENGINE, given.batch * given.tokens), sep="\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="measure-serve", description=__doc__)
    parser.add_argument("spec", nargs="?", default="eagle")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--first", type=int, default=40, help="rounds for the first token")
    many = parser.add_argument_group("many clients, instead (SPEC may be 'none', with --url)")
    many.add_argument("--clients", type=int, help="who ask at a time; an engine has as many slots")
    many.add_argument("--each", type=int, default=3, help="prompts for each client")
    many.add_argument("--temperature", type=float, default=0.0)
    many.add_argument("--prompts", type=Path, metavar="FILE", help="as for `eagle bench`")
    many.add_argument("--shape", help="of a larger model, as for `eagle bench`")
    many.add_argument("--pair", metavar="FOLDER", help="with the folders `target` and `head`")
    many.add_argument("--url", action="append", default=[], help="a server on this machine, too")
    many.add_argument("--minutes", type=float, default=60.0, help="begin no round behind these")
    many.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    given = parser.parse_args()

    if given.clients:
        measure_many(given)
        return
    with (
        apart(clients) as ask,
        Noting.from_spec(given.spec, [f"runtime.max_batch={given.batch}", *given.set]) as made,
    ):
        assert isinstance(made, Noting)
        with frozen(), opened(made) as ports:
            measure(Ways(made, ask, ports), given)

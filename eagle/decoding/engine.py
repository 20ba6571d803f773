"""An engine: requests come from any thread or task at any time, and a thread of its own decodes.

It knows requests and handles; the thread is `eagle.decoding.threads`', and what is decoded when the
loop's (`eagle.decoding.loop`).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle.cycle import Processors
from eagle.decoding.decoder import Decoder
from eagle.decoding.handles import Handle
from eagle.decoding.inputs import Prompt
from eagle.decoding.threads import EngineStats, FollowingThread, thread_of
from eagle.decoding.tickets import Ticket
from eagle.errors import EagleError, RequestError
from eagle.host import Whole
from eagle.plugin import Registry, SamplingParams
from eagle.spec import DecoderSpec
from eagle.target import Target

__all__ = ["Engine"]

QUEUE = 1024


class Engine(Whole):
    """Answers requests as they come, as many at once as its decoder has slots.

    Make one with `from_spec`, or of a decoder. A request that is greedy, or whose seed was given,
    says what it says alone, whoever shares the batch with it; any other one, what is as likely. One
    that fails fails alone.

    Requests get a slot in the order of their priority, the higher first, and those of equal
    priority in the order in which they came. None is overtaken because it is long: one that has to
    wait for blocks keeps those behind it waiting too, so it waits no longer than those before it
    take. As long as requests of a higher priority keep coming, lower ones wait. Who has a slot
    keeps it to the end. Prompts are read a bounded piece at a time, in turn with cycles.

    Where several processes hold the target, each makes the engine. The first takes requests, and
    the others' engines do the passes that it does (see `leads`); to close one waits until the first
    is closed. Meanwhile nothing else is asked of the target but by the first.

    Args:
        decoder: what decodes; its own `generate` and `stream` may be used meanwhile.
        queue: requests that may wait for a slot; more are refused.
    """

    copied = "an engine (its decoder exists once; make one where it is needed)"

    def __init__(self, decoder: Decoder, *, queue: int = QUEUE) -> None:
        if not isinstance(decoder, Decoder):
            raise RequestError(
                f"an Engine is made of a Decoder, not of {type(decoder).__name__}; "
                "Engine.from_spec makes both"
            )
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 1:
            raise RequestError(f"queue is how many requests may wait, at least 1, not {queue!r}")
        self.decoder, self.queue = decoder, queue
        self._driver = thread_of(decoder, queue)
        decoder.loop.seats.steady = True
        # Who forgets the engine ends it. A collector may run in any thread, so it waits for none.
        weakref.finalize(self, self._driver.close, drain=False).atexit = False
        self._driver.start()

    @classmethod
    def from_spec(
        cls,
        spec: str | Path | DecoderSpec = "eagle",
        overrides: Sequence[str] = (),
        *,
        queue: int = QUEUE,
        registry: Registry | None = None,
        target: Target | None = None,
    ) -> Engine:
        """Build a decoder and start an engine with it; see `Decoder.from_spec`.

        Raises:
            EagleError: see there.
        """
        decoder = Decoder.from_spec(spec, overrides, registry=registry, target=target)
        return cls(decoder, queue=queue)

    def warm_up(self) -> bool:
        """Compile and capture what requests are going to need, so that the first do not wait.

        On a GPU: cycles over 1, 2, 4, ... requests, greedy and sampled, with seeds and without, and
        the reading of prompts. It takes a minute or two, once; later processes find the code and
        take less.

        Returns:
            Whether there was anything to do: not on a CPU, nor while requests are being answered.
            Where several processes hold the target, process 0 calls it for all.

        Raises:
            ClosedError: the engine was closed, or has broken.
            PartedError: another process that holds the target could not do it.
            EagleError: a strategy fails.
        """
        self._driver.check()
        return self.decoder.loop.warm_up()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        processors: Processors | None = None,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        **sampling: Any,
    ) -> Handle:
        """Ask for an answer; any thread or task may, at any time. It does not wait.

        Args:
            prompt: one prompt, as `Decoder.generate` takes it.
            params: its sampling parameters.
            processors: its logits processors. They are asked in the engine's thread.
            raw: continue a string as it is, without the chat template.
            chat_template_kwargs: what the chat template reads beside the messages.
            priority: higher ones get a slot first.
            **sampling: fields of `SamplingParams`, instead of *params*.

        Returns:
            A handle on the answer that will come.

        Raises:
            RequestError: the prompt or a parameter is not valid, or there will never be memory for
                the text.
            QueueFullError: as many requests wait as may.
            ClosedError: the engine was closed, or has broken.
        """
        if not self.leads:
            raise RequestError(
                "this process follows process 0 of those that hold the target; submit there"
            )
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise RequestError(f"priority is a whole number, not {priority!r}")
        self._driver.check()
        single, requests = self.decoder.intake(
            prompt, params, processors, sampling, raw, chat_template_kwargs
        )
        if not single:
            raise RequestError("submit takes one prompt; submit each of several by itself")
        handle = Handle(self._driver, self)
        handle.ticket = Ticket(requests[0], self._driver.tally(handle), priority)
        self._driver.submit(handle.ticket, self.queue)
        return handle

    @property
    def leads(self) -> bool:
        """Whether requests are taken in this process; in others that hold the target, not."""
        return not isinstance(self._driver, FollowingThread)

    @property
    def closed(self) -> bool:
        """Whether no more requests are taken."""
        return self._driver.closing

    @property
    def broken(self) -> BaseException | None:
        """What ended the engine's thread before its time, if anything did."""
        return self._driver.broken

    def stats(self) -> EngineStats:
        """Return what the engine is doing now; what its decoder does for others counts too."""
        return self._driver.stats()

    def close(self, drain: bool = True) -> None:
        """Take no more requests, and end once none is left; handles keep what they have.

        Args:
            drain: answer those that were submitted first; otherwise they are cancelled.

        Raises:
            TargetError: where this process follows, a process is lost.
        """
        self._driver.check_thread()
        self._driver.close(drain=drain)
        self._driver.thread.join()
        if not self.leads and isinstance(self.broken, EagleError):
            raise self.broken

    async def aclose(self, drain: bool = True) -> None:
        """Do what `close` does, while other tasks go on."""
        await asyncio.to_thread(self.close, drain)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, answering all that was submitted unless an exception ends the block."""
        self.close(drain=kind is None)

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.aclose(drain=kind is None)

"""``eagle chat``: a conversation, turn by turn, with each token in the colour of its origin."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.text import Text

from eagle.cli import console
from eagle.cli.decoding import (
    MaxNewTokens,
    MinP,
    OwnSeed,
    SpecOption,
    Stop,
    Target,
    Temperature,
    TopK,
    TopP,
    figures,
    load_decoder,
    sampling_params,
    warn_if_lossy,
)
from eagle.cli.options import Overrides, ServerUrl, Template, template_of
from eagle.cli.talking import ask, refuse_local, server_of, show_plainly

if TYPE_CHECKING:
    from eagle.decoding import Decoder
    from eagle.plugin import SamplingParams

EXAMPLES = console.examples(
    "eagle chat",
    "eagle chat --temperature 0.7 --max-new-tokens 512",
    "eagle chat --server http://127.0.0.1:8000",
    'printf "Hello\\nAnd in French?\\n" | eagle chat',
)

DRAFTED, BONUS = "cyan", "yellow"


def chat(
    spec: SpecOption = "eagle",
    set_: Overrides = None,
    target: Target = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: OwnSeed = None,
    stop: Stop = None,
    template: Template = None,
    server: ServerUrl = None,
) -> None:
    """Talk with the target, in several turns; with --server, with one that is served elsewhere.

    Ctrl-C stops an answer, Ctrl-D or /exit ends the conversation, /reset forgets it. Input that
    is no terminal is read as one turn a line.
    """
    from eagle.errors import RequestError

    if sys.stdin is None:
        raise RequestError("standard input is closed, so there is nobody to talk with")
    params = sampling_params(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    given = template_of(template)
    conversation: Conversation
    if server is None:
        decoder = load_decoder(spec, set_, target)
        if decoder.target.together is not None:
            raise RequestError(
                "a chat is for one process: leave target.tp_plan out, or use generate"
            )
        conversation = LocalConversation(decoder, params, given)
        warn_if_lossy(decoder)
    else:
        refuse_local({"--spec": spec != "eagle", "--set": set_, "--target": target})
        conversation = ServedConversation(server, params, given)
    _legend(colours=conversation.coloured)
    for turn in _turns():
        if turn == "/exit":
            return
        if turn == "/reset":
            conversation.messages.clear()
            _note("forgotten; a new conversation begins")
        else:
            conversation.answer(turn)


class Conversation:
    """The turns so far, and who answers them.

    Args:
        params: of every answer; a seed is the first one's own, and later ones derive theirs.
        template: what the chat template is given beside the turns.

    Attributes:
        coloured: it is known of each token who drafted it.
    """

    coloured = True

    def __init__(self, params: SamplingParams, template: dict[str, Any] | None = None) -> None:
        self.params, self.template = params, template
        self._answers = 0
        self.messages: list[dict[str, str]] = []

    def answer(self, turn: str) -> None:
        """Answer a turn on stdout; a turn that cannot be answered is reported and forgotten."""
        from eagle.errors import RemoteError, RequestError

        self.messages.append({"role": "user", "content": turn})
        try:
            text = self._stream()
        except (RemoteError, RequestError) as error:
            self.messages.pop()
            if not sys.stdin.isatty():
                raise
            console.fail(str(error))
        else:
            self.messages.append({"role": "assistant", "content": text})

    def _params(self) -> SamplingParams:
        """Return the parameters of the next answer, with a seed of its own."""
        from eagle.plugin import derived_seed

        number, self._answers = self._answers, self._answers + 1
        if self.params.seed is None:
            return self.params
        seed = derived_seed(self.params.seed, number)
        return self.params.model_copy(update={"seed": seed})

    def _stream(self) -> str:
        """Show an answer as it comes, and its figures; return its text."""
        raise NotImplementedError


class LocalConversation(Conversation):
    """A conversation that a decoder answers here.

    Args:
        decoder: the decoder.
        params: see `Conversation`.
        template: see `Conversation`.

    Raises:
        RequestError: the target cannot hold a conversation.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: SamplingParams,
        template: dict[str, Any] | None = None,
    ) -> None:
        from eagle.errors import RequestError

        if not getattr(decoder.target.tokenizer, "chat_template", None):
            raise RequestError(
                f"the target {decoder.target.info.name!r} has no chat template, so it cannot tell "
                "turns apart; use `eagle generate --raw` with it"
            )
        super().__init__(params, template)
        self.decoder = decoder

    def _stream(self) -> str:
        self._forget_oldest()
        text, tokens, result = "", 0, None
        with _interruptible() as stopped:
            for event in self.decoder.stream(
                self.messages, self._params(), chat_template_kwargs=self.template
            ):
                for piece in event.pieces:
                    text += piece.text
                    _show(piece.text, piece.drafted)
                sys.stdout.flush()
                tokens, result = tokens + len(event.tokens), event.result
                if stopped():
                    break
        print(flush=True)
        _note(figures(result.stats) if result else f"stopped after {tokens} tokens")
        return text

    def _forget_oldest(self) -> None:
        """Drop the oldest turns until the conversation leaves room for an answer."""
        from eagle.decoding import encode

        target, capacity = self.decoder.target, self.decoder.capacity
        room = capacity - min(self.params.max_new_tokens, capacity // 2)
        dropped = 0
        while len(self.messages) > 1:
            ids = encode(
                self.messages,
                target.tokenizer,
                raw=False,
                embeddings=target.embeddings,
                template=self.template,
            )
            if len(ids) <= room:
                break
            del self.messages[:2]  # a question with its answer
            dropped += 1
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            _note(f"{turns} forgotten: this decoder holds {capacity} tokens, the answer included")


class ServedConversation(Conversation):
    """A conversation that a server answers.

    Args:
        url: where it is.
        params: see `Conversation`.
        template: see `Conversation`.

    Raises:
        RemoteError: it does not answer, or has no model.
    """

    def __init__(
        self, url: str, params: SamplingParams, template: dict[str, Any] | None = None
    ) -> None:
        super().__init__(params, template)
        self._server, self._model, self.coloured = server_of(url)

    def _stream(self) -> str:
        with _interruptible() as stopped:
            answered = ask(
                self._server,
                self._model,
                self.messages,
                self._params(),
                self.template,
                ours=self.coloured,
                show=_show,
                stopped=stopped,
            )
        print(flush=True)
        _note(answered.figures or "stopped")
        return answered.text


def _show(text: str, drafted: bool | None) -> None:
    """Print a piece of an answer in the colour of its origin, if that is known."""
    if drafted is None:
        show_plainly(text)
    else:
        console.out.print(Text(text, DRAFTED if drafted else BONUS), end="", soft_wrap=True)


def _turns() -> Iterator[str]:
    """Yield what the user says, turn by turn, until there is no more."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and history
    for number in itertools.count(1):
        try:
            line = input("> ") if interactive else _line(number)
        except (EOFError, StopIteration):
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            _note("Ctrl-D or /exit ends the conversation")
            continue
        except UnicodeDecodeError:
            _note("that is not UTF-8 text; say it again")
            continue
        if line.strip():
            yield line.strip()


def _line(number: int) -> str:
    """Return the next line of standard input.

    Raises:
        StopIteration: there is none.
        RequestError: it is not UTF-8 text. Read as bytes, so that earlier lines are answered first.
    """
    from eagle.errors import RequestError

    line = next(getattr(sys.stdin, "buffer", sys.stdin))
    try:
        return line if isinstance(line, str) else line.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"line {number} of standard input is not UTF-8 text (byte {error.start})"
        ) from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a question that may be asked between cycles.

    An exception at any point would leave the decoder's buffers between two states.
    """
    pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _legend(*, colours: bool) -> None:
    legend = f"[{DRAFTED}]accepted draft tokens[/] · [{BONUS}]bonus tokens[/] · "
    console.err.print(
        f"{legend if colours else ''}"
        "[dim]Ctrl-C stops an answer, Ctrl-D or /exit ends, /reset forgets[/]",
        soft_wrap=True,
    )


def _note(text: str) -> None:
    console.err.print(text, style="dim", soft_wrap=True, markup=False)

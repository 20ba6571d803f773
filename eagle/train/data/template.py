"""From a conversation to tokens, and which of them the target would have said itself.

It knows the tokenizer's chat template only by what it renders: where an assistant's turn begins
and ends follows from what the conversation up to it becomes, with and without it. Of a plain text,
which no template touches, every token counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle.errors import DataError, RequestError, reason
from eagle.target import template_text
from eagle.train.data.beginnings import beginnings
from eagle.train.data.sources import Conversation, Passage

__all__ = ["Encoder", "Tally", "Text"]

Span = tuple[int, int]

_MANY = 8  # answers, from which on it is quicker to find where they lie all at once
_SHORTEST = 3  # tokens: a feature, the one it predicts, and the token behind that


@dataclass(frozen=True)
class Text:
    """The tokens of one conversation, or of a plain text.

    Attributes:
        group: see `Conversation.group`.
        tokens: int64 ``[n]``.
        answers: bool ``[n]``, the tokens that an assistant said, its end-of-turn token included;
            in a plain text all of them.
    """

    group: str
    tokens: NDArray[np.int64]
    answers: NDArray[np.bool_]


@dataclass
class Tally:
    """What became of the conversations and plain texts that were read.

    Attributes:
        used: they gave a `Text`.
        silent: no assistant says anything in them, or a text is empty.
        refused: the template would not render them.
        cut: conversations longer than the limit, of which the beginning was used.
        split: plain texts longer than the limit, which go on as texts of their own.
        answers: assistants' turns in the conversations that were used.
        changed: those among them that have no loss, since the template renders them otherwise
            once there are later turns (without their thoughts, say).
        wordless: those that have none, since they say nothing (a call of a tool, say).
        dropped: what records have beside turns that are read, and how often.
    """

    used: int = 0
    silent: int = 0
    refused: int = 0
    cut: int = 0
    split: int = 0
    answers: int = 0
    changed: int = 0
    wordless: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, for a file."""
        return asdict(self) | {"dropped": dict(self.dropped)}

    @property
    def read(self) -> int:
        """All of them."""
        return self.used + self.silent + self.refused


class Encoder:
    """Tokenises conversations through a tokenizer's chat template, and plain texts without.

    Args:
        tokenizer: a fast transformers tokenizer; for conversations, with a chat template.
        ends: tokens that end a turn; what the template puts behind one is not the assistant's.
        max_length: longest text.

    Raises:
        DataError: there is no fast tokenizer.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int], max_length: int) -> None:
        if tokenizer is None:
            raise DataError(
                "the target has no tokenizer, so text cannot be made into tokens; put its "
                "tokenizer.json beside its weights"
            )
        if not tokenizer.is_fast:
            raise DataError(
                "the target's tokenizer is a slow one, which cannot tell where in the text a "
                "token comes from; use its fast version (tokenizer.json)"
            )
        self._tokenizer, self._ends, self._max = tokenizer, sorted(ends), max_length
        self._checked = False
        self.tally = Tally()

    def _check_template(self) -> None:
        """Refuse a chat template, before its first use, that does not show where answers begin."""
        if self._checked:
            return
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(
                "the target has no chat template, so conversations cannot be rendered; use a "
                "chat-tuned target, or put a chat_template.jinja beside its tokenizer"
            )
        question, answer = ("user", "q"), ("assistant", "a")
        try:
            _, spans = self._spans((question, answer))
        except Exception as error:  # a template is anybody's code
            raise DataError(
                f"the chat template cannot render a question and its answer: {reason(error)}"
            ) from error
        if not spans:
            raise DataError(
                "the chat template has no boundary between question and answer: rendering a "
                "conversation with and without its answer does not share a beginning"
            )
        self._checked = True

    def encode(self, items: Iterable[Conversation | Passage], batch: int = 256) -> Iterator[Text]:
        """Yield the texts of the conversations that have any answer, counting the others.

        Args:
            items: what to tokenise.
            batch: how many are tokenised at once, in parallel.

        Raises:
            DataError: there is no chat template, or none that shows where answers begin.
        """
        source = iter(items)
        while group := list(islice(source, batch)):
            for kind, run in groupby(group, key=type):
                if kind is Passage:
                    yield from self._passages([one for one in run if isinstance(one, Passage)])
                else:
                    self._check_template()
                    yield from self._conversations(
                        [one for one in run if isinstance(one, Conversation)]
                    )

    def _passages(self, passages: Sequence[Passage]) -> Iterator[Text]:
        """Yield plain texts as the target reads them, long ones in pieces."""
        encodings = self._tokenizer.backend_tokenizer.encode_batch([one.text for one in passages])
        for one, encoding in zip(passages, encodings, strict=True):
            tokens = np.array(encoding.ids, dtype=np.int64)
            if not one.text.strip() or len(tokens) < _SHORTEST:
                self.tally.silent += 1
                continue
            self.tally.used += 1
            self.tally.split += len(tokens) > self._max
            for number, start in enumerate(range(0, len(tokens), self._max)):
                piece = tokens[start : start + self._max]
                if len(piece) >= _SHORTEST:
                    # Pieces do not overlap, so that any of them may be held out alone.
                    name = f"{one.group}#{number}" if number else one.group
                    yield Text(name, piece, np.ones(len(piece), dtype=np.bool_))

    def _conversations(self, conversations: Sequence[Conversation]) -> Iterator[Text]:
        rendered = [item for one in conversations if (item := self._render(one)) is not None]
        if not rendered:
            return
        texts = [text for _, text, _ in rendered]
        encodings = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        for (name, text, spans), encoding in zip(rendered, encodings, strict=True):
            tokens = np.array(encoding.ids, dtype=np.int64)
            answers = self._mark(tokens, encoding, len(text), spans)
            if len(tokens) > self._max:
                self.tally.cut += 1
                tokens, answers = tokens[: self._max], answers[: self._max]
            if answers.any():
                self.tally.used += 1
                yield Text(name, tokens, answers)
            else:
                self.tally.silent += 1

    def _render(self, one: Conversation) -> tuple[str, str, list[Span]] | None:
        """Return group, text and spans of answers; None if there is no answer to learn from."""
        self.tally.dropped.update(one.dropped)
        if not any(role == "assistant" and text for role, text in one.messages):
            self.tally.silent += 1
            return None
        try:
            text, spans = self._spans(one.messages)
        except Exception:  # two questions in a row, say: a template raises what it likes
            spans = []
        if not spans:
            self.tally.refused += 1
            return None
        answers = [text for role, text in one.messages if role == "assistant"]
        wordless = sum(not text for text in answers)
        self.tally.answers += len(answers)
        self.tally.wordless += wordless
        self.tally.changed += len(answers) - wordless - len(spans)
        return one.group, text, spans

    def _spans(self, messages: Sequence[tuple[str, str]]) -> tuple[str, list[Span]]:
        """Return the rendered conversation and the characters ``[start, end)`` of its answers.

        An answer is what follows the prompt that asks for it. Where that cannot be told (some
        templates render earlier turns differently once there are later ones), it is left out. So
        is one without a word: the target would have called a tool there, or said something.
        """
        full = self._template(messages)
        told = [i for i, (role, said) in enumerate(messages) if role == "assistant" and said]
        spans = self._together(messages, full, told) if len(told) >= _MANY else {}
        for i in told:
            if i not in spans:
                spans[i] = self._span(messages, full, i)
        return full, [span for i in told if (span := spans[i]) is not None]

    def _span(self, messages: Sequence[tuple[str, str]], full: str, i: int) -> Span | None:
        """Return where an answer lies, by rendering what leads to it, and that with it."""
        prompt = self._template(messages[:i], prompt=True)
        ended = self._template(messages[: i + 1])
        if ended.startswith(prompt) and full.startswith(ended) and prompt != ended:
            return len(prompt), len(ended)
        return None

    def _together(
        self, messages: Sequence[tuple[str, str]], full: str, told: Sequence[int]
    ) -> dict[int, Span | None]:
        """Return what `_span` does of all answers, as far as the template lets it be known at once.

        To render each beginning takes time with the square of how many there are.
        """
        if not hasattr(self._tokenizer, "get_chat_template"):
            return {}
        source = self._tokenizer.get_chat_template(tools=None)
        values = {**self._tokenizer.special_tokens_map, "tools": None, "documents": None}
        values["messages"] = [{"role": role, "content": text} for role, text in messages]
        try:
            whole = self._template(messages, prompt=True)
        except RequestError:  # which says nothing of what leads to an answer
            return {}
        values["add_generation_prompt"] = True
        prompts = beginnings(source, values, whole, told)
        values["add_generation_prompt"] = False
        endings = beginnings(source, values, full, [i + 1 for i in told])
        endings[len(messages)] = len(full), ""
        same = len(full) if whole.startswith(full) else _alike(full, whole)
        spans: dict[int, Span | None] = {}
        for i in told:
            if i in prompts and i + 1 in endings:
                (shared, added), (reached, closed) = prompts[i], endings[i + 1]
                start, end = shared + len(added), reached + len(closed)
                fits = shared <= same and full.startswith(added, shared)
                fits = fits and start < end and full.startswith(closed, reached)
                spans[i] = (start, end) if fits else None
        for i in (told[0], told[len(told) // 2], told[-1]):
            # A program of anybody's is not proved by its looks, so that some are held to the rest.
            if i in spans and spans[i] != self._span(messages, full, i):
                return {}
        return spans

    def _template(self, messages: Sequence[tuple[str, str]], prompt: bool = False) -> str:
        dicts = [{"role": role, "content": text} for role, text in messages]
        return template_text(self._tokenizer, dicts, add_generation_prompt=prompt)

    def _mark(
        self, tokens: NDArray[np.int64], encoding: Any, size: int, spans: list[Span]
    ) -> NDArray[np.bool_]:
        """Return which tokens lie in the spans, up to the end-of-turn token of each."""
        answers = np.zeros(len(tokens), dtype=np.bool_)
        ends = np.isin(tokens, self._ends)
        for start, end in spans:
            first, last = (_token_at(encoding, size, place, len(tokens)) for place in (start, end))
            closing = np.flatnonzero(ends[first:last])
            answers[first : first + closing[-1] + 1 if len(closing) else last] = True
        return answers


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _token_at(encoding: Any, size: int, character: int, count: int) -> int:
    """Return the first token that begins at or behind a character."""
    while character < size:
        token = encoding.char_to_token(character)
        if token is not None:
            start, _ = encoding.token_to_chars(token)
            return int(token if start >= character else token + 1)
        character += 1  # a character that the tokenizer drops
    return count

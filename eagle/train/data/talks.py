"""Conversations that are being answered: their questions, and the answers so far.

Knows turns, not who answers them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from eagle.errors import DataError
from eagle.train.data.sources import Conversation, Passage

__all__ = ["Talk", "Turns", "talks_of"]

Turns = Literal["all", "first"]


@dataclass
class Talk:
    """A conversation that is being answered.

    Attributes:
        number: its place among the conversations.
        group: see `Conversation.group`.
        system: what stands before the first question.
        questions: what the user says, turn by turn.
        answers: what the target said so far, and why it ended: ``stop`` or ``length``.
        cut: no further answer fits into the decoder, or the chat template refuses the rest.
    """

    number: int
    group: str
    system: tuple[str, ...]
    questions: tuple[str, ...]
    answers: list[tuple[str, str]] = field(default_factory=list)
    cut: bool = False

    @property
    def done(self) -> bool:
        """Nothing is left to answer."""
        return self.cut or len(self.answers) == len(self.questions)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, with the question that is to be answered next."""
        said = [{"role": "system", "content": text} for text in self.system]
        for turn, question in enumerate(self.questions[: len(self.answers) + 1]):
            said.append({"role": "user", "content": question})
            if turn < len(self.answers):
                said.append({"role": "assistant", "content": self.answers[turn][0]})
        return said

    def line(self) -> dict[str, Any]:
        """Return the line of the file: the answered turns, in a form that training reads."""
        return {
            "id": f"{self.group}_{self.number}",
            "messages": self.messages[: len(self.system) + 2 * len(self.answers)],
            "finish": [reason for _, reason in self.answers],
        }


def talks_of(items: Iterable[Conversation | Passage], turns: Turns) -> list[Talk]:
    """Return what is to be answered.

    Args:
        items: the dataset; plain texts and conversations without a question are left out.
        turns: every question of a conversation, or its first.

    Raises:
        DataError: there is no question.
    """
    talks: list[Talk] = []
    for item in items:
        said = item.messages if isinstance(item, Conversation) else ()
        questions = [text for role, text in said if role == "user" and text]
        if questions:
            system = tuple(text for role, text in said if role == "system" and text)
            asked = tuple(questions if turns == "all" else questions[:1])
            talks.append(Talk(len(talks), item.group, system, asked))
    if not talks:
        raise DataError("no conversation of the dataset has a question that could be answered")
    return talks

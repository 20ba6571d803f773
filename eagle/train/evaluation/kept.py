"""Answers of a target in a file, so that several heads are asked about the same; knows no head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eagle.errors import DataError
from eagle.host import write_text
from eagle.train.evaluation.answers import Answer

__all__ = ["KeptAnswers", "KeptSet"]

_Tokens = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class KeptSet(BaseModel):
    """Answers to one set of prompts.

    Attributes:
        source: what text it is, for people.
        answers: tokens of each prompt, and of what the target answered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    answers: Annotated[tuple[tuple[_Tokens, _Tokens], ...], Field(min_length=1)]

    def read(self) -> list[Answer]:
        """Return the answers."""
        return [Answer(prompt, said) for prompt, said in self.answers]


class KeptAnswers(BaseModel):
    """What a target answered at temperature 0, and to what.

    Attributes:
        target: its name.
        asked: how it was asked, for people and to be compared.
        sets: by what kind of text they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    asked: dict[str, str]
    sets: dict[str, KeptSet]

    @classmethod
    def read(cls, path: Path, target: str, asked: dict[str, str], vocab: int) -> KeptAnswers:
        """Return what a file holds.

        Args:
            path: the file.
            target: whose answers are wanted.
            asked: how it is asked.
            vocab: tokens are below it.

        Raises:
            DataError: it cannot be read, or holds other answers than those.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"{path} holds no answers that `eagle bench ranks` kept") from error
        differing = [
            f"{key} {found.asked.get(key)} and not {value}"
            for key, value in {"target": target, **asked}.items()
            if (found.target if key == "target" else found.asked.get(key)) != value
        ]
        if differing:
            raise DataError(
                f"{path} holds answers to something else: {differing[0]}; give another file, or "
                "ask as it was asked"
            )
        largest = max(
            max(*prompt, *said) for one in found.sets.values() for prompt, said in one.answers
        )
        if largest >= vocab:
            raise DataError(f"{path} holds the token {largest}, the target has {vocab}")
        return found

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        try:
            write_text(path, json.dumps(self.model_dump(mode="json")) + "\n")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error

"""Tokenised conversations, and the one file that carries them to another machine.

It knows tokens and where each conversation ends; it does not know how they are packed into rows.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle.errors import DataError
from eagle.host import replacing
from eagle.train.data.template import Text

__all__ = ["Corpus", "is_packed", "tokenizer_digest"]

VERSION = 1

_DAMAGED = (
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises for a file that it did not write, or did not write to the end."""


@dataclass(frozen=True)
class Corpus:
    """The tokens of many conversations, one behind the other.

    Attributes:
        tokens: uint16 or uint32 ``[n]``.
        answers: bool ``[n]``, tokens that an assistant said.
        ends: int64 ``[c]``, where each conversation ends.
        groups: uint64 ``[c]``, what a held-out choice keeps together.
        info: what it was made of: `tokenizer` (digest), `vocab`, counts.
    """

    tokens: NDArray[Any]
    answers: NDArray[np.bool_]
    ends: NDArray[np.int64]
    groups: NDArray[np.uint64]
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[Text], vocab: int, info: dict[str, Any] | None = None) -> Corpus:
        """Collect texts.

        Args:
            texts: what to collect.
            vocab: size of the vocabulary; up to 65,536, a token takes two bytes.
            info: what is known of them.

        Raises:
            DataError: there are none.
        """
        small = np.uint16 if vocab <= 1 << 16 else np.uint32
        tokens, answers, groups = [], [], []
        for text in texts:
            tokens.append(text.tokens.astype(small))
            answers.append(text.answers)
            digest = hashlib.blake2b(text.group.encode(), digest_size=8).digest()
            groups.append(int.from_bytes(digest, "little"))
        if not tokens:
            raise DataError("no conversation has an answer to learn from: the dataset is empty")
        ends = np.cumsum([len(one) for one in tokens], dtype=np.int64)
        info = (info or {}) | {"vocab": vocab}
        return cls(
            np.concatenate(tokens),
            np.concatenate(answers),
            ends,
            np.array(groups, dtype=np.uint64),
            info,
        )

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each conversation starts, int64 ``[c]``."""
        return np.concatenate(([0], self.ends[:-1]))

    @cached_property
    def digest(self) -> str:
        """A digest of the tokens and of which of them count."""
        state = hashlib.sha256()
        for array in (self.tokens.astype("<u4"), np.packbits(self.answers), self.ends):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def counts(self, numbers: Iterable[int], vocab: int) -> Tensor:
        """Return how often each token is an answer's in some conversations, int64 ``[vocab]``."""
        chosen = np.zeros(len(self.tokens), dtype=np.bool_)
        for number in numbers:
            chosen[self.starts[number] : self.ends[number]] = True
        said = self.tokens[chosen & self.answers]
        return torch.from_numpy(np.bincount(said, minlength=vocab))

    def split(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the conversations to train on and of those held out.

        Whether a group is held out depends on its name and the seed alone, so that adding text
        moves nothing from one side to the other.
        """
        salt = seed.to_bytes(8, "little")
        held = [
            int.from_bytes(
                hashlib.blake2b(salt + group.tobytes(), digest_size=8).digest(), "little"
            )
            < share * 2**64
            for group in self.groups
        ]
        mask = np.array(held, dtype=np.bool_)
        return np.flatnonzero(~mask), np.flatnonzero(mask)

    def text(self, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the tokens of one conversation, and which of them are answers."""
        part = slice(self.starts[number], self.ends[number])
        return self.tokens[part], self.answers[part]

    def save(self, path: Path) -> None:
        """Write it to a file, atomically: about one byte for each token.

        Raises:
            DataError: it could not be written.
        """
        info = json.dumps(self.info | {"version": VERSION}).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as place, place.open("wb") as file:
                np.savez_compressed(
                    file,
                    tokens=self.tokens,
                    answers=np.packbits(self.answers),
                    lengths=np.diff(self.ends, prepend=0).astype(np.uint32),
                    groups=self.groups,
                    info=np.frombuffer(info, dtype=np.uint8),
                )
        except OSError as error:
            raise DataError(
                f"the packed text could not be written to {path}: {error.strerror or error}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read a file that `save` wrote.

        Raises:
            DataError: it is missing, damaged, or something else.
        """
        try:
            with path.open("rb") as raw:
                # Of anything else NumPy says how to load it unsafely.
                if not zipfile.is_zipfile(raw):
                    raise zipfile.BadZipFile("it is no ZIP archive")
                raw.seek(0)
                with np.load(raw, allow_pickle=False) as file:
                    info = json.loads(file["info"].tobytes())
                    arrays = [file[name] for name in ("tokens", "answers", "lengths", "groups")]
        except FileNotFoundError as error:
            raise DataError(f"there is no packed text {path}") from error
        except _DAMAGED as error:
            raise DataError(
                f"{path} is not packed text of `eagle data prepare`, or damaged: {error}"
            ) from error
        if not isinstance(info, dict) or info.get("version") != VERSION:
            raise DataError(f"{path} was packed by another version; run `eagle data prepare` again")
        tokens, packed, lengths, groups = arrays
        problem = _misfit(tokens, packed, lengths, groups)
        if problem:
            raise DataError(
                f"{path} is not packed text of `eagle data prepare`, or damaged: {problem}"
            )
        ends = np.cumsum(lengths, dtype=np.int64)
        answers = np.unpackbits(packed, count=len(tokens)).astype(np.bool_)
        return cls(tokens, answers, ends, groups, info)


def _misfit(
    tokens: NDArray[Any], answers: NDArray[Any], lengths: NDArray[Any], groups: NDArray[Any]
) -> str | None:
    """Return what is wrong with the arrays of a file, which anybody may have written."""
    dtypes = {
        "tokens": (tokens, ("uint16", "uint32")),
        "answers": (answers, ("uint8",)),
        "lengths": (lengths, ("uint32",)),
        "groups": (groups, ("uint64",)),
    }
    for name, (array, known) in dtypes.items():
        if array.ndim != 1 or array.dtype.name not in known:
            return f"{name} is {array.dtype} of {array.ndim} dimensions"
    if not len(lengths) or not lengths.all():
        return "a conversation of it has no token"
    if int(lengths.sum(dtype=np.int64)) != len(tokens) or len(answers) != -(-len(tokens) // 8):
        return "its parts are of different lengths"
    return None if len(groups) == len(lengths) else "its parts are of different lengths"


def is_packed(path: Path) -> bool:
    """Whether a file holds the arrays that `Corpus.save` writes, by their names."""
    try:
        with zipfile.ZipFile(path) as file:
            return {"tokens.npy", "answers.npy", "info.npy"} <= set(file.namelist())
    except _DAMAGED:
        return False


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of what decides a tokenizer's tokens: its pipeline and its chat template."""
    core = tokenizer.backend_tokenizer.to_str() + (tokenizer.chat_template or "")
    return hashlib.sha256(core.encode()).hexdigest()

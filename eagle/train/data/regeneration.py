"""Lets the target itself answer the questions of a dataset, so that heads learn what it says.

Knows conversations and a decoder; how files survive a kill is `ledger`'s business. A head drafts
what the target would say, which is not quite what a fixed dataset holds (arXiv 2401.15077,
section 4.3.3, compares the two).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eagle.decoding import Decoder, encode
from eagle.errors import DataError, RequestError
from eagle.host import write_text
from eagle.plugin import SamplingParams
from eagle.train.data.fingerprints import fingerprint
from eagle.train.data.ledger import Ledger
from eagle.train.data.talks import Talk

__all__ = ["Report", "regenerate"]

_WAVE = 2  # conversations in hand for each slot, so that none waits for its next prompt
_STEP = 4  # prompts made between two passes where none is missed yet: the device goes on meanwhile


@dataclass
class Report:
    """How far it is.

    Attributes:
        answers: given so far, by earlier processes too.
        total: answers that there will be.
        tokens: of the answers of this process.
        cut: conversations that this process ended early, since no further answer fitted.
        refused: the same, since the chat template would not render them.
        capped: answers of this process that ended at the longest length.
    """

    answers: int = 0
    total: int = 0
    tokens: int = 0
    cut: int = 0
    refused: int = 0
    capped: int = 0


def regenerate(
    decoder: Decoder,
    talks: Sequence[Talk],
    out: Path,
    params: SamplingParams,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Answer all conversations, or those that are left.

    Each answer is kept as it comes in ``OUT.progress``; conversations are written to the file in
    their order, each when it and all before it are answered. So the file is at any moment the
    beginning of what it will be, and a process that is killed loses no answer.

    Args:
        decoder: the target, with a draft head or without.
        talks: of `eagle.train.data.talks_of`.
        out: JSON lines; it is gone on with if it was begun with the same settings.
        params: of every answer; each has a seed of its own that follows from `params.seed`.
        progress: is told after each answer.

    Raises:
        DataError: the file is not one of these, or was begun with other settings, or another
            process writes it; or it cannot be written.
        NumericalError: the target produced NaN.
    """
    beside = out.with_name(f"{out.name}.progress")
    identity = _identity(decoder, talks, params)
    if out.exists() and not out.is_file():
        raise DataError(f"{out} is no plain file, and could not be gone on with; choose another")
    with _alone(out), _explained(out):
        # Before either is opened, which cuts off a last line that is not whole.
        _check_begun(out, beside, identity)
        with Ledger(beside) as answers, Ledger(out) as lines:
            first = _resume(talks, answers, lines, identity)
            report = _report(talks, first)
            progress(report)
            for talk in _answered(decoder, talks[first:], params, report):
                turn = len(talk.answers) - 1
                answers.add({"number": talk.number, "turn": turn, "answer": talk.answers[turn]})
                first = _write(talks, first, lines)
                progress(report)
            _write(talks, first, lines)
        _replace(beside, identity)
    return report


def _identity(decoder: Decoder, talks: Sequence[Talk], params: SamplingParams) -> dict[str, Any]:
    """Return what a file that is gone on with must have been begun with."""
    asked = json.dumps([(talk.group, talk.system, talk.questions) for talk in talks])
    return {
        "target": fingerprint(decoder.target),
        "acceptance": decoder.spec.model_dump(mode="json")["acceptance"],
        "sampling": params.model_dump(mode="json"),
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
    }


def _check_begun(out: Path, beside: Path, identity: Mapping[str, Any]) -> None:
    """Refuse files that were not begun here, or were with other settings; changes neither.

    Raises:
        DataError: they are such.
    """
    first = b""
    if beside.exists():
        with beside.open("rb") as file:
            first = file.readline()
    if not first.endswith(b"\n"):  # there is none, or it was cut off while it was written
        if out.exists() and out.stat().st_size:
            raise DataError(f"{out} exists, and was not begun here; choose another file")
        return
    try:
        begun = json.loads(first)
        changed = [key for key, value in identity.items() if begun.get(key) != value]
    except (ValueError, AttributeError, RecursionError) as error:
        raise _foreign(out, beside, error) from error
    if changed:
        raise DataError(
            f"{out} was begun with another {', '.join(changed)}; go on with the same settings, or "
            "choose another file"
        )


def _foreign(out: Path, beside: Path, error: Exception) -> DataError:
    return DataError(f"{out} or {beside.name} is not of `eagle data regenerate`: {error}")


def _resume(
    talks: Sequence[Talk], answers: Ledger, lines: Ledger, identity: Mapping[str, Any]
) -> int:
    """Take in what was answered before, and return the first conversation that is not written.

    Raises:
        DataError: these files are something else.
    """
    kept, written = iter(answers), 0
    try:
        if next(kept, None) is None:
            answers.add(identity)
        for line in kept:
            talk = talks[line["number"]]
            if line["turn"] == len(talk.answers):
                text, reason = line["answer"]
                talk.answers.append((text, reason))
        for line in lines:
            written = int(line["id"].rpartition("_")[2]) + 1
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _foreign(lines.path, answers.path, error) from error
    return written


def _report(talks: Sequence[Talk], first: int) -> Report:
    earlier = sum(len(talk.questions) for talk in talks[:first])
    return Report(
        answers=earlier + sum(len(talk.answers) for talk in talks[first:]),
        total=sum(len(talk.questions) for talk in talks),
    )


def _answered(
    decoder: Decoder, talks: Sequence[Talk], params: SamplingParams, report: Report
) -> Iterator[Talk]:
    """Answer all questions; the next one of a conversation as soon as the one before is answered.

    Yields each conversation that has got an answer, the last of its answers.
    """
    slots = decoder.max_batch
    hand: deque[Talk] = deque()  # go on, and are found in the cache best now
    waiting = iter(talk for talk in talks if not talk.done)
    asked: dict[int, Talk] = {}
    numbers = count()

    def more(left: int) -> list[tuple[list[int], SamplingParams]]:
        # So many slots would idle; beyond that it is for later.
        wanted = max(slots - left, min(_STEP, _WAVE * slots - left))
        found: list[tuple[list[int], SamplingParams]] = []
        while len(found) < wanted:
            talk = hand.popleft() if hand else next(waiting, None)
            if talk is None:
                break
            prompt = _prompt(decoder, talk, params, report)
            if prompt is not None:
                asked[next(numbers)] = talk
                seed = _seed(params.seed or 0, talk)
                found.append((prompt, params.model_copy(update={"seed": seed})))
        return found

    for event in decoder.flow(more):
        report.tokens += len(event.tokens)
        if event.result is not None:
            talk, reason = asked.pop(event.index), event.result.finish_reason
            talk.answers.append((event.result.text, reason))
            report.answers += 1
            report.capped += reason == "length"
            if not talk.done:
                hand.append(talk)
            yield talk


def _prompt(
    decoder: Decoder, talk: Talk, params: SamplingParams, report: Report
) -> list[int] | None:
    """Return the tokens of a conversation, or end it if there can be no answer."""
    target = decoder.target
    try:
        ids = encode(talk.messages, target.tokenizer, raw=False, embeddings=target.embeddings)
    except RequestError:  # a role that the template does not know, say
        report.refused += 1
    else:
        if decoder.capacity - len(ids) >= params.max_new_tokens:
            return ids
        report.cut += 1
    talk.cut = True
    report.total -= len(talk.questions) - len(talk.answers)
    return None


def _seed(seed: int, talk: Talk) -> int:
    """Return the seed of a conversation's next answer, whatever was answered before it."""
    name = f"{seed}/{talk.number}/{len(talk.answers)}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**62


def _write(talks: Sequence[Talk], first: int, lines: Ledger) -> int:
    """Write the conversations from `first` on that are done, up to one that is not."""
    while first < len(talks) and talks[first].done:
        if talks[first].answers:
            lines.add(talks[first].line())
        first += 1
    return first


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second process from writing the same file."""
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"another process is writing {out}") from error
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error.strerror or error}; what was answered is kept: run "
            "the same command again to go on"
        ) from error


def _replace(path: Path, identity: Mapping[str, Any]) -> None:
    """Leave of the kept answers, all of which are written now, only what they were made with."""
    write_text(path, json.dumps(identity) + "\n")

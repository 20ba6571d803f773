"""Which answers a head is asked about in one pass; knows lengths and texts, no head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle.train.evaluation.answers import Answer

__all__ = ["MASK", "first_entry", "groups", "parts", "talks_of"]

MASK = 2**28  # bytes of a mask over all levels of a pass, unless one text alone has more
_WINDOW = 2048  # entries of a conversation that are drafted from in one pass


def talks_of(answers: Sequence[Answer]) -> list[list[int]]:
    """Return which answers are of one text: each with its prompt is how the next prompt begins."""
    talks: list[list[int]] = []
    for i, one in enumerate(answers):
        last = answers[i - 1] if i else None
        whole = () if last is None else last.prompt + last.answer
        if whole and one.prompt[: len(whole)] == whole:
            talks[-1].append(i)
        else:
            talks.append([i])
    return talks


def groups(
    talks: Sequence[Sequence[int]], answers: Sequence[Answer]
) -> Iterator[list[tuple[int, int]]]:
    """Yield rows and answers that are looked at in one pass: their prompts' ends lie close by."""
    if len(talks) > 1 and all(len(talk) == 1 for talk in talks):
        yield [(row, i) for row, (i,) in enumerate(talks)]
        return
    for row, talk in enumerate(talks):
        group: list[tuple[int, int]] = []
        for i in talk:
            end = len(answers[i].prompt) + len(answers[i].answer)
            if group and end - len(answers[group[0][1]].prompt) > _WINDOW:
                yield group
                group = []
            group.append((row, i))
        yield group


def first_entry(part: Sequence[Answer]) -> int:
    """Return the first entry that any answer of some texts is drafted from."""
    return max(0, min(len(one.prompt) for one in part) - 1)


def parts(
    answers: Sequence[Answer], budget: int, levels: int, *, whole: bool
) -> Iterator[list[int]]:
    """Group answers of similar length, so that their tokens and masks stay within bounds.

    Args:
        answers: to be grouped.
        budget: tokens of a group, padding included.
        levels: D.
        whole: whether all levels have the prompts' entries too, and not only the first.
    """
    sizes: Mapping[int, int] = {i: len(a.prompt) + len(a.answer) for i, a in enumerate(answers)}
    part: list[int] = []
    for i in sorted(sizes, key=lambda i: sizes[i]):
        rows = len(part) + 1
        first = 0 if whole else first_entry([answers[one] for one in (*part, i)])
        entries = sizes[i] + (levels - 1) * (sizes[i] - first)
        if part and (rows * sizes[i] > budget or rows * entries**2 > MASK):
            yield part
            part = []
        part.append(i)
    if part:
        yield part

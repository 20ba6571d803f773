"""A suffix automaton that grows with its text, and how often each of its strings occurs in it.

It knows integers, not what they mean (Blumer et al., 1985). Adding a token takes constant time on
average, and so does following the longest suffix of one text that occurs in another.
"""

from __future__ import annotations

__all__ = ["ROOT", "SuffixAutomaton", "Walk"]

ROOT = 0
_CLIMB = 64  # states in which an occurrence is counted, at most; more only in endless repetition


class SuffixAutomaton:
    """All strings that occur in a text.

    A state is a set of strings that end at the same places.

    Attributes:
        size: tokens of the text.
        follow: for each state, where each next token leads.
        length: for each state, tokens of its longest string.
        link: for each state, that of the longest suffix that occurs elsewhere too; -1 of the root.
        count: for each state, at how many places its strings end.
        last: the state of the whole text.
    """

    def __init__(self) -> None:
        self.follow: list[dict[int, int]] = [{}]
        self.length, self.link, self.count = [0], [-1], [0]
        self.last, self.size = ROOT, 0

    def push(self, token: int) -> None:
        """Add one token at the text's end."""
        new = self._state({}, self.length[self.last] + 1, ROOT, 0)
        above = self.last
        while above >= 0 and token not in self.follow[above]:
            self.follow[above][token] = new
            above = self.link[above]
        if above >= 0:
            self.link[new] = self._split(above, token)
        self.last, self.size = new, self.size + 1
        for _ in range(_CLIMB):
            if new <= ROOT:
                break
            self.count[new] += 1
            new = self.link[new]

    def _split(self, above: int, token: int) -> int:
        """Return the state of a state's longest string and a token behind it, alone if need be."""
        old = self.follow[above][token]
        if self.length[old] == self.length[above] + 1:
            return old
        copy = self._state(
            dict(self.follow[old]), self.length[above] + 1, self.link[old], self.count[old]
        )
        while above >= 0 and self.follow[above].get(token) == old:
            self.follow[above][token] = copy
            above = self.link[above]
        self.link[old] = copy
        return copy

    def _state(self, follow: dict[int, int], length: int, link: int, count: int) -> int:
        self.follow.append(follow)
        self.length.append(length)
        self.link.append(link)
        self.count.append(count)
        return len(self.link) - 1

    def continuing(self, state: int) -> int:
        """Return the state itself, or that of its longest suffix that something follows."""
        while state > ROOT and not self.follow[state]:
            state = self.link[state]
        return state


class Walk:
    """The longest suffix of one text that occurs in another, which may grow meanwhile.

    Args:
        automaton: of the other text.
    """

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self._automaton, self._state, self._length = automaton, ROOT, 0

    def push(self, token: int) -> None:
        """Read one token of the text."""
        automaton = self._automaton
        state, length = self.place
        while state > ROOT and token not in automaton.follow[state]:
            state = automaton.link[state]
            length = automaton.length[state]
        if token in automaton.follow[state]:
            state, length = automaton.follow[state][token], length + 1
        self._state, self._length = state, length

    @property
    def place(self) -> tuple[int, int]:
        """The state of that suffix, and its length."""
        # A state that was split since keeps its longer strings; the shorter ones are its link's.
        automaton, state = self._automaton, self._state
        while state > ROOT and self._length <= automaton.length[automaton.link[state]]:
            state = automaton.link[state]
        return state, self._length

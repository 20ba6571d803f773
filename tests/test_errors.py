"""Messages are short, whatever was given and whatever another library says of it."""

import pickle

import pytest

from eagle.errors import EagleError, SpecError, clipped, listed, reason


def test_a_message_has_three_lines_at_most():
    assert str(SpecError("a\nb\nc")) == "a\nb\nc"
    assert str(SpecError("\n".join("abcdefg"))) == "a\nb\nand 5 lines more"


def test_a_line_keeps_its_beginning_and_its_end():
    message = str(EagleError(f"the path {'x' * 100_000} is too long; give another"))
    assert message.startswith("the path xxx")
    assert message.endswith("xxx is too long; give another")
    assert len(message) <= 1500


def test_errors_can_be_copied():
    error = pickle.loads(pickle.dumps(SpecError("x" * 5000)))
    assert str(error) == str(SpecError("x" * 5000))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such thing\nin 3 lines\nof text"), "no such thing"),
        (ValueError("\n  two   words\n"), "two words"),
        (
            ValueError("Wrong field 'x':\n    TypeError: no int\nmore"),
            "Wrong field 'x': TypeError: no int",
        ),
        (KeyError("model"), "KeyError: 'model'"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_others_say_is_told_in_one_line_without_their_class(error, said):
    assert reason(error) == said


def test_long_lists_are_told_by_their_first_few():
    assert listed([1, 2]) == "1, 2"
    assert listed(["x"] * 300_000, 2) == "x, x and 299,998 more"
    assert len(clipped("x" * 10_000)) == 60

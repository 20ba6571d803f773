"""Who waits: the higher priority first, then who came first, and only who was heard."""

from types import SimpleNamespace

from eagle.decoding.line import Line
from eagle.decoding.tickets import Ticket


def tickets(*priorities):
    return [Ticket(SimpleNamespace(), None, priority) for priority in priorities]


def all_of(line):
    found = []
    while line:
        found.append(line.first)
        line.pop()
    return found


def test_the_higher_priority_goes_first_and_of_equals_who_came_first():
    line = Line()
    low, high, other, last = tickets(0, 2, 0, 1)
    line.add([low, high])
    line.hear()
    line.add([other, last])
    line.hear()
    assert all_of(line) == [high, last, low, other]


def test_nobody_stands_in_line_before_being_heard():
    line = Line()
    came = tickets(0, 0)
    line.add(came)
    assert (len(line), line.unheard) == (0, 2)
    assert line.hear() == came
    assert (len(line), line.unheard) == (2, 0)
    assert line.requests == [ticket.request for ticket in came]


def test_who_is_over_when_heard_does_not_stand_in_line():
    line = Line()
    one, gone = tickets(0, 0)
    line.add([one, gone])
    gone.over = True
    assert line.hear() == [one]
    assert all_of(line) == [one]


def test_who_leaves_from_the_middle_leaves_the_order_as_it_is():
    line = Line()
    came = tickets(0, 3, 1, 2, 3)
    line.add(came)
    line.hear()
    line.drop({came[1], came[2]})
    assert all_of(line) == [came[4], came[3], came[0]]


def test_all_are_let_go_of_heard_or_not():
    line = Line()
    heard, came = tickets(0, 0)
    line.add([heard])
    line.hear()
    line.add([came])
    assert sorted(map(id, line.clear())) == sorted(map(id, [heard, came]))
    assert (len(line), line.unheard) == (0, 0)

"""Tables of figures are complete, however narrow what they are shown on."""

import io

import pytest
from rich.console import Console

from eagle.bench.report import Setting
from eagle.cli import console
from eagle.cli.bench.figures import show

TABLES = [
    [
        ["", "ms/cycle", "over plain", "over hf-assisted-ngram"],
        ["eagle-reference", "1234.56", "1.68 (1.55-1.86)", "90.98 (68.70-111.03)"],
    ],
]


@pytest.fixture
def shown(monkeypatch):
    def print_(width, *, terminal):
        text = io.StringIO()
        to = Console(file=text, width=width, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(console, "out", to)
        show(
            Setting("a pair", "a CPU", "bfloat16", "", "eagle bench", {}),
            "3e10 bytes a second",
            TABLES,
        )
        return text.getvalue()

    return print_


@pytest.mark.parametrize("width", [20, 60, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_figure_is_cut_off(shown, terminal, width):
    text = shown(width, terminal=terminal)
    assert "…" not in text
    for word in (word for row in TABLES[0] for cell in row for word in cell.split()):
        assert word in text


def test_a_file_gets_one_line_for_each_row(shown):
    lines = [line for line in shown(20, terminal=False).splitlines() if "eagle-reference" in line]
    assert len(lines) == 1
    assert lines[0].split() == [word for cell in TABLES[0][1] for word in cell.split()]


def test_cells_of_a_narrow_terminal_take_several_lines(shown):
    text = shown(60, terminal=True)
    line = next(line for line in text.splitlines() if "eagle-reference" in line)
    assert "111.03" not in line
    assert max(map(len, text.splitlines())) <= 60

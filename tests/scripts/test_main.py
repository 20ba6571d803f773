"""The table is short and comes last, and the exit status says whether to look at it."""

from argparse import Namespace

import pytest

from check_gpu.conduct import Side
from check_gpu.figures import Record
from check_gpu.main import main, report
from check_gpu.plan import prompts_of

CASES = [
    f"{shape}/{spec}/b{batch}/t{temperature}"
    for shape in ("135m", "llama2-7b")
    for spec in ("eagle-reference", "plain")
    for batch in (1, 8, 32)
    for temperature in (0, 1)
]
SCREEN = 12_000


def record(factor=1.0, **changes):
    figures = {
        f"{case}/{kind}": [factor, 1.001 * factor, 0.999 * factor]
        for case in CASES
        for kind in ("cycle_ms", "pass_ms", "tau", "tokens_s", "read_ms", "draft_ms")
    }
    found = {"passed": 300, "skipped": 4, "failed": [], "not run in time": []}
    return Record(**({"hardware": "H100", "figures": figures, "tests": found} | changes))


@pytest.fixture
def reported(tmp_path):
    def make(now, then=None, other=None, *, keep=False):
        file = tmp_path / "gpu.json"
        if then is not None:
            then.write(file)
        sides = [Side("here", tmp_path, now)]
        sides += [] if other is None else [Side("beside", tmp_path, other)]
        lines, status = report(sides, Namespace(figures=file, record=keep))
        return "\n".join(lines), status, file

    return make


def test_figures_that_are_as_they_were_are_nothing_to_complain_of(reported):
    text, status, _ = reported(record(), record())
    assert status == 0
    assert "144 same" in text


def test_what_got_worse_is_named_at_the_end(reported):
    now = record()
    now.figures["llama2-7b/plain/b8/t1/cycle_ms"] = [1.2, 1.2, 1.2]
    text, status, _ = reported(now, record())
    assert status == 1
    assert text.splitlines()[-1].split(":")[0] == "  WORSE llama2-7b/plain/b8/t1/cycle_ms"
    now.figures["135m/plain/b1/t0/cycle_ms"] = [1.1, 1.1, 1.1]
    text, _, _ = reported(now, record())
    assert "135m" in text.splitlines()[-1], "what changed most comes first"


def test_a_failed_test_is_named(reported):
    tests = {"passed": 1, "skipped": 0, "failed": ["tests/gpu/test_x.py::test_y"]}
    text, status, _ = reported(record(tests=tests | {"not run in time": []}), record())
    assert status == 1
    assert "FAILED tests/gpu/test_x.py::test_y" in text


def test_the_worst_run_of_all_still_fits_on_a_screen(reported):
    names = [f"tests/{'long/' * 20}test_{n}" for n in range(300)]
    tests = {"passed": 0, "skipped": 0, "failed": names, "not run in time": names[:41]}
    missing = {f"{case} (round)": "RuntimeError: " + "CUDA error " * 40 for case in CASES}
    for other in (None, record()):
        now = record(9.87654, tests=tests, missing=missing)
        text, status, _ = reported(now, record(1.23456), other)
        assert status == 1
        assert len(text) < SCREEN
        assert "WORSE" in text
        assert "more" in text


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (None, "no figures are recorded"),
        (record(hardware="H200"), "the recorded figures are of H200"),
        (record(work="other"), "other prompts"),
    ],
)
def test_without_figures_to_compare_with_nothing_is_worse(reported, then, reason):
    text, status, _ = reported(record(2.0), then)
    assert status == 0
    assert reason in text
    assert "WORSE" not in text


def test_other_versions_are_told(reported):
    text, status, _ = reported(
        record(versions={"torch": "2.12", "triton": "3.6"}),
        record(versions={"torch": "2.11", "triton": "3.6"}),
    )
    assert status == 0
    assert "torch 2.11 -> 2.12" in text
    assert "triton" not in text


def test_damaged_figures_are_named_and_cost_no_result(reported, tmp_path):
    (tmp_path / "gpu.json").write_text("{")
    text, status, _ = reported(record())
    assert status == 0
    assert "is not JSON" in text
    assert "144 new" in text


def test_recording_keeps_what_was_found(reported):
    _, _, file = reported(record(2.0), record(), keep=True)
    assert record().tests
    assert Record.read(file) == record(2.0, tests={})
    text, _, file = reported(Record(hardware="H100", tests=record().tests), keep=True)
    assert "nothing recorded" in text
    assert Record.read(file) == record(2.0, tests={})


def test_a_run_of_one_shape_misses_no_figure_of_another(reported):
    now = record()
    now.figures = {name: s for name, s in now.figures.items() if name.startswith("135m")}
    text, _, _ = reported(now, record())
    assert "72 same" in text
    assert "gone" not in text


def test_lack_of_time_is_told_and_no_fault(reported):
    text, status, _ = reported(record(missing={"passes": "no time left"}), record())
    assert status == 0
    assert "missing passes: no time left" in text
    assert reported(record(missing={"start": "ImportError: gguf"}), record())[1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "cycles,strat"], "no part 'strat'"),
        (["--beside", "nowhere"], "nowhere is no checkout"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(arguments, message, capsys, tmp_path):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_long_files_of_prompts_are_spread_over(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"turns": ["{n}", "more"]}}\n' for n in range(480)))
    assert prompts_of(file) == tuple(str(n) for n in range(0, 480, 10))
    file.write_text('{"turns": []}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: should be"):
        prompts_of(file)

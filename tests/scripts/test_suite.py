"""Which tests ran on the GPU, and the names of those that failed or did not come to their turn."""

import asyncio
import json
import os
from pathlib import Path

from check_gpu.suite import outcomes, run_suite, suite

TESTS = Path(__file__).parents[1]


def told(**what):
    return json.dumps(what)


LINES = [
    told(items=["a", "b", "c", "d"]),
    told(items=["a", "b", "c", "d"]),
    told(test="a", outcome="passed"),
    told(test="a", outcome="passed"),
    told(test="b", outcome="passed"),
    told(test="b", outcome="failed"),
    told(test="c", outcome="skipped"),
]


def test_a_test_whose_tear_down_fails_has_failed():
    found = outcomes(LINES, complete=True)
    assert found == {"passed": 1, "skipped": 1, "failed": ["b"], "not run in time": []}


def test_a_killed_run_names_what_it_did_not_come_to():
    found = outcomes([*LINES, '{"test": "d", "outc'], complete=False)
    assert found["failed"] == ["b"]
    assert found["not run in time"] == ["d"]


def test_a_file_that_cannot_be_imported_is_a_failure():
    found = outcomes([told(test="tests/gpu/test_x.py", outcome="failed")], complete=True)
    assert found["failed"] == ["tests/gpu/test_x.py"]


def test_all_that_uses_a_gpu_is_run_and_the_folder_for_it_first():
    files = suite(TESTS)
    gpu = [file for file in files if file.startswith("tests/gpu/")]
    assert gpu
    assert files[: len(gpu)] == gpu
    assert "tests/plugins/attention/test_triton.py" in files
    assert "tests/kernels/test_few_rows.py" in files
    assert "tests/spec/test_document.py" not in files


def test_what_there_was_no_time_for_is_run_later_and_counted_with_the_rest(tmp_path):
    folder, out = tmp_path / "checkout", tmp_path / "out"
    (folder / "tests" / "gpu").mkdir(parents=True)
    out.mkdir()
    (folder / "tests" / "gpu" / "test_a.py").write_text(
        "def test_one(): assert False\ndef test_two(): pass\ndef test_three(): assert False\n"
    )
    names = [f"tests/gpu/test_a.py::test_{name}" for name in ("one", "two", "three")]
    before = [told(items=names), told(test=names[0], outcome="passed")]
    (out / "tests.told").write_text("\n".join(before) + "\n")
    env = dict(os.environ) | {"PYTHONPATH": ""}
    found = asyncio.run(run_suite(folder, env, out, 60.0, "cpu", late=names[1:]))
    assert found["failed"] == [f"{names[2]}: assert False"]
    assert found == {"passed": 2, "skipped": 0, "failed": found["failed"], "not run in time": []}
    assert "test_three" in (out / "tests-late.log").read_text()

"""Figures are kept whole, and read back however little there is."""

import pytest

from check_gpu.figures import Record, middle


def test_what_is_written_is_read_back(tmp_path):
    record = Record("H100", {"torch": "2.11"}, "abc", "123", missing={"start": "no time left"})
    record.add("135m/plain/b1/t0/cycle_ms", 0.8612345, 0.87)
    record.add("start/first_s", 8.5)
    record.write(tmp_path / "new" / "gpu.json")
    assert Record.read(tmp_path / "new" / "gpu.json") == record
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gpu.json"]


def test_a_run_that_has_found_nothing_yet_is_a_file_too(tmp_path):
    Record().write(tmp_path / "gpu.json")
    assert Record.read(tmp_path / "gpu.json") == Record()


def test_a_partial_file_of_another_version_is_read_as_far_as_it_goes(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(
        '{"hardware": "H100", "of another version": 1, '
        '"figures": {"a/cycle_ms": [1, 2], "a/unheard_of": [1], "b/tau": []}}'
    )
    record = Record.read(file)
    assert (record.hardware, record.work) == ("H100", "")
    assert record.figures == {"a/cycle_ms": [1.0, 2.0]}


@pytest.mark.parametrize("text", ["", '{"figures": {"a/tau": [1', "[]", '{"figures": 3}'])
def test_a_damaged_file_is_named(tmp_path, text):
    file = tmp_path / "gpu.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"gpu\.json"):
        Record.read(file)


def test_a_kind_that_nobody_described_is_refused_where_it_is_made():
    with pytest.raises(KeyError, match="warmth"):
        Record().add("135m/plain/warmth", 1.0)


def test_the_middle_of_few_samples():
    assert middle([3.0]) == (3.0, 3.0, 3.0)
    assert middle([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)

import errno
import json
import os

import pytest

from eagle.train.data.ledger import Ledger


def test_lines_come_back_in_their_order(tmp_path):
    with Ledger(tmp_path / "a.jsonl") as ledger:
        for number in range(3):
            ledger.add({"n": number, "text": "ä\u2028\n"})
        assert [line["n"] for line in ledger] == [0, 1, 2]
    with Ledger(tmp_path / "a.jsonl") as ledger:
        ledger.add({"n": 3})
        assert [line["n"] for line in ledger] == [0, 1, 2, 3]


def test_a_line_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    with Ledger(tmp_path / "a.jsonl") as ledger:
        ledger.add({"n": 1})
        assert json.loads((tmp_path / "a.jsonl").read_text()) == {"n": 1}


def test_a_line_that_was_cut_off_is_removed_wherever_it_was_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    with Ledger(path) as ledger:
        ledger.add({"n": 1})
        ledger.add({"n": 2})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with Ledger(path) as ledger:
            found = [line["n"] for line in ledger]
            assert found == [1][: content[:size].count(b"\n")]
            ledger.add({"n": 2})
            assert [line["n"] for line in ledger] == [*found, 2]


def test_a_disk_that_takes_only_part_of_a_line_is_full(tmp_path, monkeypatch):
    with Ledger(tmp_path / "a.jsonl") as ledger:
        ledger.add({"n": 1})
        whole = ledger._file

        class Full:
            def write(self, content):
                return whole.write(content[:3])

            def close(self):
                whole.close()

        monkeypatch.setattr(ledger, "_file", Full())
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            ledger.add({"n": 2})
    with Ledger(tmp_path / "a.jsonl") as ledger:
        assert [line["n"] for line in ledger] == [1]

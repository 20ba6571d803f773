import json
import sys
from types import SimpleNamespace

import pytest

from eagle.errors import DataError
from eagle.train.data.sources import Passage, read_sources
from eagle.train.spec.config import SourceSpec

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SAID = (("user", "a"), ("assistant", "b"))


def read(path, **settings):
    return list(read_sources([SourceSpec(path=str(path), **settings)]))


def texts(path, **settings):
    return [one.text for one in read(path, **settings)]


def write_arrow(path, rows, stream=True):
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


def write_text(path, *words):
    pq.write_table(pa.Table.from_pylist([{"text": word} for word in words]), path)


def saved(folder, *words):
    """Write what `Dataset.save_to_disk` of the library `datasets` writes."""
    folder.mkdir(parents=True)
    write_arrow(folder / "data-00000-of-00001.arrow", [{"text": word} for word in words])
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"})
    )
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_reads_conversations_from_parquet(tmp_path, column):
    path = tmp_path / "talk.parquet"
    pq.write_table(pa.Table.from_pylist([{column: TALK, "source": "x"}] * 600), path)
    found = read(path)
    assert len(found) == 600
    assert {one.messages for one in found} == {SAID}
    assert len({one.group for one in found}) == 600


@pytest.mark.parametrize("stream", [True, False])
def test_reads_arrow(tmp_path, stream):
    write_arrow(tmp_path / "talk.arrow", [{"id": "x_1", "messages": TALK}], stream)
    (one,) = read(tmp_path / "talk.arrow")
    assert (one.group, one.messages) == ("x", SAID)


def test_reads_turns_that_are_kept_by_key(tmp_path):
    write_arrow(
        tmp_path / "a.arrow", [{"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}]
    )
    assert read(tmp_path / "a.arrow")[0].messages == SAID


def test_rows_of_two_kinds_may_stand_in_one_table(tmp_path):
    path = tmp_path / "both.parquet"
    rows = [{"text": "hi", "messages": None}, {"text": None, "messages": TALK}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = read(path)
    assert isinstance(first, Passage)
    assert second.messages == SAID


def test_reads_a_folder_that_datasets_saved(tmp_path):
    saved(tmp_path / "one", "a", "b")
    write_arrow(tmp_path / "one" / "cache-123.arrow", [{"text": "not a part of it"}])
    assert texts(tmp_path / "one") == texts(tmp_path / "one", split="train") == ["a", "b"]
    with pytest.raises(DataError, match=r"has no split 'test', but train"):
        read(tmp_path / "one", split="test")


def test_reads_the_split_of_a_folder_that_datasets_saved(tmp_path):
    for split in ("train", "test"):
        saved(tmp_path / "all" / split, split)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(tmp_path / "all") == ["train"]
    assert texts(tmp_path / "all", split="test") == ["test"]
    with pytest.raises(DataError, match=r"has no split 'dev', but test, train"):
        read(tmp_path / "all", split="dev")


def test_reads_the_files_of_a_folder_in_order(tmp_path):
    write_text(tmp_path / "b.parquet", "b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.jsonl").write_text('{"text": "c"}')
    (tmp_path / "README.md").write_text("not data")
    assert texts(tmp_path) == ["a", "b", "c"]


def test_chooses_files_by_the_name_of_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000", "retrained"):
        write_text(tmp_path / "data" / f"{name}.parquet", name)
    assert texts(tmp_path) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert texts(tmp_path, split="test") == ["test-00000"]
    with pytest.raises(DataError, match="no file of it is named for the split 'dev'"):
        read(tmp_path, split="dev")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no file that ends with \.parquet, \.arrow"):
        read(tmp_path)


def test_a_table_without_a_column_to_read_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "answer": "b"}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the columns prompt, answer; one of them should be"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b"ARROW1\0\0 cut off"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        read(tmp_path / name)


def test_a_damaged_list_of_files_is_refused(tmp_path):
    saved(tmp_path / "one", "a")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json is not one of `datasets`"):
        read(tmp_path / "one")


def test_another_file_is_no_dataset(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"a dataset's files end with \.parquet"):
        read(tmp_path / "a.csv", format="dataset")


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write_text(tmp_path / "a.parquet", "a")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path in (tmp_path / "a.parquet", "owner/name"):
        with pytest.raises(DataError, match=r"pip install 'eagle-decoding\[datasets\]'"):
            read(path)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library `datasets`, and how it was called."""
    calls = []

    def load_dataset(name, subset, **options):
        calls.append((name, subset, options))
        if name == "owner/none":
            raise FileNotFoundError("Dataset 'owner/none' doesn't exist on the Hub")
        return iter([{"messages": TALK, "text": None, "prompt": "x"}, {"text": "t"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_reads_a_dataset_of_the_hub(hub):
    talk, text = read("owner/name", subset="big", revision="v1")
    assert talk.messages == SAID
    assert text == Passage("owner/name:1", "t")
    assert hub == [("owner/name", "big", {"split": "train", "revision": "v1", "streaming": True})]


def test_a_dataset_that_is_not_there_is_one_sentence(hub):
    with pytest.raises(DataError, match=r"'owner/none' is no file here.*doesn't exist on the Hub"):
        read("owner/none", split="test")
    assert hub[0][2]["split"] == "test"


@pytest.mark.parametrize("path", ["data/talk.jsonl", "none", "a/b/c"])
def test_a_path_that_is_no_name_on_the_hub_is_not_asked_for_there(hub, path):
    with pytest.raises(DataError, match="there is no file"):
        read(path)
    assert hub == []

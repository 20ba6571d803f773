import numpy as np
import pytest

from eagle.errors import DataError
from eagle.train.data.corpus import Corpus
from eagle.train.data.template import Text


def test_comes_back_from_its_file(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    loaded = Corpus.load(tmp_path / "text.npz")
    assert loaded.digest == corpus.digest
    assert loaded.tokens.dtype == np.uint16
    assert np.array_equal(loaded.groups, corpus.groups)
    assert loaded.info["vocab"] == 64


def test_large_vocabularies_take_four_bytes():
    text = Text("a", np.array([70_000, 1]), np.array([True, True]))
    assert Corpus.of([text], 100_000).tokens.tolist() == [70_000, 1]


def test_digest_sees_tokens_answers_and_ends(corpus, make_corpus):
    other = make_corpus()
    other.answers[0] = True
    assert other.digest != corpus.digest


def test_held_out_groups_stay_together_and_do_not_move():
    texts = [Text(f"g{i // 3}", np.array([1, 2]), np.array([True, True])) for i in range(300)]
    few, many = Corpus.of(texts[:150], 64), Corpus.of(texts, 64)
    training, held = many.split(0.2, 0)
    assert 20 < len(held) < 120
    assert sorted([*training, *held]) == list(range(300))
    assert {i // 3 for i in held}.isdisjoint(i // 3 for i in training)
    assert few.split(0.2, 0)[1].tolist() == [i for i in held if i < 150]
    assert few.split(0.2, 1)[1].tolist() != few.split(0.2, 0)[1].tolist()


def test_no_share_holds_nothing_out(corpus):
    assert len(corpus.split(0.0, 0)[1]) == 0


def test_no_text_is_an_empty_dataset():
    with pytest.raises(DataError, match="the dataset is empty"):
        Corpus.of([], 64)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello", b"\x93NUMPY", None])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "text.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="not packed text") as refused:
        Corpus.load(path)
    assert "pickle" not in str(refused.value), "nobody is told how to run what is in a file"


def test_cut_off_file_is_refused(tmp_path, corpus):
    path = tmp_path / "text.npz"
    corpus.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="not packed text"):
        Corpus.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no packed text"):
        Corpus.load(tmp_path / "none.npz")


def test_failed_write_leaves_the_old_file(tmp_path, corpus, monkeypatch):
    path = tmp_path / "text.npz"
    path.write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="No space left"):
        corpus.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["text.npz"]
    assert path.read_text() == "old"

import json
import sys
import threading

import pytest

from eagle.errors import EagleError, NumericalError, SpecError
from eagle.train.run.journal import Journal
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_behind_the_last_checkpoint_are_taken_out(tmp_path):
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 10) as journal:
        for step in range(1, 6):
            journal.write("train", step, loss=1.0 / step)
    with path.open("a") as file:
        file.write('{"kind": "train", "ste')
    with Journal(path, 3, 10) as journal:
        journal.write("train", 4, loss=float("nan"))
    assert [(line["step"], line["loss"]) for line in lines(path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, None),
    ]


def test_what_was_written_before_is_not_written_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 10) as journal:
        journal.write("evaluation", 3, tau=1.0)
    with Journal(path, 3, 10) as journal:
        journal.write("evaluation", 3, tau=2.0)
        journal.write("train", 3, loss=1.0)
    assert [(line["kind"], line.get("tau")) for line in lines(path)] == [
        ("evaluation", 1.0),
        ("train", None),
    ]


def test_a_failed_rewrite_leaves_the_old_log(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 10) as journal:
        journal.write("train", 1, loss=1.0)
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        Journal(path, 1, 10)
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    assert path.read_text() == before


def test_a_disk_that_is_full_is_told_with_its_file(tmp_path, monkeypatch):
    with Journal(tmp_path / "log.jsonl", 0, 10) as journal:
        monkeypatch.setattr(journal, "_path", tmp_path / "gone" / "log.jsonl")
        with pytest.raises(EagleError, match=r"could not be written to .*gone.*Make room"):
            journal.write("train", 1, loss=1.0)


@pytest.fixture
def full(monkeypatch):
    """Let TensorBoard's thread find a full disk after some records."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, room = RecordWriter.write, iter(range(100))

    def call(records):
        def once(self, data):
            if next(room) >= records:
                raise OSError(28, "No space left on device")
            write(self, data)

        monkeypatch.setattr(RecordWriter, "write", once)

    return call


@pytest.mark.parametrize("records", [0, 1, 3, 4])
def test_tensorboards_full_disk_is_one_sentence_and_no_traceback(tmp_path, full, capfd, records):
    """The first record is the file's own; the last one is found at the end alone."""
    full(records)
    hook = threading.excepthook

    def run():
        with Journal(tmp_path / "log.jsonl", 0, 10, tensorboard=True) as journal:
            for step in (1, 2, 3, 4):
                journal.write("train", step, loss=1.0)

    with pytest.raises(EagleError, match=r"written to \S*/tensorboard: No space left .*Make room"):
        run()
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_a_full_disk_at_the_end_does_not_hide_what_went_wrong_before(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    def full():
        raise OSError(28, "No space left on device")

    def run():
        with Journal(tmp_path / "log.jsonl", 0, 10, tensorboard=True) as journal:
            monkeypatch.setattr(journal._board._writer, "close", full)
            raise NumericalError("the loss is not a number")

    with pytest.raises(NumericalError):
        run()


def test_another_threads_error_is_shown_while_a_run_logs(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda thrown: seen.append(thrown.exc_value))

    def fail():
        raise OSError(5, "of another thread")

    with Journal(tmp_path / "log.jsonl", 0, 10, tensorboard=True):
        other = threading.Thread(target=fail)
        other.start()
        other.join()
    assert [error.strerror for error in seen] == ["of another thread"]


@pytest.fixture
def scalars():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        found = EventAccumulator(str(folder)).Reload()
        return {
            tag: [(event.step, event.value) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }

    return read


def test_tensorboard_has_every_figure_of_the_log(tmp_path, scalars):
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 10, tensorboard="auto") as journal:
        journal.write("train", 1, loss=0.5)
        journal.write(
            "evaluation", 2, tau={"chain 3": {"held-out": 2.0}}, n_alpha={"a": [0.5, 0.25]}
        )
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.5)],
        "evaluation/tau/chain 3/held-out": [(2, 2.0)],
        "evaluation/n_alpha/a/0": [(2, 0.5)],
        "evaluation/n_alpha/a/1": [(2, 0.25)],
    }


def test_tensorboard_forgets_what_a_killed_run_wrote_behind_its_checkpoint(tmp_path, scalars):
    path = tmp_path / "log.jsonl"
    with Journal(path, 0, 10, tensorboard=True) as journal:
        for step in range(1, 5):
            journal.write("train", step, loss=1.0)
    with Journal(path, 2, 10, tensorboard=True) as journal:
        journal.write("train", 3, loss=2.0)
    assert scalars(tmp_path / "tensorboard")["train/loss"] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_tensorboard_may_be_missing_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("eagle.train.run.board.find_spec", lambda _: None)
    Journal(tmp_path / "log.jsonl", 0, 10, tensorboard="auto")
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    spec = load_train_spec("tiny", ["tensorboard=true", f"output={tmp_path / 'out'}"])
    with pytest.raises(SpecError, match=r"pip install 'eagle-decoding\[tensorboard\]'"):
        train(spec)
    assert not (tmp_path / "out").exists()

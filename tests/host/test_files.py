"""Files are there whole or not at all, where they were meant to be."""

import io
import os
import resource
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eagle.host.files import is_sealed, replacing, seal, write_text


def test_the_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    write_text(path, "n\u00e9w")
    assert path.read_text(encoding="utf-8") == "n\u00e9w"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_whatever_happens_the_old_file_stays(tmp_path, shared):
    path = tmp_path / "figures.json"
    path.write_text("old")

    def fail():
        with replacing(path, shared=shared) as place:
            place.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def write_tensors(path, text):
    with replacing(path) as place:
        save_file({"x": torch.zeros(len(text))}, place)


@pytest.mark.parametrize("write", [write_text, write_tensors])
def test_a_full_disk_names_the_file(tmp_path, write):
    path = tmp_path / "figures.json"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "none" / "a.json", "x")
    assert caught.value.filename == str(tmp_path / "none" / "a.json")


def test_a_link_stays_one(tmp_path):
    real, link = tmp_path / "real.svg", tmp_path / "link.svg"
    real.write_text("old")
    link.symlink_to("real.svg")
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(path, "said")
        assert os.read(reader, 10) == b"said"
    finally:
        os.close(reader)
    assert path.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_device_without_room_is_named_and_stays():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_text(Path("/dev/full"), "x")
    assert Path("/dev/full").exists()


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / ".a.json.writing").write_text("half")
    write_text(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def archive_of(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("code", text)
    return file.getvalue()


def test_a_sealed_archive_is_one_and_tells_whether_it_was_damaged(tmp_path):
    path, whole = tmp_path / "package", seal(archive_of("x = 1"))
    path.write_bytes(whole)
    assert is_sealed(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("code") == b"x = 1"
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        assert not is_sealed(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not is_sealed(path)
    path.write_bytes(archive_of("x = 1"))
    assert not is_sealed(path)

"""A process that is killed leaves nothing running, and no files."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from eagle.host.guard import guarded

# A compiler that starts another program, as they do, and tells which.
PARENT = """
import subprocess, sys, time
from pathlib import Path
from eagle.host import guarded
folder = Path(sys.argv[1])
with guarded(folder):
    (folder / "header").write_bytes(b"x" * 1000)
    subprocess.Popen(["sh", "-c", "sleep 300 & echo $!; echo $$; wait"])
    time.sleep(300)
"""


def wait_for(condition):
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_has_started_ends_with_it(tmp_path, way):
    folder = tmp_path / "staging"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True
    )
    started = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(psutil.pid_exists, started))
    parent.send_signal(way)
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not any(map(_is_running, started)))
    assert wait_for(lambda: not folder.exists())


def _is_running(process):
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_ends_well_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "before")
    with guarded(tmp_path):
        (tmp_path / "package").touch()
        assert os.environ["TMPDIR"] == str(tmp_path)
        left = subprocess.Popen(["sleep", "300"])
    try:
        assert os.environ["TMPDIR"] == "before"
        assert (tmp_path / "package").exists()
        assert left.poll() is None
    finally:
        left.kill()
        left.wait()

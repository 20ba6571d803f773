"""Kernels compile for GPUs that are not here, and fit into their shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernels_fit_the_gpus_that_they_are_chosen_for(tmp_path):
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "plugins")]
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 25
    assert [case for *case, needed, room in found if not 0 < needed <= room] == []

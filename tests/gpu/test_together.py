"""A target over two GPUs: same answers as on one, and processes that end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eagle
from eagle import Decoder
from eagle.target.direct import ASKED
from tests.target.test_together import PROMPTS, pair, spec_of  # noqa: F401 - a fixture

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device, or none")
SAID = """
import json, os, sys
import torch
import torch.distributed as dist
from eagle import Decoder, DecoderSpec

spec = DecoderSpec.model_validate_json(open(sys.argv[1]).read())
decoder = Decoder.from_spec(spec)
prompts = json.loads(sys.argv[2])
results = decoder.generate(prompts, max_new_tokens=40, ignore_eos=True)
together = decoder.target.together
x = torch.full((3, 64), 1.0 + together.rank, device=decoder.target.device)
torch.ops.eagle.add_up(x)
assert (x == 3).all(), x
if together.main:
    found = {
        "tokens": [result.tokens for result in results],
        "graph": decoder._runtime.graph and decoder._runtime.captured > 0,
        "direct": together.direct is not None,
    }
    print("FOUND", json.dumps(found), flush=True)
"""


@TWO
@pytest.mark.parametrize("asked", ["0", "1"])
def test_two_devices_say_what_one_says_and_their_processes_end(pair, tmp_path, asked):  # noqa: F811
    spec = spec_of(pair, device="cuda:0")
    wanted = Decoder.from_spec(spec).generate(PROMPTS, max_new_tokens=40, ignore_eos=True)
    (tmp_path / "said.py").write_text(SAID)
    spec = spec_of(pair, tp_plan="auto")
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    root = Path(eagle.__file__).parents[1]
    paths = [str(root), str(root / "plugins"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, tmp_path / "said.py", tmp_path / "spec.json", json.dumps(PROMPTS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), ASKED: asked},
        capture_output=True,
        text=True,
        timeout=240,  # they ended never, where graphs that captured NCCL were kept
    )
    assert done.returncode == 0, done.stderr
    line = next(one for one in done.stdout.splitlines() if one.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["tokens"] == [list(result.tokens) for result in wanted]
    assert found["graph"]
    assert found["direct"] == (asked == "1" and torch.cuda.can_device_access_peer(0, 1))

"""The command line of `scripts/check-vllm`: options in, a table and an exit status out."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from check_vllm.environment import made
from eagle import Decoder
from eagle.assets import model_folder

__all__ = ["Outcome", "compared", "main", "method_of"]

_HERE = Path(__file__).resolve().parent
_PROMPTS = _HERE.parent / "check_gpu" / "prompts.jsonl"
_APART = 0.05  # of tau; rounding in bfloat16 lets texts part, and few prompts average little


@dataclass(frozen=True)
class Outcome:
    """What a head gave, served by both.

    Attributes:
        head: as it was named.
        method: what vLLM calls it.
        version: of vLLM.
        theirs: tau in vLLM, tokens for each pass of the target.
        ours: the same here.
        alike: texts that are the same.
        texts: how many there are.
    """

    head: str
    method: str
    version: str
    theirs: float
    ours: float
    alike: int
    texts: int

    @property
    def apart(self) -> float:
        """Their tau over ours, less one."""
        return self.theirs / self.ours - 1

    @property
    def held(self) -> bool:
        """Whether vLLM runs the head as what it is."""
        return abs(self.apart) <= _APART


def method_of(exported: Path) -> str:
    """Return what vLLM calls the method of an exported head."""
    kinds = json.loads((exported / "config.json").read_text())["architectures"]
    return "eagle3" if any("Eagle3" in kind for kind in kinds) else "eagle"


def compared(
    head: str, method: str, served: dict[str, Any], texts: list[list[int]], cycles: list[int]
) -> Outcome:
    """Put side by side what vLLM and this library made of a head.

    Args:
        head: its name.
        method: what vLLM calls it.
        served: what `check_vllm.served` printed.
        texts: tokens of each answer here.
        cycles: cycles of each answer here.
    """
    # The first token of an answer comes with its prompt, before the first cycle.
    ours = sum(len(text) - 1 for text in texts) / sum(cycles)
    alike = sum(one == other for one, other in zip(texts, served["texts"], strict=True))
    theirs = 1 + served["accepted"] / served["drafts"]
    return Outcome(head, method, served["version"], theirs, ours, alike, len(texts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _options(arguments)
    lines = options.prompts.read_text().splitlines()[: options.limit]
    prompts = [json.loads(line)["turns"][0] for line in lines if line.strip()]
    target = options.target or str(model_folder())
    told = ["--target", options.target] if options.target else []
    python = made(options.env.resolve())
    outcomes = []
    for head in options.head or ["auto"]:
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "head"
            command = ["export", head, str(exported), "--to", "vllm", *told]
            subprocess.run([sys.executable, "-m", "eagle.cli", *command], check=True)
            method = method_of(exported)
            work = {
                "target": target,
                "head": str(exported),
                "method": method,
                "depth": options.depth,
                "tokens": options.max_new_tokens,
                "prompts": prompts,
            }
            served = _served(python, Path(folder), work)
        here = [f"target.model={json.dumps(options.target)}"] if options.target else []
        texts, cycles = _ours([f"head.weights={head}", *here], options, prompts)
        outcomes.append(compared(head, method, served, texts, cycles))
    Console().print(_table(outcomes, options.depth))
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check-vllm",
        description="Export heads, serve them with vLLM on a CPU, and compare how many tokens each "
        "pass of the target gives with the same chain here: greedy, bfloat16, one at a time.",
        epilog=f"exit status: 0 within {_APART:.0%}, 1 further apart",
    )
    add = parser.add_argument
    add("--head", action="append", metavar="HEAD", help="a folder, a Hub id; auto is the shipped")
    add("--target", metavar="FOLDER", help="the target (default: the embedded one)")
    add("--prompts", type=Path, default=_PROMPTS, metavar="FILE", help="JSONL with turns")
    add("--limit", type=int, default=20, metavar="N", help="prompts to use (default 20)")
    add("--max-new-tokens", type=int, default=64, metavar="N")
    add("--depth", type=int, default=3, metavar="N", help="of the chain (default 3)")
    add("--env", type=Path, default=Path("build/vllm"), metavar="DIR", help="where vLLM is kept")
    return parser.parse_args(arguments)


def _served(python: Path, folder: Path, work: dict[str, Any]) -> dict[str, Any]:
    """Return what vLLM made of the work.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    file = folder / "work.json"
    file.write_text(json.dumps(work))
    command = [str(python), str(_HERE / "served.py"), str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ours(
    pair: list[str], options: argparse.Namespace, prompts: list[str]
) -> tuple[list[list[int]], list[int]]:
    tokens = options.max_new_tokens
    overrides = [
        *pair,
        "target.dtype=bfloat16",
        "head.lm_head=exact",  # vLLM drafts with the LM head as it is
        f"tree.depth={options.depth}",
        "runtime.max_length=1024",
    ]
    decoder = Decoder.from_spec("chain", overrides)
    found = [decoder.generate(prompt, max_new_tokens=tokens) for prompt in prompts]
    return [list(one.tokens) for one in found], [one.stats.cycles for one in found]


def _table(outcomes: Sequence[Outcome], depth: int) -> Table:
    table = Table(title=f"tau of a chain of {depth}, greedy, bfloat16")
    for column in ("head", "method", "vLLM", "tau there", "tau here", "apart", "same texts"):
        table.add_column(column, justify="left" if column in ("head", "method") else "right")
    for one in outcomes:
        row = (one.head, one.method, one.version, f"{one.theirs:.3f}", f"{one.ours:.3f}")
        table.add_row(*row, f"{one.apart:+.1%}", f"{one.alike} of {one.texts}")
    return table

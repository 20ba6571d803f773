"""Decoders of one checkout that are timed when asked; knows how to time, not what to compare.

It is started with the checkout on PYTHONPATH, today's or an older one's, so it keeps to the public
API and to three names of `eagle.bench`; what a checkout lacks is answered as missing. Each line of
its input is a question in JSON, each line of its output the answer.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

Case = tuple[str, int, float]
"""Spec, requests at once, temperature."""

_BRIEF = 4  # tokens of the answers that only make sure that every length of prompt was captured
_LEAST = 0.4  # seconds that a round is timed for, so that no hiccup of the host is a figure
_RISE = 0.15  # seconds of work before it
_ROOM = 32  # tokens of a text that are left for the last tree
_PACKAGES = ("eagle-decoding", "torch", "transformers", "triton")


class Timed:
    """Decoders for one target, one for each spec and number of requests.

    Args:
        asked: ``shape`` (a name, ``tiny`` for the tiny pair, or None for the embedded model),
            ``specs``, ``batches``, ``device``, ``prompts`` (a list of texts), ``tokens`` (new ones
            of each answer), ``length`` (the longest text).
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self.decoders: dict[tuple[str, int], Any] = {}
        if asked["shape"] == "tiny":
            self._make_tiny()
        else:
            self._make()
        self.target = next(iter(self.decoders.values())).target
        self.prompts = self._read(asked["prompts"])

    def _settings(self, batch: int) -> list[str]:
        return [
            f"target.device={self._asked['device']}",
            f"runtime.max_batch={batch}",
            f"runtime.max_length={self._asked['length']}",
        ]

    def _make(self) -> None:
        from eagle import load_spec
        from eagle.bench.shapes import find_shape
        from eagle.bench.subjects import prepare

        names = {}
        specs = []
        for batch in self._asked["batches"]:
            for name in self._asked["specs"]:
                unique = f"{name} for {batch}"
                names[unique] = (name, batch)
                spec = load_spec(name, self._settings(batch))
                specs.append(spec.model_copy(update={"name": unique}))
        shape = self._asked["shape"]
        subjects = prepare(specs, find_shape(shape) if shape else None)
        self.decoders = {names[unique]: each for unique, each in subjects.decoders.items()}

    def _make_tiny(self) -> None:
        import torch

        from eagle import Decoder, load_spec
        from eagle.testing import tiny_pair

        torch.set_num_threads(1)  # on tensors as small as these, threads only wait for each other
        target, folder = tiny_pair()
        for batch in self._asked["batches"]:
            for name in self._asked["specs"]:
                spec = load_spec(name, self._settings(batch))
                if spec.head.name != "none":
                    head = type(spec.head)(name=spec.head.name, weights=str(folder))
                    spec = spec.model_copy(update={"head": head})
                self.decoders[name, batch] = Decoder.from_spec(spec, target=target)

    def _read(self, texts: list[str]) -> list[Any]:
        """Return the prompts that leave room for an answer, as the decoder takes them."""
        tokenizer = self.target.tokenizer
        room = self._asked["length"] - self._asked["tokens"] - _ROOM
        if tokenizer is None:  # the tiny pair: any ids will do
            return [[3 + byte % 60 for byte in text.encode()][:room] for text in texts]
        kept = []
        for text in texts:
            chat = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            if len(tokenizer(ids).input_ids) <= room:
                kept.append(text)
        if not kept:
            raise ValueError(f"every prompt is longer than {room} tokens")
        return kept

    def hello(self) -> dict[str, Any]:
        """Return how many prompts are used."""
        return {"prompts": len(self.prompts), "texts": len(self._asked["prompts"])}

    def _group(self, case: Case, number: int, tokens: int) -> tuple[Any, list[Any], list[Any]]:
        """Return the decoder of a case, and the prompts and parameters of one of its rounds."""
        from eagle import SamplingParams

        spec, batch, temperature = case
        places = range(number * batch, (number + 1) * batch)
        texts = [self.prompts[place % len(self.prompts)] for place in places]
        params = [
            SamplingParams(
                max_new_tokens=tokens, temperature=temperature, seed=place, ignore_eos=True
            )
            for place in places
        ]
        return self.decoders[spec, batch], texts, params

    def warm(self, case: Case, rounds: int) -> dict[str, float]:
        """Answer as the rounds will, so that all is compiled, captured and allocated."""
        started = time.perf_counter()
        for number in range(rounds):
            # A whole answer first: no graph of another length may take a compiled phase's turn.
            tokens = _BRIEF if number else self._asked["tokens"]
            decoder, texts, params = self._group(case, number, tokens)
            decoder.generate(texts, params)
        return {"seconds": time.perf_counter() - started}

    def round(self, case: Case, number: int) -> dict[str, float]:
        """Answer one group of prompts with the clock running.

        A cycle's time is that from the last prompt's first token to the end, by the cycles of the
        request that had most of them: all begin together, and slots cost the same when they idle.
        Short answers are given again, since a clock that ticks in an idle device ticks slowly.
        """
        decoder, texts, params = self._group(case, number, self._asked["tokens"])
        self._busy(decoder, texts)
        reading = decoding = 0.0
        cycles = rounds = 0
        results: list[Any] = []
        while not rounds or reading + decoding < _LEAST:
            firsts: dict[int, float] = {}
            results = []
            started = now = time.perf_counter()
            for event in decoder.stream(texts, params):
                now = time.perf_counter()
                firsts.setdefault(event.index, now)
                if event.result is not None:
                    results.append(event.result)
            read = max(firsts.values())
            reading, decoding = reading + read - started, decoding + now - read
            cycles += max(result.stats.cycles for result in results)
            rounds += 1
        tokens = rounds * sum(len(result.tokens) for result in results)
        verifications = sum(result.stats.cycles for result in results)
        found = {
            "read_ms": 1e3 * reading / rounds / len(texts),
            "tokens_s": tokens / (reading + decoding),
        }
        if verifications:
            committed = sum(sum(result.stats.accepted_per_cycle) for result in results)
            found["cycle_ms"] = 1e3 * decoding / cycles
            found["tau"] = committed / verifications
        return found

    def phases(self, case: Case) -> dict[str, float]:
        """Return what the target's pass and the drafts take of one cycle, by events within it."""
        from eagle.bench.timing import phase_times

        decoder, texts, params = self._group(case, 0, self._asked["tokens"])
        ids = [result.prompt_tokens for result in decoder.generate(texts, params)]
        found = phase_times(decoder, ids, params[0])
        names = {"verify": "pass_ms", "draft": "draft_ms"}
        return {names[phase]: found[phase] for phase in names if found.get(phase)}

    def _busy(self, decoder: Any, texts: list[Any]) -> None:
        """Let the device work until its clock has risen, and wait for it."""
        from eagle import SamplingParams

        started = time.perf_counter()
        while time.perf_counter() - started < _RISE:
            decoder.generate(texts, SamplingParams(max_new_tokens=_BRIEF, ignore_eos=True))
        if self.target.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.target.device)


def machine(device: str) -> dict[str, Any]:
    """Return the device's model and the versions of what computes, after importing all of it.

    Raises:
        RuntimeError: there is no such device.
    """
    import torch

    import eagle.cli  # noqa: F401  what a command line needs should be missing here, not later
    from eagle import Decoder  # noqa: F401

    versions = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    if device == "cpu":
        return {"hardware": f"{platform.machine()} CPU", "versions": versions}
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device; --device cpu --quick tries the rest out")
    return {"hardware": torch.cuda.get_device_name(), "versions": versions}


def main() -> None:
    """Answer questions until there are no more."""
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")

    def answer(work: Callable[[], Any]) -> Any:
        made = None
        try:
            made = work()
            found = {"ok": made.hello() if isinstance(made, Timed) else made}
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = " ".join(str(error).split())
            found = {"error": f"{type(error).__name__}: {text:.300}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()
        return made

    asked = json.loads(sys.argv[1])
    if asked.get("machine"):
        answer(lambda: machine(asked["device"]))
        return
    timed = answer(lambda: Timed(asked))
    if timed is None:
        return
    actions: dict[str, Callable[..., Any]] = {
        "warm": timed.warm,
        "round": timed.round,
        "phases": timed.phases,
    }
    for line in sys.stdin:
        question = json.loads(line)
        case = tuple(question["case"])
        answer(partial(actions[question["do"]], case, *question.get("with", [])))


if __name__ == "__main__":
    main()

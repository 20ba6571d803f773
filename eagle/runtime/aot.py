"""A target's pass compiled ahead of time: found by later processes, and loaded in no time.

Only code is kept, a few megabytes. It is handed the weights of the model at hand, packed as they
are for eager passes, so that no copy of them is made and a fine-tuned model finds it as well. One
package serves any number of tokens and of cache rows, for one slot; other passes run eagerly.
It knows where packages are kept and how they are run; `eagle.runtime.export` makes them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle.assets import cache_dir, exclusive, full_disk, notify, readable_disk_errors, staging
from eagle.cache import Step
from eagle.errors import AssetError, CompileError, EagleError, reason
from eagle.host import disk_error, guarded, is_sealed, seal
from eagle.plugin import AttentionBackend
from eagle.runtime.export import TracedPass, digest_of
from eagle.target import PassCache, Target

__all__ = ["AheadPass", "ahead", "compiler", "made"]

log = logging.getLogger("eagle.ahead")

_LOAD = """
import sys, torch
try:
    torch._C._aoti.AOTIModelPackageLoader(sys.argv[1], "model", True, 1, -1)
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
_UNPLAIN = "what is compiled ahead multiplies plain weights, and the target's are {}"
_CUT = "what is compiled ahead is for a whole target, and several processes hold this one"
_SPACE = 400_000_000  # bytes that compiling needs for a moment, most of them precompiled headers
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


def compiler() -> str | None:
    """Return the C++ compiler that code would be compiled with, or None where there is none."""
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [wanted] if wanted else ["g++", "clang++"])), None)


def made(config: Any, dtype: torch.dtype) -> list[str]:
    """Return the names of the packages that there are for targets of some sizes.

    Args:
        config: a target's text configuration.
        dtype: of its weights.
    """
    return sorted(path.stem for path in _folder().glob(f"{_sizes(config, dtype)}-*.pt2"))


def ahead(
    target: Target, attention: AttentionBackend, layers: tuple[int, ...], *, make: bool
) -> AheadPass | None:
    """Return the compiled pass, or None where none was made or can be used, the latter said.

    Args:
        target: the target, on a CPU.
        attention: the backend that passes attend through.
        layers: hidden states wanted beside the last.
        make: whether to compile where that has not been done.
    """
    if not target.plain or target.together is not None:
        if make:  # nobody compiles for weights that are somebody else's business, or for parts
            why = _UNPLAIN.format(target.precision) if not target.plain else _CUT
            log.warning("passes run uncompiled: %s", why)
        return None
    if not make and not made(target.config, target.dtype):
        return None
    found = AheadPass(target, attention, layers)
    try:
        if found.load():
            return found
        if make:
            notify("Compiling the target's pass (a minute or two, once) ...")
            found.make()
        return found if make and found.load() else None
    except EagleError as error:
        # Not the error itself: who keeps records would keep all that its traceback knows.
        log.warning("passes run uncompiled: %s", str(error))
        return None


class AheadPass:
    """Stands in for `Target.forward`, which it is where it can be, and calls otherwise.

    Args:
        target: the target.
        attention: the backend that passes attend through.
        layers: hidden states wanted beside the last.
    """

    def __init__(
        self, target: Target, attention: AttentionBackend, layers: tuple[int, ...]
    ) -> None:
        self._target, self._attention, self._layers = target, attention, layers
        self._module = TracedPass(target, attention, layers)
        self._loader: Any = None

    @property
    def path(self) -> Path:
        """Where the package is kept, if it was made."""
        sizes = _sizes(self._target.config, self._target.dtype)
        return _folder() / f"{sizes}-{self._module.digest()}.pt2"

    def load(self) -> bool:
        """Load the package; False where none was made, or where it was damaged and is removed.

        Raises:
            CompileError: it cannot be loaded, or computes something else than the model.
        """
        path = self.path
        if not path.is_file() or self._is_dropped(path):
            return False
        try:
            # What `torch._inductor` wraps, without the time that importing it takes.
            loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
            weights = self._module.weights()
            # Kept, since the package does not keep them alive.
            self._weights = {name: weights[name] for name in loader.get_constant_fqns()}
            loader.load_constants(self._weights, False, True, True)
            self._loader = loader
            self._target.probe(self._attention, self)
        except (RuntimeError, KeyError, TypeError, AttributeError, EagleError) as error:
            self._loader = None
            raise CompileError(
                f"the compiled pass {path} cannot be used: {reason(error)}"
            ) from error
        return True

    def _is_dropped(self, path: Path) -> bool:
        """Remove a package that is not as it was made; return whether that was so.

        Loading it would run it, and what is wrong with it may end the process.
        """
        try:
            if is_sealed(path):
                return False
            path.unlink()
        except OSError as error:
            raise CompileError(f"the compiled pass {path} is damaged: {error.strerror}") from error
        log.warning(
            "the compiled pass %s was damaged and is removed; `eagle compile` makes it again", path
        )
        return True

    def make(self) -> None:
        """Compile the package and keep it, if no other process has meanwhile: about a minute.

        Raises:
            CompileError: there is no compiler, or this model or backend cannot be compiled.
            AssetError: the cache folder cannot be written to, or its disk is full.
        """
        if not getattr(self._attention, "capturable", False):
            raise CompileError(
                "the attention backend reads the device on the host (not capturable)"
            )
        if not self._target.plain:
            raise CompileError(_UNPLAIN.format(self._target.precision))
        if compiler() is None:
            raise CompileError("compiling needs a C++ compiler (g++, or what CXX names)")
        path = self.path
        with (
            readable_disk_errors(path.parent, _SPACE),
            exclusive(path.parent, path.stem),
            staging(path.parent, path.stem) as folder,
        ):
            if path.is_file():
                return
            if shutil.disk_usage(folder).free < _SPACE:
                raise AssetError(full_disk(path.parent, _SPACE))
            staged = folder / path.name
            with guarded(folder):
                self._compile(staged)
                staged.write_bytes(seal(staged.read_bytes()))
                refusal = _refusal(staged)
            if refusal:
                raise CompileError(
                    f"the pass of {self._target.info.name!r} was compiled and cannot be loaded "
                    f"with PyTorch {torch.__version__}: {refusal}"
                )
            os.replace(staged, path)

    def _compile(self, staged: Path) -> None:
        try:
            self._module.package(staged)
        except Exception as error:  # of as many kinds as there are models and compilers
            if disk_error(error):
                raise
            raise CompileError(
                f"the pass of {self._target.info.name!r} cannot be compiled: "
                f"{type(error).__name__}: {reason(error)}"
            ) from error

    def __call__(
        self,
        tokens: Tensor,
        step: Step,
        cache: PassCache,
        attention: AttentionBackend,
        layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Target.forward`."""
        store = cache.store
        if (
            self._loader is None
            or store.slots != 1
            or store.pages is not None
            or step.tail.shape[1:] != (tokens.shape[1], tokens.shape[1])
            or attention is not self._attention
            or layers != self._layers
        ):
            return self._target.forward(tokens, step, cache, attention, layers)
        last, *hidden = self._loader.boxed_run(
            [
                self._target.embed(tokens),
                step.positions,
                step.rows,
                step.lengths,
                step.tail.contiguous(),
                step.lengths.new_empty(step.span),
                *store.stores,
            ]
        )
        return last, hidden


def _refusal(path: Path) -> str | None:
    """Return why a package cannot be loaded, or None; found out in a process of its own.

    Loading code runs it: what is wrong with it may end a process without an exception.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        return f"that ended a process with signal {-done.returncode}"
    return f"{done.stderr.strip():.300}" if done.returncode else None


def _folder() -> Path:
    return cache_dir() / "passes"


def _sizes(config: Any, dtype: torch.dtype) -> str:
    sizes = [getattr(config, name, None) for name in _SIZES]
    return digest_of(json.dumps([*sizes, str(dtype)], default=str).encode())[:8]

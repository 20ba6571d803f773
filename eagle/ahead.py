"""A target's pass compiled ahead of time: found by later processes, and loaded in no time.

Only code is kept, a few megabytes. It is handed the weights of the model at hand, packed as they
are for eager passes, so that no copy of them is made and a fine-tuned model finds it as well. One
package serves any number of tokens and of cache rows, for one slot; other passes run eagerly.
It knows how a pass is traced, compiled and kept; not where it is used.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eagle import bridge, cache, fusing, packing
from eagle import target as targets
from eagle.assets.cache import cache_dir, exclusive, notify, staging
from eagle.cache import Step, TreeCache
from eagle.errors import EagleError
from eagle.fusing import products
from eagle.packing import PackedLinear
from eagle.roles import AttentionBackend
from eagle.surroundings import instructions, versions
from eagle.target import Target

__all__ = ["AheadError", "AheadPass", "ahead", "compiler", "made"]

log = logging.getLogger("eagle.ahead")

_FORMAT = 1
_OPTIONS = {"aot_inductor.package_constants_in_so": False, "cpp.dynamic_threads": True}
_SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
# Of the pass that is traced, all different, so that none is taken for another.
_NODES, _LENGTH, _SPAN, _ROWS = 6, 300, 384, 576


class AheadError(EagleError):
    """A pass cannot be compiled ahead of time here, or what was compiled is not the pass."""


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
    if not make and not made(target.config, target.dtype):
        return None
    found = AheadPass(target, attention, layers)
    try:
        if make and not found.path.is_file():
            notify("Compiling the target's pass (a minute or two, once) ...")
            found.make()
        return found if found.load() else None
    except EagleError as error:
        log.warning("passes run uncompiled: %s", error)
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
        self._module = _Pass(target, attention, layers)
        self._loader: Any = None

    @property
    def path(self) -> Path:
        """Where the package is kept, if it was made."""
        sizes = _sizes(self._target.config, self._target.dtype)
        return _folder() / f"{sizes}-{self._module.digest()}.pt2"

    def load(self) -> bool:
        """Load the package; False where none was made.

        Raises:
            AheadError: it cannot be loaded, or computes something else than the model.
        """
        path = self.path
        if not path.is_file():
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
            reason = " ".join(str(error).split())
            raise AheadError(f"the compiled pass {path} cannot be used: {reason:.300}") from error
        return True

    def make(self) -> None:
        """Compile the package and keep it, if no other process has meanwhile: about a minute.

        Raises:
            AheadError: there is no compiler, or this model or backend cannot be compiled.
        """
        if not getattr(self._attention, "capturable", False):
            raise AheadError("the attention backend reads the device on the host (not capturable)")
        if compiler() is None:
            raise AheadError("compiling needs a C++ compiler (g++, or what CXX names)")
        path = self.path
        with exclusive(path.parent, path.stem), staging(path.parent, path.stem) as folder:
            if path.is_file():
                return
            staged = folder / path.name
            try:
                self._module.package(staged)
            except Exception as error:  # of as many kinds as there are models and compilers
                reason = " ".join(str(error).split())
                raise AheadError(
                    f"the pass of {self._target.info.name!r} cannot be compiled: "
                    f"{type(error).__name__}: {reason:.300}"
                ) from error
            os.replace(staged, path)

    def __call__(
        self,
        tokens: Tensor,
        step: Step,
        cache: bridge.PassCache,
        attention: AttentionBackend,
        layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Target.forward`."""
        store = cache.store
        if (
            self._loader is None
            or store.keys[0].shape[0] != 1
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
                *store.keys,
                *store.values,
            ]
        )
        return last, hidden


class _Pass(nn.Module):
    """One pass as a function of tensors, weights included, which is what can be exported."""

    def __init__(
        self, target: Target, attention: AttentionBackend, layers: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.body = target.body
        self._target, self._layers = [target], layers
        self._attention = attention
        self._products = products(target.body)
        # Of fused layers the stacked weights are multiplied, which no module has.
        self.stacked = nn.ParameterList([_frozen(p.weight) for p in self._products])
        self.biases = nn.ParameterList(
            [_frozen(p.bias) for p in self._products if p.bias is not None]
        )

    def weights(self) -> dict[str, Tensor]:
        """Return what compiled code is handed, by the names that exporting gives it."""
        found = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        # A tied weight is exported by one of its names, whichever.
        found |= dict(self.named_parameters(remove_duplicate=False))
        for name, module in self.body.named_modules():
            if isinstance(module, PackedLinear) and module.packed is not None:
                found[f"body.{name}.weight"] = module.packed
        for index, product in enumerate(self._products):
            if product.packed is not None:
                found[f"stacked.{index}"] = product.packed
        return {name: tensor.detach() for name, tensor in found.items()}

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        rows: Tensor,
        lengths: Tensor,
        tail: Tensor,
        columns: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        step = Step(positions, rows, lengths, tail, columns.shape[0])
        store = bridge.PassCache(TreeCache.over(keys, values))
        entries = {"inputs_embeds": embeds}
        with self._traced():
            target = self._target[0]
            last, hidden = target.run(entries, step, store, self._attention, self._layers)
        return (last, *hidden)

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """Let layers multiply the weights of this module, which tracing has replaced."""
        kept = [(product, product.weight, product.bias) for product in self._products]
        layout, biases = self._target[0].layout, iter(self.biases)
        layout.traced = True
        try:
            for (product, _, bias), weight in zip(kept, self.stacked, strict=True):
                product.weight = weight
                product.bias = None if bias is None else next(biases)
            yield
        finally:
            layout.traced = False
            for product, weight, bias in kept:
                product.weight, product.bias = weight, bias

    def package(self, path: Path) -> None:
        """Trace and compile the pass into a package."""
        # Imported late, as they take seconds and only those who compile need them.
        import torch._inductor
        from torch._inductor.utils import fresh_cache
        from torch.export import Dim, export

        traced = copy(self)
        # What a backend makes once and keeps would otherwise be kept without its values.
        traced._attention = deepcopy(self._attention)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            fresh_cache(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            target = self._target[0]
            tokens = torch.arange(_NODES)[None] % target.embeddings
            step = Step.chain(torch.tensor([_LENGTH]), _NODES, _SPAN)
            store = target.make_cache(1, _ROWS).store
            free = Dim.DYNAMIC
            whole = [{2: free}] * len(store.keys)
            program = export(
                traced,
                (
                    target.embed(tokens).clone(),
                    step.positions.clone(),  # a tensor given twice would be taken for one input
                    step.rows,
                    step.lengths,
                    step.tail.contiguous(),
                    torch.empty(_SPAN, dtype=torch.int64),
                    store.keys,
                    store.values,
                ),
                dynamic_shapes=(
                    *({1: free}, {1: free}, {1: free}, None, {1: free, 2: free}, {0: free}),
                    *(whole, whole),
                ),
                strict=False,
            )
            unknown = set(program.constants) - set(self.weights())
            if unknown:
                raise ValueError(f"tensors that are no part of the model: {sorted(unknown)}")
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=dict(_OPTIONS)
            )

    def digest(self) -> str:
        """Return a digest of all that the code depends on; weights are no part of it."""
        target, modules = self._target[0], dict(self.body.named_modules())
        kinds = {type(module) for module in modules.values()} | {type(self._attention)}
        ours = (bridge, cache, fusing, packing, targets, inspect.getmodule(_Pass))
        files = {inspect.getsourcefile(source) for source in (*kinds, *ours) if source}
        # A backend may consist of several, each in a file of its own.
        beside = Path(inspect.getsourcefile(type(self._attention)) or "").parent.glob("*.py")
        config = target.config.to_dict()
        key = {
            "format": [_FORMAT, _OPTIONS],
            "versions": versions(),
            "processor": instructions(),
            "config": {name: config[name] for name in sorted(config) if not name.startswith("_")},
            "layers": self._layers,
            "attention": _nested(self._attention),
            "modules": [[n, type(m).__qualname__, _plain(m)] for n, m in modules.items()],
            "weights": [[n, list(t.shape), str(t.dtype)] for n, t in self.state_dict().items()],
            "packed": [n for n, t in self.weights().items() if t.is_mkldnn],
            "sources": sorted(
                {_digest(Path(file).read_bytes()) for file in (*files, *beside) if file}
            ),
        }
        return _digest(json.dumps(key, sort_keys=True, default=str).encode())[:32]


def _folder() -> Path:
    return cache_dir() / "passes"


def _sizes(config: Any, dtype: torch.dtype) -> str:
    sizes = [getattr(config, name, None) for name in _SIZES]
    return _digest(json.dumps([*sizes, str(dtype)], default=str).encode())[:8]


def _frozen(tensor: Tensor) -> nn.Parameter:
    """Return a parameter that shares a tensor and is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


def _plain(thing: Any) -> dict[str, Any]:
    """Return the settings that an object keeps as attributes: code is specialised to them."""
    kept = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(thing).items() if isinstance(value, kept)}


def _nested(thing: Any, depth: int = 3) -> list[Any]:
    """Return the kind and settings of an object, and of the objects that it holds."""
    held = vars(thing) if depth and hasattr(thing, "__dict__") else {}
    inner = {name: _nested(value, depth - 1) for name, value in sorted(held.items())}
    return [type(thing).__qualname__, _plain(thing) if held else None, inner]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

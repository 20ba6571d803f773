"""One pass of a target as a function of tensors: traced, compiled into a package, and named.

It knows how to make the code and what the code depends on; not where it is kept or used.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eagle.cache import Step, TreeCache
from eagle.host import instructions, versions
from eagle.kernels import PackedLinear, Product, products
from eagle.plugin import AttentionBackend
from eagle.target import Layers, PassCache, Target

__all__ = ["TracedPass", "digest_of"]

_FORMAT = 2
_OPTIONS = {"aot_inductor.package_constants_in_so": False, "cpp.dynamic_threads": True}
# Of a configuration, what a model is called or holds; dtypes are those of the weights.
_NAMES = ("architectures", "dtype", "name_or_path", "transformers_version")
# Of a module, what others note on it: whose it is, and that it was made or used in some way.
_NOTES = (
    *_NAMES,
    "_is_full_backward_hook",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
)
# Of the pass that is traced, all different, so that none is taken for another.
_NODES, _LENGTH, _SPAN, _ROWS = 6, 300, 384, 576


class TracedPass(nn.Module):
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
        stores: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Return the LM head's input and the hidden states asked for; caches are written to."""
        step = Step(positions, rows, lengths, tail, columns.shape[0])
        store = PassCache(TreeCache.over(stores))
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
        """Trace and compile the pass into a package.

        Args:
            path: of the package; what is needed for a moment is put beside it.

        Raises:
            OSError: the package cannot be written.
        """
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
            fresh_cache(dir=str(path.parent)),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            target = self._target[0]
            tokens = torch.arange(_NODES)[None] % target.embeddings
            step = Step.chain(torch.tensor([_LENGTH]), _NODES, _SPAN)
            store = target.make_cache(1, _ROWS).store
            # A cache in one piece would be traced as one input that is written to in parts.
            stores = [part.clone() for part in store.stores]
            free = Dim.DYNAMIC
            program = export(
                traced,
                (
                    target.embed(tokens).clone(),
                    step.positions.clone(),  # a tensor given twice would be taken for one input
                    step.rows,
                    step.lengths,
                    step.tail.contiguous(),
                    torch.empty(_SPAN, dtype=torch.int64),
                    stores,
                ),
                dynamic_shapes=(
                    *({1: free}, {1: free}, {1: free}, None, {1: free, 2: free}, {0: free}),
                    [{1: free}] * len(stores),
                ),
                strict=False,
            )
            unknown = set(program.constants) - set(self.weights())
            if unknown:
                raise ValueError(f"tensors that are no part of the model: {sorted(unknown)}")
            # Into memory first: where a disk is full, PyTorch's own writer ends the process.
            package = io.BytesIO()
            torch._inductor.aoti_compile_and_package(
                program, package_path=package, inductor_configs=dict(_OPTIONS)
            )
        path.write_bytes(package.getvalue())

    def digest(self) -> str:
        """Return a digest of all that the code depends on; weights are no part of it."""
        target, modules = self._target[0], dict(self.body.named_modules())
        kinds = {type(module) for module in modules.values()} | {type(self._attention)}
        ours = (Layers, PassCache, TreeCache, Product, PackedLinear, Target, TracedPass)
        files = {inspect.getsourcefile(source) for source in (*kinds, *ours) if source}
        # A backend may consist of several, each in a file of its own.
        beside = Path(inspect.getsourcefile(type(self._attention)) or "").parent.glob("*.py")
        config = target.config.to_dict()
        key = {
            "format": [_FORMAT, _OPTIONS],
            "versions": versions(),
            "precision": target.precision,
            "processor": instructions(),
            "config": {name: config[name] for name in sorted(config) if _matters(name)},
            "layers": self._layers,
            "attention": _nested(self._attention),
            "modules": [[n, type(m).__qualname__, _plain(m)] for n, m in modules.items()],
            "weights": [[n, list(t.shape), str(t.dtype)] for n, t in self.state_dict().items()],
            "packed": [n for n, t in self.weights().items() if t.is_mkldnn],
            "sources": sorted(
                {digest_of(Path(file).read_bytes()) for file in (*files, *beside) if file}
            ),
        }
        return digest_of(json.dumps(key, sort_keys=True, default=str).encode())[:32]


def _frozen(tensor: Tensor) -> nn.Parameter:
    """Return a parameter that shares a tensor and is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


def _matters(name: str) -> bool:
    """Whether an entry of a configuration may change the code of a pass.

    Saving a model fills in some that do not, and a fine-tuned one may have other special tokens.
    """
    return not (name.startswith("_") or name.endswith("_token_id") or name in _NAMES)


def _plain(thing: Any) -> dict[str, Any]:
    """Return the settings that an object keeps as attributes: code is specialised to them."""
    kept = (bool, int, float, str, type(None))
    settings = {name: value for name, value in vars(thing).items() if isinstance(value, kept)}
    return {name: value for name, value in settings.items() if name not in _NOTES}


def _nested(thing: Any, depth: int = 3) -> list[Any]:
    """Return the kind and settings of an object, and of the objects that it holds."""
    held = vars(thing) if depth and hasattr(thing, "__dict__") else {}
    inner = {name: _nested(value, depth - 1) for name, value in sorted(held.items())}
    return [type(thing).__qualname__, _plain(thing) if held else None, inner]


def digest_of(data: bytes) -> str:
    """Return the SHA-256 digest of some bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()

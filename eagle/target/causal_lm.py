"""Any Hugging Face causal language model as a target: passes over a cache, features and logits.

Knows how a transformers model is driven; knows nothing of drafting or acceptance.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eagle.cache import Pages, Step, TreeCache
from eagle.errors import TargetError, reason
from eagle.host import Turn, Whole, in_turn
from eagle.kernels import Switch, arrange
from eagle.plugin import AttentionBackend
from eagle.target import cutting, loading, probing, quantizing
from eagle.target.attention_calls import Layers, Recorder, asking
from eagle.target.experts import Experts
from eagle.target.interfaces import ATTENTION, OutsideError, PassCache
from eagle.target.layerwise import LayerCall, layers_of, one_by_one
from eagle.target.lm_head import LmHead, width_of
from eagle.target.rotary import settle_rotary
from eagle.target.together import Together
from eagle.target.tokens import check_same_tokens, end_tokens

__all__ = ["Forward", "Target"]

Forward = Callable[..., tuple[Tensor, list[Tensor]]]

# Bytes of a draft head's layers: reading half of them takes 60 us of an H200, two sums 14 to 36.
_WORTH_CUTTING = 1 << 29

_FOREIGN = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


class Target(Whole):
    """A frozen causal language model, unforked, behind a tree cache.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer, or None where its folder has none.
        info: its sizes.
        config: its text configuration.
        device: where it is; of one that is spread over devices, where its LM head is.
        dtype: of its weights.
        spread: whether it is on several devices. By a device map it has features and logits then,
            but no cycles; cut over processes, it has both.
        together: the processes that hold it with this one, each a part of every layer, or None.
        body: the model without its LM head.
        lm_head: what makes logits of its last hidden states.
        precision: how its numbers are kept: its dtype, and what quantizes its weights, if any.
        plain: whether the weights of its body are plain tensors, which can be cut, stacked,
            copied and handed to compiled code.
        layout: of its linear layers.
        experts: who computes those of its mixtures, if it has any.
        layers: its decoder layers in order, or nothing where they cannot be told.
        turn: which thread may run passes or change the layout.
        cut_draft: whether draft heads are cut over `together`, too; ``auto``: where it pays.
    """

    cut_draft: Literal["auto"] | bool = "auto"

    # Refused before its weights are: those that are sent to a process move, also under a pass that
    # was compiled ahead and knows their addresses.
    copied = Turn.copied

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        loading.refuse(name, model.config)
        if not getattr(model, "_supports_attention_backend", False):
            raise TargetError(
                f"the target {name!r} ({type(model).__name__}) does not take its attention from "
                "transformers' AttentionInterface, so no tree attention can be plugged in"
            )
        self.model, self.tokenizer = model, tokenizer
        self.config = model.config.get_text_config()
        head = model.get_output_embeddings()
        self.info = replace(loading.info_of(name, self.config), vocab_size=width_of(head))
        self.device = loading.device_of(model.get_output_embeddings())
        self.dtype = model.dtype
        self.spread = loading.is_spread(model)
        self.together = Together.joined() if loading.is_cut(model) else None
        own = model.config._attn_implementation
        self._stock = "sdpa" if own == ATTENTION else own
        self.layout = Switch()
        self.turn = Turn() if self.together is None else self.together.turn
        plain = not self.spread  # else its layers are hooked, by what they are
        if self.together is not None:
            plain = cutting.settle(model)
        if plain:
            arrange(model, self.layout)
        self.experts = Experts(model) if plain else Experts(nn.Module())
        if self.together is not None:
            cutting.bring_together(model)
        self.body = model.get_decoder()
        if isinstance(self.body, nn.Linear):  # ModernBERT calls its LM head the decoder
            self.body = model.base_model
        settle_rotary(self.body)
        self.layers = layers_of(self.body, self.info.layers) if plain else ()
        self.precision = quantizing.precision(model, self.dtype)
        self.plain = quantizing.is_plain(self.body)
        self.lm_head = LmHead(model.get_output_embeddings(), self.config, self.dtype)
        self._embedding = model.get_input_embeddings()
        self._asked: Layers | None = None
        self._compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        _ = self.eos_tokens  # what is no token is refused before anything is decoded
        self._open = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all that hold it, or holds it by itself."""
        return self.together is None or self.together.main

    @property
    def heads(self) -> int:
        """Its query heads."""
        return self.asked.heads[0]

    @property
    def kv_heads(self) -> int:
        """Heads of the keys and values that it keeps."""
        return self.asked.keys[0]

    @property
    def head_dim(self) -> int:
        """Numbers of one head's key."""
        return self.asked.keys[1]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How far back its layers see, each or all of them alike; None: to the text's start."""
        return self.asked.windows

    @property
    def capacity(self) -> int:
        """The longest text that is served: sliding windows are masks, and bound nothing."""
        return self.info.max_positions

    @property
    def eos_tokens(self) -> frozenset[int]:
        """Tokens that end a text.

        Raises:
            TargetError: its files name something else.
        """
        return end_tokens(self.model.generation_config, self.tokenizer, self.info.name)

    @property
    def embeddings(self) -> int:
        """Rows of the input embedding: token ids are below it."""
        return int(self._embedding.weight.shape[0])

    @property
    def asked(self) -> Layers:
        """What its layers ask of attention.

        Raises:
            TargetError: it is nothing that can be served.
        """
        if self._asked is None:
            self._asked = self._ask()
        return self._asked

    @torch.inference_mode()
    def _ask(self) -> Layers:
        recorder = Recorder(self.info.max_positions)
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        self._compute_by(ATTENTION)
        arranged, self.layout.on = self.layout.on, False
        try:
            with asking(recorder):
                self.body(
                    input_ids=tokens,
                    past_key_values=recorder,
                    use_cache=True,
                    eagle_recorder=recorder,
                )
            return recorder.found(self.info.layers)
        except TargetError as error:
            raise TargetError(f"{self.title} cannot be served: {error}") from error
        except OutsideError as error:
            raise TargetError(
                f"{self.title} cannot be served: its layers do not hand the keyword arguments of "
                "its forward to their attention, which is how a token tree reaches it"
            ) from error
        except _FOREIGN as error:
            raise self._fails(error) from error
        finally:
            self.layout.on = arranged

    @property
    def title(self) -> str:
        """What messages call it: its name, and the class of its model."""
        return f"the target {self.info.name!r} ({type(self.model).__name__})"

    def _fails(self, error: Exception) -> TargetError:
        return TargetError(f"{self.title} cannot be run over a tree cache: {reason(error)}")

    def make_cache(self, slots: int, rows: int, pages: Pages | None = None) -> PassCache:
        """Allocate a cache of *rows* rows for each of *slots* texts, or one of blocks."""
        return PassCache(
            TreeCache(
                layers=self.info.layers,
                slots=slots,
                kv_heads=self.kv_heads,
                rows=rows,
                head_dim=self.head_dim,
                dtype=self.dtype,
                device=self.device,
                pages=pages,
            )
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return input embeddings ``[B, N, H]`` of tokens ``[B, N]``."""
        out: Tensor = self._embedding(tokens)
        return out.to(self.device) if self.spread else out

    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``[B, N, V]`` of final hidden states ``[B, N, H]``."""
        return self.lm_head.logits(features)

    def draft_logits(self) -> Callable[[Tensor], Tensor]:
        """Return what gives `logits` to drafts: nearly, by a weight of eight bits, where it pays.

        What is drafted decides how much of it is accepted, not what is said.
        """
        return self.lm_head.rough() or self.logits

    def lay_out(self, network: nn.Module) -> bool:
        """Lay out a head's network for decoding; see `eagle.plugin.TargetModel.lay_out`.

        Raises:
            PartedError: the processes that hold the target have different ones.
        """
        if self.together is not None and network not in self._compared:
            self.together.compare("draft head", cutting.weighed(network))
            self._compared.add(network)
        cut: dict[str, str] = {}
        if self.together is not None and self.cut_draft is not False:
            least = 0 if self.cut_draft is True else _WORTH_CUTTING
            cut = cutting.cut_network(network, self.together.rank, self.together.count, least)
        arrange(network, Switch())
        cutting.bring_together(network, cut)
        return cutting.is_parted(network)

    def draft_model(self, folder: Path, attention: AttentionBackend) -> Target:
        """Load another model beside this one; see `eagle.plugin.TargetModel.draft_model`."""
        name = str(folder)
        source = loading.Source(name, name, {"trust_remote_code": False})
        loading.describe(source)
        model = loading.load_model(source, self.dtype, self.device)
        made = Target(model, loading.load_tokenizer(source), name)
        check_same_tokens(self.tokenizer, made.tokenizer, name)
        made.probe(attention)
        return made

    def forward(
        self,
        tokens: Tensor,
        step: Step,
        cache: PassCache,
        attention: AttentionBackend,
        layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one pass over a cache.

        Args:
            tokens: int64 ``[B, N]``.
            step: where they go and what each sees.
            cache: of `make_cache`.
            attention: the backend to attend through.
            layers: hidden states wanted beside the last, as indices of `hidden_states`.

        Returns:
            The LM head's input ``[B, N, H]``, and the hidden states asked for.
        """
        return self.run({"input_ids": tokens}, step, cache, attention, layers)

    def run(
        self,
        entries: dict[str, Tensor],
        step: Step,
        cache: PassCache,
        attention: AttentionBackend,
        layers: tuple[int, ...],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one pass as `forward` does, with tokens or their embeddings by transformers' name."""
        self._compute_by(ATTENTION)
        cache.step = step = cache.store.locate(step)
        out = self.body(
            **entries,
            # Nodes past the last position are never committed, but tables end there.
            position_ids=step.positions.clamp(max=self.info.max_positions - 1),
            attention_mask=self._open,  # of rank 4, so that no other mask is made
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=bool(layers),
            eagle_backend=attention,
            eagle_plans=self._plans(step, attention),
        )
        cache.step = None
        return out.last_hidden_state, [out.hidden_states[layer] for layer in layers]

    def _plans(self, step: Step, attention: AttentionBackend) -> tuple[Any, ...]:
        """Return one plan for each layer, or one alone, made once for each window that there is."""
        sizes = (*self.asked.heads, self.dtype)
        made: dict[int | None, Any] = {}
        for window in self.asked.windows:
            if window not in made:
                # A backend that knows no windows was refused when the target was probed.
                options: dict[str, Any] = {} if window is None else {"window": window}
                made[window] = attention.plan(step, *sizes, **options)
        return tuple(made[window] for window in self.asked.windows)

    def _compute_by(self, implementation: str) -> None:
        self.experts.use(implementation == ATTENTION)
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def one_by_one(self, call: LayerCall) -> AbstractContextManager[None]:
        """Let its `layers` go through a function in passes of this block."""
        return one_by_one(self.layers, call)

    @contextmanager
    def stock(self) -> Iterator[Any]:
        """Yield the model as transformers runs it: its own attention, its own layers.

        Other threads' cycles on this target wait meanwhile; this thread cannot decode in it.

        Raises:
            RequestError: processes hold it together, and the others follow an engine of the first.
        """
        if self.together is not None:
            self.together.apart("target.stock()")
        with self.turn.held("target.stock()"):
            outermost = self.layout.on
            self._compute_by(self._stock)
            self.layout.on = False
            try:
                yield self.model
            finally:
                if outermost:
                    self.layout.on = True
                    self._compute_by(ATTENTION)

    @torch.inference_mode()
    @in_turn("target.probe()")
    def probe(self, attention: AttentionBackend, forward: Forward | None = None) -> None:
        """Check that passes over the tree cache are the model's own, on a small random tree.

        It is what lets an architecture be served that nobody here has heard of: mask, positions,
        cache and the scaling of logits are all compared with the model's own forward.

        Args:
            attention: the backend to attend through.
            forward: what runs the passes, in place of the method of that name.

        Raises:
            TargetError: they differ, so that the output would not be the target's; or the backend
                cannot serve this target.
        """
        probing.check_servable(self, attention)
        try:
            wrong = probing.wrong(self, attention, forward or self.forward)
        except _FOREIGN as error:
            raise self._fails(error) from error
        if wrong:
            raise TargetError(wrong)

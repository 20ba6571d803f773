"""What the loop checks of its components once, at no cost to what follows: first trees and draws.

Knows what roles declare and how a breach is told of; it does not know who provides a component.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from eagle.plugin.laws import Law, listed
from eagle.plugin.strategy import Role
from eagle.plugin.tree import TokenTree, TreeShape, ancestor_mask

__all__ = [
    "Breach",
    "check_draft_logits",
    "check_draft_memory",
    "check_draft_vocab",
    "check_draws",
    "check_states",
    "check_tree",
]


class Breach(Exception):  # noqa: N818 - it never reaches a user by this name
    """A component is not what its role asks for; a decoder raises it as a `PluginError`.

    Attributes:
        role: the component's.
        problem: a clause that follows its name, such as ``build() returned ...``.
    """

    def __init__(self, role: Role, problem: str) -> None:
        super().__init__(f"{role.value}: {problem}")
        self.role, self.problem = role, problem


def check_tree(
    tree: TokenTree,
    shape: TreeShape,
    root: Tensor,
    vocab: int | None = None,
    laws: Collection[Law] | None = None,
    *,
    exact: bool = True,
) -> None:
    """Check the first tree of a builder; its values are read on the host.

    What is wrong with a tree mostly shows nowhere: what is accepted would only be wrong.

    Args:
        tree: the tree.
        shape: what its builder declares.
        root: int64 ``[B]``, the last committed tokens.
        vocab: V, of which its tokens must be; None: not looked at.
        laws: what its builder declares; None: not looked at.
        exact: whether it has as many nodes as declared, or that many at most.

    Raises:
        Breach: it is no tree, or not the one declared.
    """
    slots, nodes = root.shape[0], shape.nodes
    if not exact and isinstance(tree.tokens, Tensor) and tree.tokens.dim() == 2:
        nodes = max(1, min(nodes, tree.tokens.shape[1]))
    for name in ("tokens", "parents", "depths", "ranks"):
        _has_shape(name, getattr(tree, name), (slots, nodes), torch.int64)
    _has_shape("ancestors", tree.ancestors, (slots, nodes, nodes), torch.bool)
    if laws is not None and shape.depth and tree.sampled is not None:
        for law in tree.every_law:
            if law not in laws:
                raise Breach(
                    Role.TREE, f"build() drew siblings by {law}, but `laws` declares {listed(laws)}"
                )
    real = tree.parents >= 0
    order = torch.arange(nodes, device=root.device)
    above = tree.depths.gather(1, tree.parents.clamp(min=0)) + 1
    seen = ancestor_mask(tree.parents, max(shape.depth, 1))
    siblings = torch.zeros_like(tree.parents).scatter_add(
        1, tree.parents.clamp(min=0), real.to(tree.parents.dtype)
    )
    wrong = {
        "a first node that is not the root": tree.tokens[:, 0] != root,
        f"a token that is none of the target's {vocab}": (
            (tree.tokens < 0) | (tree.tokens >= (vocab or torch.iinfo(torch.int64).max))
        ).any(1),
        "a root that has a parent": real[:, 0],
        "a root whose depth is not 0": tree.depths[:, 0] != 0,
        "a node before its parent": (tree.parents >= order).any(1),
        f"a node deeper than the {shape.depth} levels declared": (
            (tree.depths > shape.depth) & real
        ).any(1),
        "a node whose depth is not its parent's plus one": ((tree.depths != above) & real).any(1),
        "a node that sees others than its ancestors and itself": (
            (tree.ancestors != seen).any(2) & real
        ).any(1),
        "a node that does not see itself": ~tree.ancestors[:, order, order].all(1),
        f"a node with more children than the {shape.siblings} declared": (
            siblings > shape.siblings
        ).any(1),
    }
    for problem, slots_with_it in wrong.items():
        if bool(slots_with_it.any()):
            raise Breach(Role.TREE, f"build() returned a tree with {problem}")


def _has_shape(name: str, tensor: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = [*tensor.shape] if isinstance(tensor, Tensor) else type(tensor).__name__
    if found != [*shape]:
        raise Breach(
            Role.TREE, f"build() returned {name} of shape {found}, its `shape` declares {[*shape]}"
        )
    if isinstance(tensor, Tensor) and tensor.dtype != dtype:
        raise Breach(Role.TREE, f"build() returned {name} of type {tensor.dtype}, not {dtype}")


def check_draws(role: Role, method: str, used: int, declared: int) -> None:
    """Raise `Breach` where a component read more uniforms per slot than it declares."""
    if used > declared:
        raise Breach(
            role,
            f"{method}() read {used} uniforms per slot in one cycle, but `uniforms` declares "
            f"{declared}",
        )


def check_states(found: int, declared: int, method: str) -> None:
    """Raise `Breach` where a head's states are not of the size that it declares."""
    if found != declared:
        raise Breach(
            Role.HEAD,
            f"{method}() returned states of size {found}, but state_size() says {declared}",
        )


def check_draft_logits(found: int, vocab: int, method: str) -> None:
    """Raise `Breach` where draft logits are over more or fewer tokens than a head drafts from."""
    if found != vocab:
        raise Breach(
            Role.HEAD,
            f"{method}() returned draft logits over {found} tokens, but it drafts from {vocab}",
        )


def check_draft_memory(memory: Sequence[Tensor], slots: int) -> None:
    """Raise `Breach` unless what a head learns of verifications is kept slot by slot."""
    for part in memory:
        if part.dim() == 0 or part.shape[0] != slots:
            raise Breach(
                Role.HEAD,
                f"its verified_memory has the shape {list(part.shape)}, not [{slots}, ...] for "
                f"{slots} slots",
            )


def check_draft_vocab(ids: Tensor, vocab: int) -> None:
    """Raise `Breach` unless a head's own vocabulary is made of the target's tokens, each once."""
    problem = None
    if ids.dim() != 1 or ids.dtype != torch.int64:
        problem = f"has the shape {list(ids.shape)} and the type {ids.dtype}, not int64 [Vd]"
    elif not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= vocab:
        problem = f"names tokens that are none of the target's {vocab}"
    elif len(set(ids.tolist())) < len(ids):
        problem = "names a token of the target twice"
    if problem:
        raise Breach(Role.HEAD, f"its draft_vocab {problem}")

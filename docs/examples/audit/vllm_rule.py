"""vLLM's rejection sampler, as it is installed; its kernels run under TRITON_INTERPRET=1, too."""

import os
from types import SimpleNamespace

import torch
from triton import backends


def vllm_rule(chain, *, drafts=True):
    """Return what vLLM's `rejection_sample` puts out in a world.

    Args:
        chain: the world.
        drafts: whether it is given draft distributions; without, drafts are fixed (n-grams, say).
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        # vLLM turns Triton off where it finds no driver; the interpreter needs none.
        backends.backends.setdefault("cpu", SimpleNamespace(driver=None))
    from vllm.v1.sample.rejection_sampler import rejection_sample

    depth = len(chain.tokens)
    # The bonus token is drawn by vLLM's sampler, in front of the rule.
    bonus = torch.multinomial(chain.target_probs[-1:], 1).to(torch.int32)
    out = rejection_sample(
        torch.tensor(chain.tokens, dtype=torch.int32),
        [depth],
        depth,
        torch.tensor([depth], dtype=torch.int32),
        chain.draft_probs.contiguous() if drafts else None,
        chain.target_probs[:-1].log().contiguous(),
        bonus,
        SimpleNamespace(
            all_greedy=False, all_random=True, temperature=torch.ones(1), generators={}
        ),
    )
    return [token for token in out[0].tolist() if token >= 0]


def vllm_rule_without_drafts(chain):
    return vllm_rule(chain, drafts=False)

"""The speculative rule with faults that others have shipped, one at a time."""

import torch


def speculative(chain, *, target=None, draft=None, block=False, wrong_residual=False):
    """Return what a right rule puts out; the arguments make it a wrong one."""
    p = chain.target_probs if target is None else target
    q = chain.draft_probs if draft is None else draft
    scale = torch.ones(())
    ends, rests = [], []
    for level, token in enumerate(chain.tokens):
        rest = (scale * p[level] - q[level]).clamp(min=0)
        ends.append(rest.sum() / (rest.sum() + 1 - scale))
        rests.append((p[level] - q[level]).clamp(min=0) if wrong_residual else rest)
        scale = (scale * p[level, token] / q[level, token]).clamp(max=1)
        if not block:
            if torch.rand(()) >= scale:
                return [*chain.tokens[:level], int(torch.multinomial(rests[-1], 1))]
            scale = torch.ones(())
    ends.append(scale)
    rests.append(p[len(chain.tokens)])
    for level in reversed(range(len(ends))):
        if torch.rand(()) < ends[level] or level == 0:
            return [*chain.tokens[:level], int(torch.multinomial(rests[level], 1))]
    raise AssertionError


def block_verification(chain):
    return speculative(chain, block=True)


def wrong_logits_row(chain):
    """Judges each candidate by the target's row behind it, not the one before."""
    rows = [min(level + 1, len(chain.tokens)) for level in range(len(chain.tokens) + 1)]
    return speculative(chain, target=chain.target_probs[rows])


def softmax_for_argmax(chain):
    """Is given the draft's likeliest token (`fixed=True`), and takes it for drawn from q."""
    return speculative(chain)


def coarse_draft(chain):
    """Keeps the draft distributions in bfloat16, from which the tokens were not drawn."""
    return speculative(chain, draft=chain.draft_probs.bfloat16().float())


def token_equality(chain):
    """Accepts what is the target's likeliest token, and samples only what comes behind."""
    for level, token in enumerate(chain.tokens):
        if int(chain.target_probs[level].argmax()) != token:
            return [*chain.tokens[:level], int(torch.multinomial(chain.target_probs[level], 1))]
    return [*chain.tokens, int(torch.multinomial(chain.target_probs[-1], 1))]


def block_with_the_residual_of_a_token(chain):
    """Judges the block as a whole, and draws from max(p - q, 0), not max(a p - q, 0)."""
    return speculative(chain, block=True, wrong_residual=True)

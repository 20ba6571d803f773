import pytest
import torch
import torch.nn.functional as F

from eagle.plugin.roles import BuildContext
from eagle.train.objective.losses import Loss
from eagle.train.spec.config import LossSpec
from eagle_plugins.losses import EagleLoss, EagleLossConfig


def inputs(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(20, 8, generator=generator)
    states = torch.randn(2, 6, 8, generator=generator, requires_grad=requires_grad)
    true = torch.randn(2, 6, 8, generator=generator)
    entries = torch.tensor([0, 3, 4, 7, 10])
    return head, states, true, entries, torch.ones(1, 5)


def loss_of(head, draft=None, chunk=2048, recompute=True, **settings):
    spec = LossSpec(chunk=chunk, recompute=recompute)
    objective = EagleLoss(EagleLossConfig(**settings), BuildContext())
    draft = head if draft is None else draft
    return Loss(spec, objective, lambda x: x @ head.T, lambda x: x @ draft.T, lambda x: x)


def naive(spec, head, states, true, entries):
    """The paper's loss, one entry at a time."""
    total = torch.zeros(2)
    for entry in entries.tolist():
        row, t = divmod(entry, 6)
        predicted, wanted = states[row, t], true[row, t + 1]
        p = (head @ wanted).softmax(-1)
        cross = -(p * (head @ predicted).log_softmax(-1)).sum()
        total = total + torch.stack((F.smooth_l1_loss(predicted, wanted), cross))
    feature, token = total / len(entries)
    return spec.feature * feature + spec.token * token, feature, token


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_agrees_with_the_formula_in_value_and_gradient(chunk, recompute):
    head, states, true, entries, weights = inputs()
    spec = EagleLossConfig()
    loss = loss_of(head, chunk=chunk, recompute=recompute)
    value = loss([states], true, true, entries, weights, weights.sum(1))
    expected = naive(spec, head, states, true, entries)
    torch.testing.assert_close(value.total, expected[0])
    torch.testing.assert_close(torch.cat((value.feature, value.token)), torch.stack(expected[1:]))
    (ours,) = torch.autograd.grad(value.total, states)
    (theirs,) = torch.autograd.grad(expected[0], states)
    torch.testing.assert_close(ours, theirs)


def test_padding_changes_nothing():
    head, states, true, entries, weights = inputs(requires_grad=False)
    loss = loss_of(head, chunk=4)
    count = weights.sum(1)
    plain = loss([states], true, true, entries, weights, count).detached()
    longer = F.pad(entries, (0, 3)), F.pad(weights, (0, 3))
    padded = loss([states], true, true, *longer, count).detached()
    torch.testing.assert_close(padded, plain)


def test_true_features_have_no_regression_loss_and_full_accuracy():
    head, _, true, entries, weights = inputs()
    loss = loss_of(head)
    value = loss([true.roll(-1, dims=1)], true, true, entries, weights, weights.sum(1))
    assert value.feature == 0
    assert value.accuracy == 1


def test_states_of_another_size_need_no_regression_loss():
    head, states, true, entries, weights = inputs(requires_grad=False)
    draft = torch.randn(20, 3)
    loss = loss_of(head, draft, feature=0)
    assert loss([states[..., :3]], true, true, entries, weights, weights.sum(1)).feature == 0


def test_batch_without_answers_has_no_loss():
    head, states, true, _, _ = inputs()
    loss = loss_of(head)
    value = loss(
        [states], true, true, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1), torch.zeros(1)
    )
    assert value.total == 0
    value.total.backward()
    assert states.grad.abs().sum() == 0

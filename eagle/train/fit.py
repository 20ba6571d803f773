"""Do the parts of a run go together? Asked before anything is computed that takes long."""

from __future__ import annotations

import torch

from eagle import loading
from eagle.capabilities import TrainableHead
from eagle.errors import EagleError, IncompatibleError, SpecError
from eagle.objective import TrainingLoss
from eagle.roles import FeatureExtractor
from eagle.target import Target, resolve_device, resolve_dtype
from eagle.train.config import TrainSpec
from eagle.train.levels import level_states

__all__ = ["check_head", "check_target"]


def check_target(spec: TrainSpec, target: Target | None) -> None:
    """Refuse what the target cannot be trained for, by its configuration alone.

    Args:
        spec: the training spec.
        target: the target, if it is loaded already.

    Raises:
        SpecError: its dtype is too narrow, or rows are longer than it takes.
        TargetError: it cannot be read or served, there is no such device, or it cannot be cut
            over the processes there are.
    """
    if target is not None:
        name, dtype, capacity = target.info.name, target.dtype, target.capacity
    else:
        source = loading.locate(spec.target, spec.document.folder)
        info, text = loading.describe(source)
        if spec.target.tp_plan:
            loading.check_split(info.name, text)
        name, dtype = (
            info.name,
            resolve_dtype(spec.target.dtype, resolve_device(spec.target.device)),
        )
        capacity = min(info.max_positions, loading.window(text) or info.max_positions)
    if dtype not in (torch.float32, torch.bfloat16):
        raise SpecError("target.dtype: training needs bfloat16 or float32")
    if spec.data.length > capacity:
        raise SpecError(
            f"data.length: {spec.data.length} is more than the {capacity} tokens that the "
            f"target {name!r} takes"
        )


@torch.no_grad()
def check_head(
    spec: TrainSpec,
    head: TrainableHead,
    extractor: FeatureExtractor,
    objective: TrainingLoss,
    target: Target,
) -> None:
    """Run a head over a text of four tokens, and look at what comes out.

    Raises:
        IncompatibleError: it does not take these features or what it feeds back, or predicts no
            features where the loss compares them.
    """
    size = extractor.feature_size(target.info)
    device = target.device
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=device)
    features = torch.zeros(1, 4, size, dtype=target.dtype, device=device)
    visible = torch.ones(1, 1, 4, 4, dtype=torch.bool, device=device).tril()
    positions = torch.arange(4, device=device)[None]
    try:
        # In training a head's weights are float32, whatever it was loaded in.
        with torch.autocast(device.type, torch.bfloat16, enabled=target.dtype != torch.float32):
            states = level_states(
                head.train_states,
                head.feed_back,
                tokens,
                tokens,
                features,
                positions,
                visible,
                min(spec.loss.levels, 2),
            )
            width = head.feed_back(states[0]).shape[-1]
            head.logits(states[0])
    except EagleError:
        raise
    except Exception as error:  # a plug-in's code, and every kind is the same to who chose it
        raise _misfit(
            spec,
            f"it cannot be run on features of size {size} ({spec.features.name!r}): "
            f"{type(error).__name__}: {error}",
        ) from error
    if objective.compares_features and width != size:
        raise _misfit(
            spec,
            f"what it feeds back has size {width}, the features of {spec.features.name!r} {size}, "
            "so they cannot be compared: set loss.feature to 0, or choose another loss or "
            "extractor",
        )


def _misfit(spec: TrainSpec, problem: str) -> IncompatibleError:
    problem = f"the draft head {spec.head.name!r} does not fit: {problem}"
    return IncompatibleError(spec.document.sentence(("head",), problem))

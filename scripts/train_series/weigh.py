"""A program: reads what a plan would train, and says what it comes to; trains nothing.

Its argument is JSON: ``{"device", "runs": {name: {"config", "set", "tokens"}}, "trees"}``. It
prints JSON: hardware, versions and, of every run, the tokens of a step, the steps and the head's
name; or ``{"error": a sentence}``. All configs are checked here, so that no typing mistake waits
for its turn.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["weigh"]


def weigh(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what stands above, of what stands above.

    Raises:
        EagleError: a config, a head's settings or a tree is wrong; it begins with the run's name.
    """
    import torch

    from eagle.errors import EagleError
    from eagle.host import hardware, versions
    from eagle.plugin import BuildContext, ComponentSpec, default_registry
    from eagle.spec import resolve
    from eagle.train.evaluation import fixed_paths
    from eagle.train.spec import load_train_spec

    registry, runs = default_registry(), {}
    for name, run in asked["runs"].items():
        try:
            spec = load_train_spec(run["config"], run["set"])
            context = BuildContext(folder=spec.document.folder, fresh=spec.start == "fresh")
            resolve(spec.decoder, registry, context)
            for tree in asked["trees"]:
                component = ComponentSpec.model_validate(tree)
                fixed_paths(resolve(spec.decoder_with(component), registry).tree, component.name)
        except EagleError as error:
            raise type(error)(f"{name}: {error}") from error
        step = spec.rows() * spec.data.length
        tokens = run["tokens"]
        steps = spec.steps if tokens is None else max(1, round(tokens / step))
        runs[name] = {"tokens_per_step": step, "steps": steps, "head": spec.head.name}
    wanted = asked["device"]
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return {"hardware": hardware(torch.device(wanted)), "versions": versions(), "runs": runs}


def main() -> None:
    """Answer the question that is the argument."""
    from eagle.errors import EagleError

    try:
        answer = weigh(json.loads(sys.argv[1]))
    except EagleError as error:
        answer = {"error": str(error).splitlines()[0]}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""`eagle serve` on several machines or devices: Ray Serve holds replicas of the same application.

    serve run replicas:app               # in this folder, on a machine of the Ray cluster

Each replica has an engine of its own. A key for clients is taken from EAGLE_API_KEY; without one,
only this machine's own names are answered to.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from eagle import Engine
from eagle.serve import Settings, create_app

SPEC = os.environ.get("EAGLE_SPEC", "eagle")  # a shipped spec's name, or a file
REPLICAS = int(os.environ.get("EAGLE_REPLICAS", "2"))
GPUS = float(os.environ.get("EAGLE_GPUS", "0"))  # of each replica; 0 decodes on the CPU


def application() -> Any:
    """Load the engine, in the process of a replica, and return what answers by it."""
    key = os.environ.get("EAGLE_API_KEY")
    engine = Engine.from_spec(SPEC, ["runtime.max_batch=8"])
    return create_app(engine, Settings(api_key=key, loopback=key is None))


app = serve.deployment(
    serve.ingress(application)(),
    num_replicas=REPLICAS,
    # What runs in a replica and waits in its engine; whatever is more waits at the proxy.
    max_ongoing_requests=32,
    graceful_shutdown_timeout_s=60,
    ray_actor_options={"num_cpus": 1, "num_gpus": GPUS},
).bind()

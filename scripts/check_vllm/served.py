"""Run by vLLM's own Python, without this library: texts and acceptance of a head that it serves.

Called with a JSON file of what to do; the last line printed is a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "KMP_BLOCKTIME": "0",  # threads that wait do not take a core from those that work
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    """Answer the prompts one after another and print what came of it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams, __version__

    work = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(
        model=work["target"],
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=0,
        speculative_config={
            "method": work["method"],
            "model": work["head"],
            "num_speculative_tokens": work["depth"],
        },
    )
    params = SamplingParams(temperature=0.0, max_tokens=work["tokens"])
    chats = [[{"role": "user", "content": prompt}] for prompt in work["prompts"]]
    outputs = [engine.chat([chat], params, use_tqdm=False)[0] for chat in chats]
    counts: dict[str, Any] = {
        metric.name.removeprefix("vllm:spec_decode_num_"): getattr(metric, "value", None)
        for metric in engine.get_metrics()
        if metric.name.startswith("vllm:spec_decode_num_")
    }
    print(
        json.dumps(
            {
                "version": __version__,
                "drafts": counts["drafts"],
                "accepted": counts["accepted_tokens"],
                "texts": [list(output.outputs[0].token_ids) for output in outputs],
            }
        )
    )


if __name__ == "__main__":
    main()

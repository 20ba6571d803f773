"""Two replicas under load, one of which is killed: is every answer given, and the right one?

    python kill_one.py          # in this folder; needs ray[serve] and openai

It decodes in float32, so that what a batch does to rounding does not count as another text.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
from openai import OpenAI
from ray import serve

HERE = Path(__file__).parent
CLIENTS, EACH = 8, 4
PROMPTS = [f"Name {number} animals." for number in range(2, 8)]


def replicas() -> list[psutil.Process]:
    """Return the processes of this machine that are replicas."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if ":ServeReplica:" in " ".join(p.info["cmdline"] or ())]


def answer(client: OpenAI, prompt: str) -> str:
    """Ask for one text: it is drawn, from a seed."""
    talk = [{"role": "user", "content": prompt}]
    told = client.chat.completions.create(
        model=os.environ["EAGLE_MODEL"], messages=talk, max_tokens=32, temperature=0.7, seed=5
    )
    return told.choices[0].message.content


def main() -> int:
    """Return how many answers were lost or are not what one request alone gives."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as spec:
        spec.write("target: {model: smollm2-135m-instruct, dtype: float32}\n")
        spec.flush()
        given = {"EAGLE_SPEC": spec.name, "EAGLE_REPLICAS": "2", "OMP_NUM_THREADS": "1"}
        os.environ |= given | {"EAGLE_MODEL": "smollm2-135m-instruct"}
        environment = {"env_vars": given | {"PYTHONPATH": str(HERE)}}
        ray.init(num_cpus=4, include_dashboard=False, runtime_env=environment)
        sys.path.insert(0, str(HERE))
        from replicas import app

        serve.run(app, name="eagle", route_prefix="/")
        # A client asks again when a server is gone; what was streaming would have been seen.
        client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=5)
        alone = {prompt: answer(client, prompt) for prompt in PROMPTS}
        answers: list[tuple[str, str]] = []

        def work(number: int) -> None:
            for place in range(EACH):
                prompt = PROMPTS[(number + place) % len(PROMPTS)]
                answers.append((prompt, answer(client, prompt)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        victim = replicas()[0]
        victim.kill()
        print(f"killed replica {victim.pid}, {len(answers)} answers before", flush=True)
        for thread in threads:
            thread.join()
        wrong = sum(text != alone[prompt] for prompt, text in answers)
        lost = CLIENTS * EACH - len(answers)
        print(f"{len(answers)} answers, {lost} lost, {wrong} other than alone", flush=True)
        while sum(p.pid != victim.pid for p in replicas()) < 2:
            time.sleep(1)
        print("there are two replicas again", flush=True)
        serve.shutdown()
        ray.shutdown()
    return lost + wrong


if __name__ == "__main__":
    sys.exit(main())

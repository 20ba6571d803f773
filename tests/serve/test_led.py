"""``eagle serve`` in the processes that hold a target together, as `torchrun` starts them."""

import http.client
import json
import os
import re
import signal
import sys
import threading
import time

from eagle import Decoder
from eagle.cli import main
from tests.serve.test_command import options
from tests.serve.test_structure import bytes_tokenizer
from tests.train.together import run_together

BODY = {"prompt": "hello", "max_tokens": 40, "temperature": 1, "seed": 3, "ignore_eos": True}


def _client(path):
    """Ask the server, then tell both processes to end, the other one first: it waits for this."""
    while not (found := re.search(r"serving http://127\.0\.0\.1:(\d+)/v1", path.read_text())):
        time.sleep(0.02)
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)

    def ask(address, body):
        connection.request("POST", address, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    answers = [ask("/v1/completions", BODY)]
    answers.append(ask("/v1/completions", {**BODY, "structured_outputs": {"regex": "[ab]+c"}}))
    answers.append(ask("/eagle/trace", {"messages": [{"role": "user", "content": "a"}]}))
    answers.append(ask("/v1/completions", BODY))
    path.with_suffix(".json").write_text(json.dumps(answers))
    other = int(path.with_suffix(".1").read_text())
    for process in (other, os.getpid()):
        os.kill(process, signal.SIGTERM)


def _serve(words, path):
    rank = os.environ["RANK"]
    path.with_suffix(f".{rank}").write_text(str(os.getpid()))
    if rank == "0":
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2)
        threading.Thread(target=_client, args=(path,), daemon=True).start()
    sys.exit(main(["serve", "--port", "0", *words]))


def test_one_of_the_processes_answers_and_all_end_with_it(pair, tmp_path):
    path, home = tmp_path / "said", tmp_path / "model"
    path.touch()
    pair[0].model.save_pretrained(home)
    bytes_tokenizer().save_pretrained(home)
    run_together(_serve, [*options(home, pair), "--set", "target.tp_plan=auto"], path)
    answers = json.loads(path.with_suffix(".json").read_text())
    assert [status for status, _ in answers] == [200, 200, 501, 200]
    settings = [*options(home, pair)[3::2], f"target.model={home}"]
    wanted = Decoder.from_spec("eagle", settings).generate(
        "hello", raw=True, max_new_tokens=40, temperature=1, seed=3, ignore_eos=True
    )
    for number in (0, 3):
        assert answers[number][1]["choices"][0]["text"] == wanted.text
    assert re.fullmatch("[ab]+c?", answers[1][1]["choices"][0]["text"])
    assert "several processes" in answers[2][1]["error"]["message"]
    assert path.read_text().splitlines()[-1] == "ended"

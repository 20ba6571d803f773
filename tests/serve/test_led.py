"""``eagle serve`` in the processes that hold a target together, as `torchrun` starts them."""

import http.client
import json
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from eagle import Decoder
from eagle.cli import main
from tests.serve.test_command import options
from tests.serve.test_structure import bytes_tokenizer
from tests.train.together import run_together

TREES = [{"name": "chain", "depth": depth} for depth in (1, 4)]  # more than are kept
LOOK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0}
BODY = {"prompt": "hello", "max_tokens": 40, "temperature": 1, "seed": 3, "ignore_eos": True}


def _client(path):
    """Ask the server, then tell both processes to end, the other one first: it waits for this."""
    while not (found := re.search(r"serving http://127\.0\.0\.1:(\d+)/v1", path.read_text())):
        time.sleep(0.02)
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)

    def asked(address, body, connection=connection):
        connection.request("POST", address, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse()

    def ask(address, body, connection=connection):
        response = asked(address, body, connection)
        return response.status, json.loads(response.read())

    def look(address, **more):
        response = asked(address, {**LOOK, **more})
        lines = response.read().decode().split("\n\n")
        return response.status, [json.loads(line[6:]) for line in lines if line[6:7] == "{"]

    answers = [ask("/v1/completions", BODY)]
    answers.append(ask("/v1/completions", {**BODY, "structured_outputs": {"regex": "[ab]+c"}}))
    answers.append(ask("/eagle/trace", {**LOOK, "tree": {"name": "chain", "depth": 300}}))
    with ThreadPoolExecutor(1) as pool:  # passes of both come in any order
        others = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        beside = [pool.submit(ask, "/v1/completions", BODY, others) for _ in range(4)]
        looks = [look("/eagle/trace"), look("/eagle/trace", temperature=1, seed=3)]
        looks += [look("/eagle/plain")]
        left = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        asked("/eagle/trace", {**LOOK, "max_tokens": 400}, left).readline()
        left.close()  # in the middle of it
        looks += [look("/eagle/trace", tree=tree) for tree in TREES]
        looks += [look("/eagle/trace")]
        answers += [one.result(60) for one in beside]
    answers.append(ask("/v1/completions", BODY))
    path.with_suffix(".json").write_text(json.dumps([answers, looks]))
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
    answers, looks = json.loads(path.with_suffix(".json").read_text())
    assert [status for status, _ in answers] == [200, 200, 400, 200, 200, 200, 200, 200]
    settings = [*options(home, pair)[3::2], f"target.model={home}"]
    decoder = Decoder.from_spec("eagle", settings)
    wanted = decoder.generate(
        "hello", raw=True, max_new_tokens=40, temperature=1, seed=3, ignore_eos=True
    )
    for number in (0, 3, 4, 5, 6, 7):
        assert answers[number][1]["choices"][0]["text"] == wanted.text
    assert re.fullmatch("[ab]+c?", answers[1][1]["choices"][0]["text"])
    assert "301 nodes; at most 256" in answers[2][1]["error"]["message"]
    assert path.read_text().splitlines()[-1] == "ended"
    greedy = decoder.generate("hello", max_new_tokens=12)
    drawn = decoder.generate("hello", max_new_tokens=12, temperature=1, seed=3)
    for number, (status, (start, *cycles, end)) in enumerate(looks):
        right = drawn if number == 1 else greedy
        assert (status, start["type"], end["type"]) == (200, "start", "end")
        assert "".join(piece["text"] for one in cycles for piece in one["pieces"]) == right.text
        assert end["completion_tokens"] == len(right.tokens)
        for cycle in cycles[1:]:
            if number == 2:
                assert cycle["trace"] is None
                continue
            taken = [n["token"] for n in cycle["trace"]["nodes"] if n["accepted"] and n["depth"]]
            taken.append(cycle["trace"]["bonus"]["token"])
            assert taken[: len(cycle["tokens"])] == cycle["tokens"]
    sizes = [len(looks[number][1][2]["trace"]["nodes"]) for number in (0, 3, 4, 5)]
    assert sizes == [4, 2, 5, 4]

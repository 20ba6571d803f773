"""The dashboard for Grafana: it asks for what a server tells, in forms that Grafana reads."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eagle.serve import reserved

FILE = Path(__file__).parents[2] / "docs/examples/grafana/dashboard.json"
BOARD = json.loads(FILE.read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}  # what Grafana puts in
FROM_PROMETHEUS = {"instance", "job"}  # labels that it adds to all that it reads


@pytest.fixture(scope="module")
def told(site):
    """What a server tells: the labels of every name, by name."""
    assert site.chat(temperature=0, max_tokens=6).status == 200
    found: dict[str, set[str]] = {}
    text = site.ask("GET", "/metrics").content.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def prometheus(site, tmp_path_factory):
    """Ask a Prometheus that reads the server's figures and has read some requests."""
    if not (program := shutil.which("prometheus")):
        pytest.skip("prometheus (a package of Debian's) is missing")
    folder = tmp_path_factory.mktemp("prometheus")
    reads = {"job_name": "eagle", "static_configs": [{"targets": [f"127.0.0.1:{site.port}"]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [reads]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
    with reserved("127.0.0.1", 0) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
    }
    log = (folder / "log").open("w")
    run = subprocess.Popen(
        [program, *(f"--{name}={value}" for name, value in options.items())], stderr=log
    )

    def ask(query):
        asked = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{asked}", timeout=10) as given:
            return json.load(given)["data"]["result"]

    def count():
        try:
            return float(ask("sum(eagle_time_to_first_token_seconds_count)")[0]["value"][1])
        except (OSError, IndexError):  # it still starts, or has read nothing
            return -1.0

    try:
        until = time.monotonic() + 60
        while count() < 0:  # a rate is of two readings with requests between them
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        before = count()
        for seed in range(4):
            assert site.chat(seed=seed, max_tokens=12).status == 200
        while count() < before + 4:
            assert time.monotonic() < until
            time.sleep(0.2)
        yield ask
    finally:
        run.terminate()
        run.wait(30)
        log.close()


def names(query):
    return set(re.findall(r"\beagle_\w+", query))


def lost(given, kept, place=""):
    """Return the places at which one JSON value says what another one does not."""
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(f"{place}.{key}", value, kept.get(key)) for key, value in given.items()]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = [(f"{place}[{i}]", *both) for i, both in enumerate(zip(given, kept, strict=True))]
    else:
        return [] if given == kept else [place]
    return [one for where, ours, theirs in pairs for one in lost(ours, theirs, where)]


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_asks_for_what_the_server_tells(told, query):
    assert names(query)
    assert names(query) <= told.keys()
    labels = {"le"} if "_bucket" in query else set[str]()
    labels = labels.union(*(told[name] for name in names(query))) | FROM_PROMETHEUS
    for group in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", query):
        assert set(re.findall(r"\w+", group)) <= labels


def test_nothing_that_the_server_tells_is_left_out(told):
    shown = set().union(*map(names, QUERIES))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


def test_the_choice_of_a_server_is_of_what_it_tells(told):
    (query,) = [one["query"] for one in BOARD["templating"]["list"] if one["name"] == "instance"]
    assert names(query) <= told.keys()
    assert all('instance=~"$instance"' in query for query in QUERIES)


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_is_promql(query):
    promql = pytest.importorskip("promql_parser", reason="promql-parser (extra dev) is missing")
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query
    promql.parse(query)


@pytest.mark.parametrize("query", QUERIES)
def test_prometheus_answers_each_query(prometheus, query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    given = prometheus(query)
    assert given
    assert any(not math.isnan(float(one["value"][1])) for one in given)


def test_prometheus_finds_nothing_wrong_with_how_figures_are_told(site):
    if not (program := shutil.which("promtool")):
        pytest.skip("promtool (of Debian's package prometheus) is missing")
    text = site.ask("GET", "/metrics").content
    checked = subprocess.run([program, "check", "metrics"], input=text, capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()


def test_grafanas_own_types_keep_all_that_the_dashboard_says():
    cog = pytest.importorskip(
        "grafana_foundation_sdk.cog", reason="grafana-foundation-sdk (extra dev) is missing"
    )
    assert cog
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))
    assert lost(BOARD, kept) == []


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other():
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken = [
        (at["x"] + x, at["y"] + y)
        for at in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(at["w"])
        for y in range(at["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24

"""GET /metrics, /performance and /scale: the same numbers as everywhere, with bounded labels. deploy/ uses them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rest import problem

from jobq import Backoff, Queue, Worker
from jobq.cli.parser import build_parser
from jobq.testing import drain

if TYPE_CHECKING:
    from rest import Client, NewClient

    from jobq import Connection

ROOT = Path(__file__).parents[2]
Samples = dict[str, list[tuple[dict[str, str], float]]]
"""Name of a sample -> its labels and values."""


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def scrape(client: Client) -> Samples:
    response = await client.get("/metrics")
    text = await response.text()
    assert response.status == 200, text
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(text)


def value(found: Samples, name: str, **labels: str) -> float:
    (number,) = [number for own, number in found[name] if labels.items() <= own.items()]
    return number


@pytest.fixture
async def queue(connection: Connection) -> Queue:
    """A queue with a type that works, and one that fails."""
    queue = Queue("mail", connection)

    @queue.task
    async def good() -> None: ...

    @queue.task(attempts=2, backoff=Backoff(type="fixed", delay=0, jitter=0))
    async def bad() -> None:
        raise ValueError("x")

    return queue


async def get(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    return await response.json()


async def test_all_surfaces_show_the_same_numbers(queue: Queue, new_client: NewClient) -> None:
    client = await new_client(queue)
    for type_ in ("good", "good", "bad"):
        await queue.enqueue(type_)
    await drain(queue)
    await queue.enqueue("good", delay=60)
    await queue.set_group("g", paused=True)
    await queue.enqueue("bad", group="g")
    found = await scrape(client)
    performance = await get(client, "/performance?window=7d")
    stats = await get(client, "/jobs/stats")
    assert performance["all"]["completed"] == stats["completed_total"] == 2
    assert value(found, "jobq_completed_jobs_total", queue="mail") == 2
    for row in performance["types"]:
        for outcome in ("completed", "failed", "retried"):
            assert value(found, "jobq_runs_total", type=row["type"], outcome=outcome) == row[outcome]
    assert value(found, "jobq_runs_total", type="bad", outcome="retried") == 1
    assert value(found, "jobq_run_seconds_count", type="good") == 2
    assert value(found, "jobq_run_seconds_bucket", type="good", le="+Inf") == 2
    assert value(found, "jobq_wait_seconds_sum", type="good") < 60
    assert value(found, "jobq_enqueued_total", queue="mail") == 5
    assert value(found, "jobq_jobs", type="good", state="delayed") == 1
    assert value(found, "jobq_jobs", type="bad", state="held") == 1
    assert value(found, "jobq_state_jobs", state="held") == 1
    assert value(found, "jobq_oldest_held_seconds", queue="mail") >= 0
    assert value(found, "jobq_lost_leases_total", type="good") == 0
    assert value(found, "jobq_up", queue="mail") == 1
    assert value(found, "jobq_redis_memory_bytes", queue="mail") > 0


async def test_names_of_clients_are_never_labels(new_client: NewClient, connection: Connection) -> None:
    queue = Queue("open", connection)
    client = await new_client(queue)
    for n in range(20):
        await queue.enqueue(f"type{n}", group=f"group{n}", key=f"key{n}")
    text = await (await client.get("/metrics")).text()
    assert not re.search(r"type\d|group\d|key\d", text)
    assert value(samples(text), "jobq_jobs", type="other", state="held") == 20


async def test_a_key_shows_only_its_queues(new_client: NewClient, connection: Connection) -> None:
    from jobq.http import auth

    secret, key = auth.new_key("prometheus", auth.Scope.READ, ["a"])
    client = await new_client(Queue("a", connection), Queue("b", connection), api_keys=[key])
    assert (await client.get("/metrics")).status == 401
    response = await client.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
    assert [labels["queue"] for labels, _ in samples(await response.text())["jobq_up"]] == ["a"]


async def test_a_queue_whose_server_is_away_does_not_hide_others(
    queue: Queue, new_client: NewClient, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobq.errors import StoreUnavailable

    client = await new_client(queue, Queue("other", connection))

    async def away() -> Any:
        raise StoreUnavailable("no answer from Redis")

    monkeypatch.setattr(queue, "types_by_state", away)
    found = await scrape(client)
    assert (value(found, "jobq_up", queue="mail"), value(found, "jobq_up", queue="other")) == (0, 1)
    assert {labels["queue"] for labels, _ in found["jobq_state_jobs"]} == {"other"}


async def test_without_the_package_the_answer_says_what_to_install(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    found = await problem(await client.get("/metrics"), 501, "not-installed")
    assert "pip install 'jobq[metrics]'" in found["detail"]


async def test_an_unknown_window_is_a_422_with_those_that_exist(client: Client) -> None:
    found = await problem(await client.get("/performance?window=2h"), 422, "invalid-query")
    assert found["detail"].endswith("the windows are 1h, 24h, 7d")


@pytest.mark.parametrize(
    "query",
    ["target=0", "target=-1", "target=x", "target=nan", "target=1e99", "min=5&max=2", "max=-1", "slots=0", "x=1"],
)
async def test_a_bad_target_or_bound_is_a_422(client: Client, query: str) -> None:
    response = await client.get(f"/scale?{query}")
    assert response.status == 422, await response.text()


async def test_scale_of_an_unknown_queue_is_a_404(client: Client) -> None:
    await problem(await client.get("/queues/unknown/scale"), 404, "unknown-queue")


async def test_scale(queue: Queue, new_client: NewClient) -> None:
    client = await new_client(queue)
    assert (await get(client, "/scale"))["replicas"] == 0
    await queue.set_group("g", paused=True)
    await queue.enqueue("good", group="g")
    found = await get(client, "/queues/mail/scale")
    assert (found["replicas"], found["held"], found["backlog"]) == (0, 1, 0), "a worker would not start it"
    await queue.enqueue("good")
    found = await get(client, "/scale?target=30&min=0&max=5&slots=10")
    assert found == {
        "queue": "mail", "replicas": 1, "workers": 0, "idle_workers": 0, "slots": 10, "backlog": 1, "active": 0,
        "held": 1, "arrivals_per_second": 0.0, "mean_seconds": None, "target": 30.0,
    }  # fmt: skip
    await queue.pause()
    assert (await get(client, "/scale"))["replicas"] == 0
    assert (await get(client, "/scale?min=3"))["replicas"] == 3


async def test_groups_ask_for_workers_and_paused_ones_do_not(new_client: NewClient, connection: Connection) -> None:
    queue = Queue("groups", connection)
    client = await new_client(queue)
    for group in ("a", "b"):
        for _ in range(5):
            await queue.enqueue("t", group=group)
    assert (await get(client, "/scale"))["backlog"] == 10
    await queue.set_group("a", paused=True)
    found = await get(client, "/scale")
    assert (found["backlog"], found["held"]) == (5, 5)


# -- workers -----------------------------------------------------------------------------------------------------------


async def worker_samples(queue: Queue, jobs: int = 3) -> Samples:
    async with queue, Worker(queue, metrics_port=0) as worker:
        worker.start()
        handles = [await queue.enqueue("good") for _ in range(jobs)]
        for handle in handles:
            await handle.result(10)

        return samples(await asyncio.to_thread(fetch, worker.metrics_port or 0))


def fetch(port: int) -> str:
    """What a worker serves."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return response.read().decode()


async def test_a_worker_serves_its_own_numbers(queue: Queue) -> None:
    found = await worker_samples(queue)
    assert value(found, "jobq_worker_slots") == 100
    assert value(found, "jobq_worker_trip_seconds_count", queue="mail") > 0
    assert value(found, "jobq_worker_claimed_jobs_sum", queue="mail") == 3
    assert value(found, "jobq_worker_settled_jobs_sum", queue="mail") in (2, 3), "the last one may be on its way"
    assert value(found, "jobq_worker_trip_errors_total", queue="mail") == 0


async def test_a_port_that_is_taken_is_a_clear_error(queue: Queue) -> None:
    from jobq.errors import SettingsError

    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}: .*; choose another port"):
            await Worker(queue, metrics_port=port).run()


# -- docs and deploy ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def everything(queue: Queue, new_client: NewClient) -> Samples:
    """The samples of a server and of a worker."""
    client = await new_client(queue)
    await queue.enqueue("good")
    await drain(queue)
    return await scrape(client) | await worker_samples(queue)


def families(found: Samples) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) if f"{name.rpartition('_')[0]}_bucket" in found else name
            for name in found}  # fmt: skip


def used(expression: str) -> set[str]:
    return set(re.findall(r"\bjobq_\w+", expression))


def test_the_page_lists_every_metric(everything: Samples) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    listed = re.findall(r"^\| `(jobq_\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == families(everything)


def test_the_page_lists_the_labels(everything: Samples) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = dict(re.findall(r"^\| `(jobq_\w+)` \| \w+ \|([^|]*)\|", page, re.MULTILINE))
    for name, found in everything.items():
        family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in rows else name
        labels = {label for own, _ in found for label in own} - {"le"}
        assert labels == set(re.findall(r"\w+", rows[family])), family


def test_alert_rules_use_metrics_that_exist(everything: Samples) -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "jobq-alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 9
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in alerts:
        assert used(rule["expr"]), rule["alert"]
        assert used(rule["expr"]) <= set(everything), rule["alert"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert {"summary", "description"} <= set(rule["annotations"])
        assert f"`{rule['alert']}`" in page


def test_the_dashboard_uses_metrics_that_exist(everything: Samples) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "jobq-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 15
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        for target in panel["targets"]:
            assert used(target["expr"]), panel["title"]
            assert used(target["expr"]) <= set(everything), panel["title"]
            assert target["expr"].count("(") == target["expr"].count(")")
    assert used(json.dumps(dashboard["templating"])) <= set(everything)


def promtool(*words: str, given: str = "") -> None:
    """Let Prometheus' own program check something."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, *words], input=given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_alert_rules() -> None:
    promtool("check", "rules", str(ROOT / "deploy" / "prometheus" / "jobq-alerts.yml"))


async def test_prometheus_accepts_the_metrics_of_a_server_and_of_a_worker(queue: Queue, new_client: NewClient) -> None:
    client = await new_client(queue)
    await queue.enqueue("good")
    await drain(queue)
    promtool("check", "metrics", given=await (await client.get("/metrics")).text())
    async with Worker(queue, metrics_port=0) as worker:
        worker.start()
        await (await queue.enqueue("good")).result(10)
        promtool("check", "metrics", given=await asyncio.to_thread(fetch, worker.metrics_port or 0))


def blocks(language: str) -> list[str]:
    """The blocks of the page in this language."""
    page = (ROOT / "docs" / "monitoring.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


async def test_the_recipes_for_scaling_ask_for_what_exists(queue: Queue, new_client: NewClient) -> None:
    client = await new_client(queue)
    found = [yaml.safe_load(one) for one in blocks("yaml")]
    (scaled,) = [one for one in found if one.get("kind") == "ScaledObject"]
    assert scaled["spec"]["minReplicaCount"] == 0
    (trigger,) = scaled["spec"]["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("metrics-api", "AverageValue")
    asked = urlsplit(trigger["metadata"]["url"])
    answer = await get(client, f"{asked.path}?{asked.query}")
    assert isinstance(answer[trigger["metadata"]["valueLocation"]], int)
    assert float(trigger["metadata"]["targetValue"]) == 1
    assert scaled["spec"]["maxReplicaCount"] == int(parse_qs(asked.query)["max"][0])
    (external,) = [one for one in found if "metrics" in one]
    (metric,) = external["metrics"]
    samples = await scrape(client)
    assert samples[metric["external"]["metric"]["name"]] == [
        (metric["external"]["metric"]["selector"]["matchLabels"], 0)
    ]
    (query,) = re.findall(r"`query: (max\(.*?\))`", (ROOT / "docs" / "monitoring.md").read_text())
    assert used(query) <= set(samples)


def test_the_commands_of_alerts_can_be_typed() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "jobq-alerts.yml").read_text())
    words = [rule["annotations"]["description"] for group in rules["groups"] for rule in group["rules"]]
    commands = [found[1] for one in words if (found := re.search(r"Type: jobq (.*)$", one))]
    assert len(commands) >= 3
    for command in commands:
        build_parser().parse_args(shlex.split(re.sub(r"\{\{.*?\}\}", "mail", command)))

"""The files of deploy/: they parse, they start what they say, and they stop without losing a run."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from waiting import holds

from jobq.cli import settings_from
from jobq.cli.parser import build_parser
from jobq.duration import to_seconds
from jobq.http.routes import ROUTES
from jobq.http.serve import free_port
from jobq.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Said

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
HAND_BACK = 5.0
"""Seconds beyond the grace that a worker needs to hand its jobs back and to write its outcomes."""
GIVEN = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


def unit(path: Path) -> ConfigParser:
    """A unit file. No key of these occurs twice in a section, which systemd would allow."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign] # keys of systemd have capitals
    parser.read_string(path.read_text())
    return parser


def environment() -> dict[str, str]:
    """The variables of jobq.env."""
    lines = (DEPLOY / "systemd" / "jobq.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def filled(text: str, env: dict[str, str]) -> str:
    """The text with ${NAME} and ${NAME:-default} replaced."""
    return GIVEN.sub(lambda found: env.get(found[1]) or (found[2] or ""), text)


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "jobq.yaml").read_text()))


def deployment(name: str) -> dict[str, Any]:
    (found,) = [one for one in manifests() if one["kind"] == "Deployment" and one["metadata"]["name"] == name]
    return found["spec"]["template"]["spec"]


def grace_of(words: list[str], env: dict[str, str]) -> float:
    """The grace of a command line. It is parsed, so a flag that does not exist is an error here."""
    args = build_parser().parse_args(words)
    given = {name: value for name, value in env.items() if name.startswith("JOBQ_")}
    assert not unknown_variables(given)
    return getattr(args, "grace", None) or Settings.from_env(given).grace


def test_every_variable_of_the_environment_file_is_a_setting_or_belongs_to_the_units():
    env = environment()
    of_units = {name for path in UNITS for name, _ in GIVEN.findall(unit(path)["Service"]["ExecStart"])}
    settings = {name: value for name, value in env.items() if name not in of_units}
    assert of_units <= set(env)
    assert not unknown_variables(settings)
    assert Settings.from_env(settings).http_port == 7800


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/jobq/bin/jobq", "/bin/true").replace("=/opt/app", f"={tmp_path}"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    # A container without the bus says so, and knows no other units.
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert not said
    assert done.returncode == 0 or "bus" in done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_gives_its_processes_the_time_to_stop(path: Path):
    service = unit(path)["Service"]
    env = environment()
    words = shlex.split(filled(service["ExecStart"], env))[1:]
    stop = to_seconds(service["TimeoutStopSec"])
    assert stop is not None
    if words[0] == "work":
        assert stop >= grace_of(words, {"JOBQ_GRACE": env["JOBQ_GRACE"]}) + HAND_BACK
    else:
        build_parser().parse_args(words)
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert service["NoNewPrivileges"] == "yes"


def test_the_worker_unit_stops_without_losing_a_run(
    start: Callable[..., Any], jobq: Callable[..., Said], tasks: str, tmp_path: Path, redis_url: str
):
    gate = tmp_path / "gate"
    env = environment() | {"JOBQ_REDIS_URL": redis_url, "TARGET": tasks, "JOBQ_LOG_FORMAT": "console"}
    words = shlex.split(filled(unit(DEPLOY / "systemd" / "jobq-worker.service")["Service"]["ExecStart"], env))[1:]
    job = jobq("enqueue", "gated", f'{{"file": "{gate}"}}', "--queue", tasks).out.strip()
    process = start(*words, **{name: value for name, value in env.items() if value})
    process.wait_line("worker started")
    holds(lambda: jobq("show", job, "--json").json[0]["state"] == "active", "the job runs")
    process.popen.send_signal(signal.SIGTERM)
    gate.touch()
    assert process.popen.wait(30) == 0
    row = jobq("show", job, "--json").json[0]
    assert (row["state"], row["attempts_made"]) == ("completed", 1)


def test_the_server_unit_answers_its_probes(start: Callable[..., Any], tasks: str, redis_url: str):
    port = free_port()
    env = environment() | {
        "JOBQ_REDIS_URL": redis_url,
        "TARGET": tasks,
        "JOBQ_HTTP_PORT": str(port),
        "JOBQ_LOG_FORMAT": "console",
    }
    words = shlex.split(filled(unit(DEPLOY / "systemd" / "jobq-server.service")["Service"]["ExecStart"], env))[1:]
    process = start(*words, **{name: value for name, value in env.items() if value})
    process.wait_line("serving")
    probes = deployment("jobq-server")["containers"][0]
    for probe in ("livenessProbe", "readinessProbe"):
        path = probes[probe]["httpGet"]["path"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            assert answer.status == 200
    # The check of the image, on this port.
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    check = re.search(r'CMD \["python", "-c", "(.*)"\]', image)
    assert check
    code = check[1].replace(":7800", f":{port}")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 0
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(15) == 0
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=20).returncode == 1


def test_the_image_runs_as_a_user_with_a_number_and_its_command_exists():
    lines = (DEPLOY / "docker" / "Dockerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT")]
    assert yaml.safe_load(entry.partition(" ")[2]) == ["jobq"]
    (command,) = [line for line in lines if line.startswith("CMD")]
    build_parser().parse_args(yaml.safe_load(command.partition(" ")[2]))
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_the_image_can_be_built(tmp_path: Path):
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no Docker daemon")
    (tmp_path / "app.py").write_text("from jobq import Queue\n\nqueue = Queue('app')\n")
    root = DEPLOY.parent
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=root, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    (tmp_path / "requirements.txt").write_text(f"/app/{wheel.name}\n")
    subprocess.run(
        ["docker", "build", "-q", "-f", str(DEPLOY / "docker" / "Dockerfile"), "-t", "jobq-test", str(tmp_path)],
        check=True,
        timeout=100,
    )


def test_the_compose_file_starts_what_exists_and_gives_it_time():
    services = compose()
    for name in ("server", "worker"):
        service = services[name]
        words = [filled(word, {}) for word in service["command"]]
        build_parser().parse_args(words)
        given = {key: filled(value, {"JOBQ_API_KEYS": "x"}) for key, value in service["environment"].items()}
        assert not unknown_variables(given)
        assert service["depends_on"]["valkey"]["condition"] == "service_healthy"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        dockerfile = filled(service["build"]["dockerfile"], {})
        context = DEPLOY / "docker" / filled(service["build"]["context"], {})
        assert (context / dockerfile).is_file()
    worker = services["worker"]
    stop = to_seconds(worker["stop_grace_period"])
    assert stop is not None
    assert stop >= grace_of([filled(word, {}) for word in worker["command"]], {}) + HAND_BACK
    assert worker["healthcheck"] == {"disable": True}, "the image's check asks a port that a worker does not have"
    # A server that others can reach refuses to start without keys.
    assert services["server"]["environment"]["JOBQ_API_KEYS"].startswith("${JOBQ_API_KEYS:?")
    assert services["server"]["ports"] == ["127.0.0.1:7800:7800"]
    assert "noeviction" in services["valkey"]["command"]
    assert "--appendonly" in services["valkey"]["command"]


def test_the_manifests_are_whole():
    if shutil.which("kubectl"):
        done = subprocess.run(
            ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    kinds = [(one["kind"], one["metadata"]["name"]) for one in manifests()]
    assert len(set(kinds)) == len(kinds) == 5
    for one in manifests():
        if one["kind"] == "Deployment":
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        elif one["kind"] == "PodDisruptionBudget":
            component = one["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
            assert one["metadata"]["name"] == f"jobq-{component}"


@pytest.mark.parametrize("name", ["jobq-server", "jobq-worker"])
def test_a_pod_is_not_root_and_has_time_to_stop(name: str):
    spec = deployment(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 10001
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    env = {one["name"]: one.get("value", "") for one in container["env"]}
    assert not unknown_variables(env)
    args = build_parser().parse_args(container["args"])
    settings_from(args)
    if name == "jobq-worker":
        grace = grace_of(container["args"], {key: value for key, value in env.items() if value})
        assert spec["terminationGracePeriodSeconds"] >= grace + HAND_BACK
        assert "livenessProbe" not in container, "it would restart all workers when Redis is away"
        return
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > pause + 10
    paths = {route.path for route in ROUTES}
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        port = container[probe]["httpGet"]["port"]
        assert port in [one["name"] for one in container["ports"]]

"""Settings from the environment. An error names the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobq import Settings
from jobq.errors import SettingsError
from jobq.settings import default_data_dir, unknown_variables

GIVEN = {
    "redis_url": ("unix:///s", "unix:///s"),
    "data_dir": ("/data", "/data"),
    "prefix": ("p", "p"),
    "http_host": ("::1", "::1"),
    "http_port": ("80", 80),
    "allowed_hosts": ("jobs.example.com", "jobs.example.com"),
    "rate": ("2.5", 2.5),
    "session_secret": ("s" * 32, "s" * 32),
    "api_keys": ("a:b:c", "a:b:c"),
    "lease": ("1.5m", 90.0),
    "grace": ("0", 0.0),
    "concurrency": ("7", 7),
    "reserve": ("priority<0=20", "priority<0=20"),
    "metrics_port": ("9100", 9100),
    "metrics_host": ("0.0.0.0", "0.0.0.0"),
    "webhook_allow": ("10.0.0.0/8", "10.0.0.0/8"),
    "max_payload": ("1024", 1024),
    "max_result": ("2048", 2048),
    "max_rules": ("3", 3),
    "max_limit_keys": ("9", 9),
    "max_schedules": ("5", 5),
    "max_breakers": ("4", 4),
    "max_groups": ("6", 6),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


def test_an_empty_environment_is_fine():
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"JOBQ_LEASE": "", "JOBQ_UNKNOWN": "x", "PATH": "/bin"}) == Settings()


def test_each_has_a_variable():
    assert sorted(GIVEN) == sorted(Settings.__struct_fields__), "a new setting belongs into this test"
    settings = Settings.from_env({f"JOBQ_{name.upper()}": text for name, (text, _) in GIVEN.items()})
    for name, (_, value) in GIVEN.items():
        assert getattr(settings, name) == value, name


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("JOBQ_HTTP_PORT", "http", "Expected `int`, got `str`"),
        ("JOBQ_HTTP_PORT", "7800.5", "Expected `int`"),
        ("JOBQ_HTTP_PORT", "70000", "<= 65535"),
        ("JOBQ_HTTP_PORT", "-1", ">= 0"),
        ("JOBQ_LEASE", "soon", "Expected `float`, got `str`"),
        ("JOBQ_LEASE", "0s", "> 0"),
        ("JOBQ_GRACE", "2d", "<= 86400"),
        ("JOBQ_LEASE", "0", "> 0"),
        ("JOBQ_LEASE", "-5", "> 0"),
        ("JOBQ_LEASE", "nan", "float"),
        ("JOBQ_LEASE", "inf", "float"),
        ("JOBQ_GRACE", "x", "Expected `float`, got `str`"),
        ("JOBQ_GRACE", "-1", ">= 0"),
        ("JOBQ_CONCURRENCY", "many", "Expected `int`, got `str`"),
        ("JOBQ_CONCURRENCY", "0", ">= 1"),
        ("JOBQ_MAX_PAYLOAD", "1MB", "Expected `int`, got `str`"),
        ("JOBQ_MAX_PAYLOAD", "0", ">= 1"),
        ("JOBQ_LOG_LEVEL", "loud", "Invalid enum value 'loud'"),
        ("JOBQ_LOG_FORMAT", "xml", "Invalid enum value 'xml'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(variable: str, value: str, why: str):
    with pytest.raises(SettingsError, match=f"^{variable}={value!r}: .*{why}"):
        Settings.from_env({variable: value})


def test_an_unknown_variable_is_named_with_the_nearest_setting():
    env = {
        "JOBQ_REDIS_ULR": "x",
        "JOBQ_CONCURENCY": "4",
        "JOBQ_" + "X" * 1000: "",
        "JOBQ_LEASE": "5",
        "JOBQ_TEST_SERVER": "redis",
        "JOBQ_LIFELINE": "3",
        "REDIS_URL": "x",
    }
    first, second, third = unknown_variables(env)
    assert first == "the variable JOBQ_CONCURENCY is unknown and ignored; did you mean JOBQ_CONCURRENCY?"
    assert second == "the variable JOBQ_REDIS_ULR is unknown and ignored; did you mean JOBQ_REDIS_URL?"
    assert "XXX is unknown and ignored; the settings are JOBQ_REDIS_URL, JOBQ_DATA_DIR" in third
    assert unknown_variables({}) == []


def test_overrides_win_unless_they_are_none():
    env = {"JOBQ_LEASE": "5", "JOBQ_CONCURRENCY": "7"}
    settings = Settings.from_env(env, lease=2, concurrency=None)
    assert (settings.lease, settings.concurrency) == (2.0, 7)
    with pytest.raises(SettingsError, match=r"Expected `int`, got `str` - at `\$.concurrency`"):
        Settings.from_env({}, concurrency="many")
    with pytest.raises(SettingsError, match="unknown field `nope`"):
        Settings.from_env({}, nope=1)


def test_the_data_directory_of_each_platform(monkeypatch):
    assert Settings(data_dir="/data").data_path == Path("/data")
    monkeypatch.setattr("sys.platform", "linux")
    assert default_data_dir({"XDG_DATA_HOME": "/xdg"}) == Path("/xdg/jobq")
    assert default_data_dir({}) == Path.home() / ".local" / "share" / "jobq"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_data_dir({"XDG_DATA_HOME": "/xdg"}) == Path.home() / "Library" / "Application Support" / "jobq"


SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"


@pytest.mark.parametrize(
    "field", [name for name, value in GIVEN.items() if isinstance(value[1], str) and not name.startswith("log_")]
)
def test_a_secret_is_not_shown(field: str):
    value = f"redis://u:{SECRET}@h?password={SECRET}" if field not in ("api_keys", "session_secret") else SECRET
    given: dict[str, Any] = {field: value}
    settings = Settings(**given)
    assert SECRET not in repr(settings)
    assert SECRET not in str(list(settings.__rich_repr__()))
    assert field in repr(settings)


def test_documentation_does_not_show_the_environment():
    """A default argument ``env=os.environ`` would be printed by ``help``, by Sphinx and by every editor."""
    code = (
        "import pydoc, jobq.engine.server.embedded as e, jobq.settings as s\n"
        "for module in (e, s): print(pydoc.render_doc(module, renderer=pydoc.plaintext))"
    )
    env = {**os.environ, "SOME_TOKEN": SECRET}
    text = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60, check=True).stdout
    assert b"from_env" in text
    assert SECRET.encode() not in text
    for path in (Path(__file__).parents[2] / "jobq").rglob("*.py"):
        source = path.read_text()
        assert "= os.environ)" not in source, f"{path} has a default argument that documentation would print"
        assert "= os.environ," not in source, f"{path} has a default argument that documentation would print"

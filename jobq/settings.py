"""Settings from the environment. Each is also a flag of the command line."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jobq.duration import to_seconds
from jobq.errors import SettingsError
from jobq.redact import MASK, redact

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMES = frozenset({"lease", "grace"})
_SECRETS = frozenset({"api_keys", "session_secret"})


def default_data_dir(env: Mapping[str, str] | None = None) -> Path:
    """The default directory for the embedded server's data. ``env``: by default ``os.environ``."""
    env = os.environ if env is None else env
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "jobq"
    return Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "jobq"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every field is read from ``JOBQ_<FIELD>``. Times are seconds (a variable may also be "5m"), sizes are bytes."""

    redis_url: str | None = None
    """redis://, rediss://, unix://, valkey://, redis+sentinel:// or redis+cluster://. None means an embedded server."""
    data_dir: str | None = None
    """Directory for the embedded server's data. None means the user's data directory."""
    prefix: str = "jobq"
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Meta(ge=0, le=65535)] = 7800
    api_keys: str | None = None
    """``name:sha256-of-the-key:scope[:queues[:expires]]``, comma separated; see SECURITY.md."""
    session_secret: str | None = None
    """Secret that signs the dashboard's sessions: 32 characters or more, the same for all servers behind one address.
    None means a random secret at each start."""
    allowed_hosts: str | None = None
    """Names that the Host header may have besides those of this machine, comma separated. Needed behind a proxy that
    passes the header on."""
    rate: Annotated[float, Meta(gt=0)] | None = None
    """REST calls per second for each API key, or for each address if there are no keys. None means no limit."""
    lease: Annotated[float, Meta(gt=0, le=86_400)] = 30.0
    grace: Annotated[float, Meta(ge=0, le=86_400)] = 25.0
    concurrency: Annotated[int, Meta(ge=1)] = 100
    reserve: str | None = None
    """Slots of a worker that only urgent jobs may take: "priority<0=20"."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """Port on which `jobq work` serves the numbers of each worker process: the first one takes this port, the second
    one the next. None means that they are not served."""
    metrics_host: str = "127.0.0.1"
    webhook_allow: str | None = None
    """Networks of private addresses that webhooks may reach, comma separated: "10.0.0.0/8,127.0.0.0/8"."""
    max_payload: Annotated[int, Meta(ge=1)] = 1 << 20
    max_result: Annotated[int, Meta(ge=1)] = 1 << 20
    """Bytes of JSON that a handler may return. A larger result fails the job, because it would slow down every
    reader."""
    max_rules: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    """Rules of limits that a queue may have."""
    max_limit_keys: Annotated[int, Meta(ge=1, le=64)] = 8
    """Limit keys that a job may have. Each one costs Redis something at every move of the job."""
    max_schedules: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Schedules that a queue may have."""
    max_breakers: Annotated[int, Meta(ge=1, le=3000)] = 1000
    """Circuit breakers that a queue may have. They are read all at once."""
    max_groups: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    """Groups with settings of their own that a queue may have. The number of groups itself is not bounded."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read ``JOBQ_*`` from ``env`` (default: ``os.environ``). An override that is not None wins.

        :raises SettingsError: a variable cannot be used. The text names it and the values that it takes.
        """
        env = os.environ if env is None else env
        found: dict[str, Any] = {
            field: value for field in cls.__struct_fields__ if (value := env.get(f"JOBQ_{field.upper()}"))
        }
        for field in _TIMES & found.keys():
            seconds = to_seconds(found[field])
            found[field] = found[field] if seconds is None else seconds
        for field, value in found.items():
            # Convert one field at a time, so that the error can name its variable.
            try:
                msgspec.convert({field: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                variable = f"JOBQ_{field.upper()}"
                why = str(error).rpartition(" - at ")[0] or str(error)
                raise SettingsError(f"{variable}={redact(env[variable])!r}: {why}") from None
        found |= {field: value for field, value in overrides.items() if value is not None}
        try:
            return msgspec.convert(found, cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(str(error)) from None

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Settings({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The fields without secrets, for ``repr`` and for rich, which prints these instead of the repr."""
        return [(name, _shown(name, getattr(self, name))) for name in self.__struct_fields__]

    @property
    def data_path(self) -> Path:
        """The embedded server's data directory."""
        return Path(self.data_dir) if self.data_dir else default_data_dir()


def _shown(name: str, value: Any) -> Any:
    if value is not None and name in _SECRETS:
        return MASK
    return redact(value) if isinstance(value, str) else value


LIFELINE = "JOBQ_LIFELINE"
"""The variable that connects a process with its supervisor, see jobq/cli/supervisor.py."""
NUMBER = "JOBQ_NUMBER"
"""The variable with the number of a process of a supervisor, from 1."""
_NO_SETTINGS = ("JOBQ_TEST_", LIFELINE, NUMBER)


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """A warning for each ``JOBQ_*`` that is not a setting. Otherwise a mistyped name would silently have no effect."""
    known = [f"JOBQ_{field.upper()}" for field in Settings.__struct_fields__]
    sentences: list[str] = []
    for name in sorted(env):
        if name.startswith("JOBQ_") and name not in known and not name.startswith(_NO_SETTINGS):
            nearest = difflib.get_close_matches(name[:80], known, 1, cutoff=0.8)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; the settings are {', '.join(known)}"
            sentences.append(f"the variable {name[:80]} is unknown and ignored{hint}")
    return sentences

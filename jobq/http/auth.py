"""API keys: hashed at rest, compared in constant time, with a scope, queues and an expiry.

An entry of the settings is ``name:sha256-of-the-key:scope[:queues[:expires]]``. Commas separate several entries, so
a new key can be added before the old one is removed. ``queues``: shell patterns, separated by ``|``. ``expires``: a
date or time in ISO 8601, in UTC unless it has an offset.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from datetime import UTC, datetime
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from jobq.errors import SettingsError
from jobq.http.problems import FORBIDDEN, UNAUTHENTICATED, HttpProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence


class Scope(IntEnum):
    """The right that a route needs and a key grants. Each scope includes those before it. ``PUBLIC`` needs no key."""

    PUBLIC = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


class ApiKey(NamedTuple):
    """An API key as the server stores it: its hash, never the key itself. ``expires``: unix seconds."""

    name: str
    sha256: str
    scope: Scope
    queues: tuple[str, ...] = ("*",)
    expires: float | None = None

    def may_reach(self, queue: str) -> bool:
        """Whether the key is valid for this queue."""
        return self.queues == ("*",) or any(fnmatchcase(queue, pattern) for pattern in self.queues)

    def entry(self) -> str:
        """The key's entry in the settings."""
        expires = [] if self.expires is None else [datetime.fromtimestamp(self.expires, UTC).isoformat()]
        return ":".join([self.name, self.sha256, self.scope.name.lower(), "|".join(self.queues), *expires])


ANYONE = ApiKey("anyone", "", Scope.ADMIN)
"""The key of every request where no keys are configured. ``serve`` allows that on a loopback address only."""


def hash_key(secret: str) -> str:
    """A key's hash. Keys are random and long, so one round is enough."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def new_key(
    name: str, scope: Scope = Scope.WRITE, queues: Sequence[str] = ("*",), expires: float | None = None
) -> tuple[str, ApiKey]:
    """Make a key. Returns the secret for its owner, and the hashed key for the server.

    :raises SettingsError: the name or a queue's pattern has characters that its entry in the settings cannot hold.
    """
    secret = f"jobq_{secrets.token_urlsafe(32)}"
    _check_name(name, "API key")
    for pattern in queues:
        if not _PATTERN.fullmatch(pattern):
            raise SettingsError(
                f"queue pattern {pattern[:80]!r}: it takes letters, digits, '.', '_', '-' and the wildcards * ? []"
            )
    return secret, ApiKey(name, hash_key(secret), scope, tuple(queues), expires)


def parse_keys(text: str) -> list[ApiKey]:
    """Read the keys out of the settings.

    :raises SettingsError: an entry is wrong. It is named by its position, since its text may hold a secret.
    """
    return [_parse(position, entry.strip()) for position, entry in enumerate(text.split(","), 1) if entry.strip()]


def _parse(position: int, entry: str) -> ApiKey:
    where = f"API key {position}"
    parts = entry.split(":", 4)
    if len(parts) < 3:
        raise SettingsError(f"{where}: it takes name:sha256-of-the-key:scope[:queues[:expires]]")
    name, digest, scope, queues, expires = (*parts, "", "")[:5]
    _check_name(name, where)
    if not re.fullmatch(r"[0-9a-f]{64}", digest.lower()):
        raise SettingsError(f"{where} ({name}): the second field is the key's sha256 in hex, never the key itself")
    if scope not in ("read", "write", "admin"):
        raise SettingsError(f"{where} ({name}): the scope is read, write or admin")
    try:
        until = _timestamp(expires) if expires else None
    except ValueError:
        raise SettingsError(f"{where} ({name}): expires takes a date or time like 2030-12-31") from None
    return ApiKey(name, digest.lower(), Scope[scope.upper()], tuple(queues.split("|")) if queues else ("*",), until)


_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,128}")


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise SettingsError(f"{where}: the name takes 1 to 64 letters, digits, '_', '.', '-'")


def _timestamp(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


class Keyring:
    """The keys that open this server. ``now``: unix seconds."""

    def __init__(self, keys: Sequence[ApiKey], now: Callable[[], float] = time.time) -> None:
        self._keys = tuple(keys)
        self._now = now

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys)

    def find(self, authorization: str | None) -> ApiKey:
        """The key that the Authorization header holds.

        :raises HttpProblem: there is no key, or it is not valid.
        """
        kind, _, secret = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise HttpProblem(UNAUTHENTICATED, "send the header 'Authorization: Bearer <API key>'")
        digest = hash_key(secret.strip())
        found = None
        for key in self._keys:  # Compare with all keys, so that the time taken reveals nothing.
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise HttpProblem(UNAUTHENTICATED, "this API key is not known to this server")
        if found.expires is not None and found.expires <= self._now():
            raise HttpProblem(UNAUTHENTICATED, f"the API key {found.name!r} has expired; ask for a new one")
        return found


def require(key: ApiKey, scope: Scope) -> None:
    """:raises HttpProblem: the key's scope does not include the route's."""
    if key.scope < scope:
        need, have = scope.name.lower(), key.scope.name.lower()
        raise HttpProblem(FORBIDDEN, f"this needs the scope {need!r}, the key {key.name!r} has {have!r}", scope=need)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_bind(host: str, keys: Collection[ApiKey] | Keyring) -> None:
    """Refuse to serve other machines without keys.

    :raises SettingsError: the address can be reached from elsewhere and there is no API key.
    """
    if not keys and not is_loopback(host):
        raise SettingsError(
            f"{host or 'every address'} can be reached from other machines, and no API key is set: anybody"
            " could run and delete jobs. Set JOBQ_API_KEYS (in Python: create_app(..., api_keys=...)), or bind to"
            " 127.0.0.1"
        )

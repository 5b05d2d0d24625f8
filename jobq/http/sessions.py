"""Sessions of the dashboard: a signed cookie that stands for an API key.

The server stores no sessions, so several processes with the same secret accept each other's sessions.
The secret is independent of the configured hashes: a person who can read those must not be able to make a session.
"""

from __future__ import annotations

import hmac
import secrets
import time
from typing import TYPE_CHECKING, Final

from jobq.errors import SettingsError
from jobq.http.problems import UNAUTHENTICATED, HttpProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobq.http.auth import ApiKey, Keyring

COOKIE: Final = "jobq_session"
SECONDS: Final = 12 * 3600
SHORTEST_SECRET: Final = 32


class Sessions:
    """``secret``: without one, a random secret is used and the sessions end with this process. ``now``: unix seconds.

    :raises SettingsError: the secret is too short.
    """

    def __init__(self, keys: Keyring, secret: str | None = None, now: Callable[[], float] = time.time) -> None:
        if secret is not None and len(secret) < SHORTEST_SECRET:
            # Do not show the secret, even a bad one.
            raise SettingsError(f"JOBQ_SESSION_SECRET takes {SHORTEST_SECRET} or more random characters")
        self._keys = keys
        self._secret = (secret or secrets.token_hex(32)).encode()
        self._now = now

    def new(self, key: ApiKey) -> tuple[str, int]:
        """The cookie's value, and the seconds until it expires."""
        now = int(self._now())
        until = now + SECONDS if key.expires is None else min(now + SECONDS, int(key.expires))
        return f"{until}.{self._sign(key, until)}", until - now

    def find(self, value: str) -> ApiKey:
        """The API key of a session.

        :raises HttpProblem: the session has ended, its key was removed, or this server did not make it.
        """
        until, _, signature = value.partition(".")
        found = None
        if until.isascii() and until.isdecimal() and len(until) <= 12:
            for key in self._keys:  # Compare with all keys, so that the time taken reveals nothing.
                if hmac.compare_digest(self._sign(key, int(until)).encode(), signature.encode(errors="replace")):
                    found = key
        if found is None or min(int(until), found.expires or float("inf")) <= self._now():
            raise HttpProblem(UNAUTHENTICATED, "this session has ended; log in at /dashboard")
        return found

    def _sign(self, key: ApiKey, until: int) -> str:
        # Sign the key's hash and not its name: replacing a key under the same name ends its sessions.
        return hmac.digest(self._secret, f"{key.sha256} {until}".encode(), "sha256").hex()

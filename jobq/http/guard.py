"""Admission of a request: Host, origin, API key and rate are checked before a handler sees it."""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from jobq.http.auth import ANYONE, ApiKey, Keyring, Scope, require
from jobq.http.problems import CROSS_ORIGIN, MISDIRECTED, RATE_LIMITED, HttpProblem
from jobq.http.sessions import COOKIE, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiohttp import web

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
FAILURES_PER_SECOND: Final = 1.0
"""Requests without a valid key that an address may send. Further ones are answered with 429 instead of 401."""
FAILURES_AT_ONCE: Final = 20.0
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Rate:
    """A token bucket for each caller, in this process. ``per_second``: calls. ``burst``: the most calls at once, by
    default those of one second."""

    _MOST = 10_000  # callers remembered; those whose bucket is full again are forgotten first

    def __init__(
        self, per_second: float, now: Callable[[], float] = time.monotonic, *, burst: float | None = None
    ) -> None:
        self._rate = per_second
        self._burst = burst or max(per_second, 1.0)
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, caller: str) -> float:
        """Take a token: 0.0, or the seconds until there is one."""
        now = self._now()
        tokens, at = self._buckets.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        if tokens < 1:
            return (1 - tokens) / self._rate
        if len(self._buckets) >= self._MOST and caller not in self._buckets:
            self._forget(now)
        self._buckets[caller] = (tokens - 1, now)
        return 0.0

    def _forget(self, now: float) -> None:
        full = self._burst / self._rate
        self._buckets = {caller: bucket for caller, bucket in self._buckets.items() if now - bucket[1] < full}
        if len(self._buckets) >= self._MOST:
            self._buckets.clear()


class Guard:
    """The checks of every route that is not public.

    ``hosts``: the names that the Host header may have. None allows any name, which is safe only with API keys: a web
    page that rebinds its name to this address has no key to send. ``session_secret``: see ``Sessions``.
    """

    def __init__(
        self, keys: Keyring, hosts: Iterable[str] | None, rate: Rate | None = None, session_secret: str | None = None
    ) -> None:
        self.keys = keys
        self.sessions = Sessions(keys, session_secret)
        self._hosts = None if hosts is None else frozenset(name.lower().strip("[]") for name in hosts)
        self._seen: set[str] = set()
        self._rate = rate
        self._failures = Rate(FAILURES_PER_SECOND, burst=FAILURES_AT_ONCE)

    def admit(self, request: web.BaseRequest, scope: Scope) -> ApiKey:
        """The API key of the request.

        :raises HttpProblem: the request is refused.
        """
        self._screen(request)
        key = ANYONE
        if self.keys:
            authorization = request.headers.get("Authorization")
            session = None if authorization is not None else request.cookies.get(COOKIE)
            key = self.find(request, authorization) if session is None else self._find_session(request, session)
            require(key, scope)
        if self._rate is not None:
            _check_rate(self._rate, key.name if self.keys else address_of(request))
        return key

    def find(self, request: web.BaseRequest, authorization: str | None) -> ApiKey:
        """The API key that an Authorization header holds.

        :raises HttpProblem: the header holds no valid key. After too many of these from one address the answer is 429.
            A valid key is accepted even then, since clients behind one proxy share an address.
        """
        try:
            return self.keys.find(authorization)
        except HttpProblem:
            self._count_failure(request)
            raise

    def _count_failure(self, request: web.BaseRequest) -> None:
        _check_rate(self._failures, address_of(request))

    def admit_anyone(self, request: web.BaseRequest) -> None:
        """Admit a request that needs no key, such as a login.

        :raises HttpProblem: the host or the origin is not this server's, or there are too many requests.
        """
        self._screen(request)
        if self._rate is not None:
            _check_rate(self._rate, address_of(request))

    def _find_session(self, request: web.BaseRequest, session: str) -> ApiKey:
        try:
            key = self.sessions.find(session)
        except HttpProblem:
            self._count_failure(request)
            raise
        if request.method not in _SAFE:
            # A browser sends cookies by itself. So it has to say that one of our own pages made the request.
            site = request.headers.get("Sec-Fetch-Site")
            if site != "same-origin" and (site is not None or "Origin" not in request.headers):
                raise HttpProblem(
                    CROSS_ORIGIN,
                    "a session may change things only from the server's own pages (Origin, Sec-Fetch-Site);"
                    " outside a browser send the API key",
                )
        return key

    def _screen(self, request: web.BaseRequest) -> None:
        headers = request.headers
        host = headers.get("Host", "")
        if self._hosts is not None and host not in self._seen:
            self._check_host(host, self._hosts)
        if request.method not in _SAFE:
            site = headers.get("Sec-Fetch-Site")
            origin = headers.get("Origin")
            if site is not None or origin is not None:
                _check_origin(site, origin, host)

    def _check_host(self, host: str, allowed: frozenset[str]) -> None:
        if host_name(host) not in allowed:
            raise HttpProblem(
                MISDIRECTED,
                f"the Host header says {host[:80]!r}; allowed are: {', '.join(sorted(allowed))}."
                " Add yours with allowed_hosts",
            )
        if (
            len(self._seen) < 64
        ):  # Remember the header as it is, with its port. In practice there are few different ones.
            self._seen.add(host)


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    name = host.rsplit(":", 1)[0] if ":" in host and not host.endswith("]") else host
    return name.strip("[]").rstrip(".").lower()


@lru_cache
def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4 or found.ipv4_mapped:
        return address
    # One machine commonly has a whole /64 of IPv6 addresses.
    return str(ipaddress.ip_network((found, 64), strict=False))


def address_of(request: web.BaseRequest) -> str:
    """The caller's address, as limits count it."""
    return _network(request.remote or "")


def _check_origin(site: str | None, origin: str | None, host: str) -> None:
    if site not in (None, "same-origin", "none"):
        raise HttpProblem(
            CROSS_ORIGIN,
            f"Sec-Fetch-Site is {site[:40]!r}; call from the server's own pages, or outside a browser",
        )
    try:
        same = origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        same = False
    if not same:
        raise HttpProblem(
            CROSS_ORIGIN,
            "the Origin header is not this server's; call from its own pages, or outside a browser",
        )


def _check_rate(rate: Rate, caller: str) -> None:
    if seconds := rate.wait(caller):
        after = str(max(1, round(seconds + 0.5)))
        raise HttpProblem(RATE_LIMITED, f"repeat after {after} s", headers={"Retry-After": after})

"""Redis URLs: which forms jobq takes, and the redis-py pool that makes connections for one of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis import exceptions
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.sentinel import Sentinel

from jobq.errors import SettingsError
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMS: Final = (
    "redis://host:6379/0, rediss://, valkey://, valkeys://, unix:///path, redis+sentinel://host:26379/service"
)
_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}
_PARAMETERS: Final = frozenset({"db", "username", "password"})
_TLS: Final = frozenset(
    {
        "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path",
        "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "ssl_password",
    }
)  # fmt: skip
"""Parameters that redis-py reads from the URL of a TLS connection."""
_NODE: Final = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
"""Host and port; an IPv6 address stands in brackets."""
_INSTEAD: Final = {
    "protocol": "jobq always speaks RESP2",
    "timeout": "use Connection(url, timeout=seconds)",
    "socket_timeout": "use Connection(url, timeout=seconds)",
    "socket_connect_timeout": "use Connection(url, timeout=seconds)",
    "max_connections": "use Connection(url, max_connections=n)",
}
"""What to use in place of a parameter that redis-py accepts and jobq must not pass on."""


def make_pool(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    """A redis-py pool. It is used only to make connections.

    ``redis+sentinel://host:port,host:port/service?db=0`` leads to the master that Sentinel names. Its user and password
    are those of the master.

    :raises SettingsError: jobq cannot use this URL; the message says why.
    """
    try:
        parts = urlsplit(url)
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        parameters = _parameters(parts, scheme)
        if scheme == "redis+sentinel":
            return _sentinel_pool(parts, parameters, options)
        if scheme in ("redis", "rediss") and not re.fullmatch(r"/?[0-9]*", parts.path):
            raise ValueError(f"the path {parts.path!r} is not the number of a database")
        return ConnectionPool.from_url(parts._replace(scheme=scheme).geturl(), **options)
    except (ValueError, exceptions.RedisError) as error:
        raise SettingsError(f"Redis URL {redact(url)!r}: {redact(str(error))} (jobq takes {FORMS})") from None


def _parameters(parts: SplitResult, scheme: str) -> dict[str, str]:
    """The parameters after the question mark. redis-py accepts any name, and fails only at the first connection.

    :raises ValueError: jobq does not take one of them.
    """
    known = _PARAMETERS | _TLS if scheme == "rediss" else _PARAMETERS
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"the parameter {name[:40]!r} is not supported here: {_INSTEAD.get(name, 'leave it out')};"
                f" supported are {', '.join(sorted(known))}"
            )
    if not parameters.get("db", "0").isdecimal():
        raise ValueError("db must be the number of a database")
    return parameters


def _sentinel_pool(parts: SplitResult, parameters: dict[str, str], options: Mapping[str, Any]) -> ConnectionPool:
    nodes = parts.netloc.rpartition("@")[2].split(",")
    found = [_NODE.fullmatch(node) for node in nodes]
    if not all(found):
        raise ValueError("the addresses of the Sentinels must be host:port,host:port")
    addresses = [(node[1].strip("[]"), int(node[2] or 26379)) for node in found if node]
    service = parts.path.strip("/") or "mymaster"
    login = {
        "username": unquote(parts.username) if parts.username else parameters.get("username"),
        "password": unquote(parts.password) if parts.password else parameters.get("password"),
        "db": int(parameters.get("db", "0")),
    }
    return Sentinel(addresses, **login, **options).master_for(service).connection_pool

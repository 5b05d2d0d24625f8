"""Redis URLs: which forms jobq takes, the redis-py pool that makes connections for one of them, and the URLs of the
nodes of a cluster."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis import exceptions
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.sentinel import Sentinel

from jobq.errors import SettingsError
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMS: Final = (
    "redis://host:6379/0, rediss://, valkey://, valkeys://, unix:///path, redis+sentinel://host:26379/service,"
    " redis+cluster://host:6379,host:6379, rediss+cluster://"
)
_SCHEMES: Final = {
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+cluster": "redis+cluster",
    "valkeys+cluster": "rediss+cluster",
}
_CLUSTERS: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""The scheme of each node, by the scheme of the cluster."""
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


class Nodes(NamedTuple):
    """How the nodes of a cluster are reached.

    ``seeds``: URLs of the nodes that are asked first. ``start`` and ``end``: what stands before and behind the address
    in the URL of every node. ``addresses``: which address to use in place of an announced one.
    """

    seeds: tuple[str, ...]
    start: str
    end: str
    addresses: dict[tuple[str, int | None], tuple[str, int | None]]

    def url(self, host: str, port: int) -> str:
        """The URL of the node that announces this address."""
        other, other_port = self.addresses.get((host, port)) or self.addresses.get((host, None)) or (host, port)
        return self.reached_at(other, other_port or port)

    def reached_at(self, host: str, port: int) -> str:
        """The URL of the node at this address."""
        bracketed = f"[{host}]" if ":" in host else host
        return f"{self.start}{bracketed}:{port}{self.end}"


def is_cluster(url: str) -> bool:
    """Whether the URL says that it leads to a cluster."""
    scheme = _split(url).scheme
    return _SCHEMES.get(scheme, scheme) in _CLUSTERS


def _split(url: str) -> SplitResult:
    """Like ``urlsplit``, which refuses a list of addresses if brackets stand anywhere but around the whole host."""
    scheme, separator, rest = url.partition("://")
    addresses = re.match(r"[^/?#]*", rest)
    netloc = addresses[0] if addresses else ""
    return urlsplit(f"{scheme}{separator}{rest[len(netloc) :]}")._replace(netloc=netloc)


def nodes_of(url: str) -> Nodes:
    """How the nodes of the cluster are reached to which this URL leads, or whose node it names.

    ``redis+cluster://host:port,host:port?address_map=announced=reachable,announced=reachable``: all nodes have the
    user, the password and the TLS parameters of the URL. An address is ``host:port``, or ``host`` for all its ports.

    :raises SettingsError: jobq cannot use this URL; the message says why.
    """
    try:
        parts = _split(url)
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        parameters = _parameters(parts, scheme)
        if parts.path.strip("/") and scheme in _CLUSTERS:
            raise ValueError(f"the path {parts.path!r} has no meaning: a cluster has no numbered databases")
        if scheme == "redis+sentinel":
            raise ValueError("Sentinel names a node of a cluster. Use the addresses of the nodes: redis+cluster://")
        addresses = _address_map(parameters.pop("address_map", ""))
        parameters.pop("db", None)
        login, at, hosts = parts.netloc.rpartition("@")
        start = f"{_CLUSTERS.get(scheme, 'redis' if scheme == 'unix' else scheme)}://{login}{at}"
        nodes = Nodes((url,), start, f"?{urlencode(parameters)}" if parameters else "", addresses)
        if scheme not in _CLUSTERS:
            return nodes
        seeds = [_address(host) for host in hosts.split(",")]
        return nodes._replace(seeds=tuple(nodes.reached_at(host, port or 6379) for host, port in seeds))
    except ValueError as error:
        raise SettingsError(f"Redis URL {redact(url)!r}: {redact(str(error))} (jobq takes {FORMS})") from None


def _address(text: str) -> tuple[str, int | None]:
    found = _NODE.fullmatch(text)
    if not found:
        raise ValueError("the addresses of nodes must be host:port,host:port")
    return found[1].strip("[]"), int(found[2]) if found[2] else None


def _address_map(text: str) -> dict[tuple[str, int | None], tuple[str, int | None]]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(announced and reachable for announced, _, reachable in pairs):
        raise ValueError("address_map must be announced=reachable,announced=reachable")
    return {_address(announced): _address(reachable) for announced, _, reachable in pairs}


def make_pool(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    """A redis-py pool. It is used only to make connections.

    ``redis+sentinel://host:port,host:port/service?db=0`` leads to the master that Sentinel names. Its user and password
    are those of the master. For a cluster the pool is that of its first address.

    :raises SettingsError: jobq cannot use this URL; the message says why.
    """
    if is_cluster(url):
        url = nodes_of(url).seeds[0]
    try:
        parts = _split(url)
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
    known = _PARAMETERS | _TLS if scheme in ("rediss", "rediss+cluster") else _PARAMETERS
    if scheme in _CLUSTERS:
        known = (known | {"address_map"}) - {"db"}
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

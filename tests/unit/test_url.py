"""Redis URLs that jobq accepts, and those that it refuses with a clear error instead of a traceback."""

from __future__ import annotations

import pytest

from jobq import Connection
from jobq.engine.store.refusals import translate
from jobq.engine.store.url import make_pool, nodes_of
from jobq.errors import SettingsError, StoreUnavailable


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"host": "h"}),
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("valkey://u:p%40@h?db=2", {"host": "h", "username": "u", "password": "p@", "db": 2}),
        ("valkeys://h?ssl_check_hostname=no", {"host": "h", "ssl_check_hostname": False}),
        ("unix:///run/redis.sock?db=4", {"path": "/run/redis.sock", "db": 4}),
        ("redis+sentinel://u:p%40@a:1,b/jobs?db=5", {"username": "u", "password": "p@", "db": 5}),
        ("redis+sentinel://a/jobs?password=secret", {"password": "secret", "db": 0}),
    ],
)
def test_options_of_a_url_reach_the_connection(url: str, expected: dict[str, object]):
    found = make_pool(url, {"protocol": 2}).connection_kwargs
    assert {name: found.get(name) for name in expected} == expected
    assert found["protocol"] == 2


def test_the_addresses_of_sentinels():
    pool = make_pool("redis+sentinel://a:1,b,[::1]:3/jobs", {})
    sentinels = pool.sentinel_manager.sentinels  # pyright: ignore
    addresses = [one.connection_pool.connection_kwargs for one in sentinels]
    assert [(one["host"], one["port"]) for one in addresses] == [("a", 1), ("b", 26379), ("::1", 3)]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?protocol=3", "'protocol' is not supported here: jobq always speaks RESP2"),
        ("redis://h?timeout=20", r"'timeout' is not supported here: use Connection\(url, timeout=seconds\)"),
        ("redis://h?max_connections=5", r"use Connection\(url, max_connections=n\)"),
        ("redis://h?decode_responses=1", "'decode_responses' is not supported here: leave it out"),
        ("redis://h?ssl_ca_certs=x", "'ssl_ca_certs' is not supported here"),
        ("redis+sentinel://h/s?quorum=2", "'quorum' is not supported here"),
        ("redis://h/jobs", "the path '/jobs' is not the number of a database"),
        ("redis://h?db=jobs", "db must be the number of a database"),
        ("redis://h:port", "Port could not be cast"),
        ("redis+sentinel://h:port/s", "addresses of the Sentinels must be host:port"),
        ("http://h", "Redis URL must specify one of the following schemes"),
        ("", "Redis URL must specify one of the following schemes"),
    ],
)
def test_an_unusable_url_is_refused_when_the_connection_is_made(url: str, says: str):
    with pytest.raises(SettingsError, match=says):
        Connection(url)


@pytest.mark.parametrize(
    ("url", "first", "node"),
    [
        ("redis+cluster://a:1,b:2", "redis://a:1", "redis://10.0.0.9:7000"),
        ("valkey+cluster://u:p%40@a,[::1]:2", "redis://u:p%40@a:6379", "redis://u:p%40@10.0.0.9:7000"),
        (
            "valkeys+cluster://a?ssl_ca_certs=x",
            "rediss://a:6379?ssl_ca_certs=x",
            "rediss://10.0.0.9:7000?ssl_ca_certs=x",
        ),
        ("redis://u:p@a:1/0?db=0", "redis://u:p@a:1/0?db=0", "redis://u:p@10.0.0.9:7000"),
        ("unix://u:p@/run/s", "unix://u:p@/run/s", "redis://u:p@10.0.0.9:7000"),
        ("redis+cluster://a?address_map=10.0.0.9=b", "redis://a:6379", "redis://b:7000"),
        ("redis+cluster://a?address_map=10.0.0.9:7000=[::1]:2,10.0.0.9=b", "redis://a:6379", "redis://[::1]:2"),
    ],
)
def test_the_urls_of_nodes(url: str, first: str, node: str):
    nodes = nodes_of(url)
    assert nodes.seeds[0] == first
    assert nodes.url("10.0.0.9", 7000) == node
    make_pool(node, {})


@pytest.mark.parametrize("hosts", ["a,[::1]:2", "[::1]:2,a", "[::1],[fe80::2]:3", "u:p@a:1,[::1]"])
def test_addresses_in_brackets_stand_anywhere_in_a_list(hosts: str):
    """``urlsplit`` of Python 3.11.2 and of 3.14 refuses some of these lists. jobq must not depend on its opinion."""
    for scheme, path in (("redis+cluster", ""), ("redis+sentinel", "/jobs")):
        make_pool(f"{scheme}://{hosts}{path}", {})
    assert len(nodes_of(f"redis+cluster://{hosts}").seeds) == hosts.count(",") + 1


def test_a_node_of_a_cluster_behind_sentinel_is_refused():
    with pytest.raises(SettingsError, match="Use the addresses of the nodes"):
        nodes_of("redis+sentinel://a/jobs")


@pytest.mark.parametrize("said", ["MOVED 15495 127.0.0.1:7001", "ASK 3999 h:6381", "CLUSTERDOWN Hash slot not served"])
def test_a_slot_that_nobody_takes_in_time_is_a_failure_that_passes(said: str):
    assert type(translate(Exception(said))) is StoreUnavailable

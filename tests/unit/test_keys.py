"""The Redis keys of a queue: all are made in keys.py and are in one cluster slot."""

from __future__ import annotations

import re
from pathlib import Path

import jobq
from jobq.engine.store import lua
from jobq.engine.store.keys import COLUMNS, LAYOUT, queue_keys, registry_key

PACKAGE = Path(jobq.__file__).parent


def test_all_keys_of_a_queue_share_its_hash_tag():
    keys = queue_keys("pre", "mail.out")
    assert list(keys) == list(COLUMNS)
    assert len(set(keys.values())) == len(keys)
    assert all(key == f"pre:{{mail.out}}:{column}".encode() for column, key in keys.items())


def test_queues_and_prefixes_do_not_meet():
    everything = [
        key
        for prefix in ("jobq", "other")
        for name in ("a", "b", "queues", "a.b")
        for key in queue_keys(prefix, name).values()
    ]
    everything += [registry_key("jobq"), registry_key("other")]
    assert len(set(everything)) == len(everything)


def test_every_column_has_a_kind_and_a_user():
    assert LAYOUT == 1, "a new layout needs a migration, and a test of it"
    used = {key for script in lua.scripts().values() for key in script.keys}
    for column, text in COLUMNS.items():
        assert re.match(r"(zset|hash|stream, capped|channel): ", text), column
        assert column in used, f"no script touches {column}"


def test_keys_are_made_in_one_place():
    """No other file contains the text of a key."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "keys.py":
            assert ":{{" not in path.read_text(), path

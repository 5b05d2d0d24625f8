"""Tests of every script: header and body agree, flags, EVAL verbatim, one method, a row in the README."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from columns import also
from table import TOKEN, Bench, held, standing, waiting

from jobq.engine.store import Call, Store, counting, lua, opening, reading, scheduling, sharing, webhooks
from jobq.engine.store import store as store_module
from jobq.engine.store.keys import COLUMNS
from jobq.errors import StoreFull
from tests.mutations import EQUIVALENT, SABOTAGES, left_out

SCRIPTS = lua.scripts()
NOW_LINE = (
    "local now = tonumber(ARGV[1]) if not now then local t = redis.call('TIME') "
    "now = t[1] * 1000 + math.floor(t[2] / 1000) end"
)
READERS = (
    "breakers", "demand", "groups", "limits", "numbers", "page", "ready", "results", "rows", "sample", "stats", "why",
)  # fmt: skip
REFUSED_WHEN_FULL = ("enqueue", "enqueue_unique", "retry", "schedule_fire")

CALLS: dict[str, Any] = {
    "admit": lambda s: s.admit(10, 10, 1),
    "balance": lambda s: s.balance("w", 5000),
    "breaker": lambda s: s.breaker("declare", "t", "0.5 20 30000"),
    "breakers": lambda s: s.breakers(),
    "charge": lambda s: s.charge(["a", TOKEN, "tokens 7"]),
    "claim": lambda s: s.claim(1, 30_000, "w", "w:0", 1, repeated=False),
    "close": lambda s: s.close("r", 500),
    "complete": lambda s: s.complete(["a", TOKEN, "r", 500], ["run7:t", 1]),
    "defer": lambda s: s.defer(["a", TOKEN, "t", 5000], 1000, 60_000, b"[]"),
    "demand": lambda s: s.demand(),
    "drop": lambda s: s.drop(force=True),
    "enqueue": lambda s: s.enqueue(["n", "N", "5 0 0"]),
    "enqueue_unique": lambda s: s.enqueue_unique(["n", "N", "", "unfinished 0 kill_running -1 -1 1 k"]),
    "expire": lambda s: s.expire(10),
    "fail": lambda s: s.fail(["a", TOKEN, 1, "e", 500]),
    "disable_webhook": lambda s: s.disable_webhook("w", b"row", "gone"),
    "follow_events": lambda s: s.follow_events("f", 10_000, 1, "1-0"),
    "fold": lambda s: s.fold(),
    "forward": lambda s: s.forward(10),
    "heartbeat": lambda s: s.heartbeat("w", b"{}"),
    "kill": lambda s: s.kill(["a", "b", "d"], b"{}"),
    "group": lambda s: s.group("g", "2 1 5"),
    "aging": lambda s: s.aging(60_000),
    "groups": lambda s: s.groups("", 10),
    "lapse": lambda s: s.lapse(10, b"{}", b"{}"),
    "limits": lambda s: s.limits("r"),
    "log": lambda s: s.log(["a", TOKEN, 0, 1, "l"]),
    "numbers": lambda s: s.numbers(["", "t"]),
    "open": lambda s: Call("open", [1, ""], int),
    "overflow": lambda s: s.overflow(["a"]),
    "page": lambda s: s.page(
        "waiting", reverse=False, limit=1, scan=1, prefix=b"", highest="", cursor=("", "")
    ),
    "pause": lambda s: s.pause(),
    "progress": lambda s: s.progress(["a", TOKEN, "1"]),
    "promote": lambda s: s.promote(["d"]),
    "publish": lambda s: s.publish("w", ["t", b"{}"], started=True),
    "ready": lambda s: s.ready(),
    "recall": lambda s: s.recall(10, ["t"]),
    "reap": lambda s: s.reap(10, 30_000, "w", 1000, 1000),
    "rebase": lambda s: s.rebase(10, -1),
    "recount": lambda s: s.recount(10),
    "release": lambda s: s.release(["a", TOKEN]),
    "remove": lambda s: s.remove(["b", "c"]),
    "renew": lambda s: s.renew(["a", TOKEN], 30_000),
    "reprioritise": lambda s: s.reprioritise(["b"], 5),
    "reschedule": lambda s: s.reschedule(["a", TOKEN, 1, 500, "e"]),
    "results": lambda s: s.results(["a"]),
    "resume": lambda s: s.resume(),
    "retry": lambda s: s.retry(["c"]),
    "rows": lambda s: s.rows(["a"]),
    "rule": lambda s: s.rule("set", "r", "5"),
    "sample": lambda s: s.sample("waiting"),
    "schedule_due": lambda s: s.schedule_due(10, 2000),
    "schedule_fire": lambda s: s.schedule_fire(
        ["every", "1 5", b"1 6\n{}", 6000, b"1 6\n{}", 6000, "skip", 0, 1, "every~x", "E", "", ""]
    ),
    "schedule_seen": lambda s: s.schedule_seen(["every", "other"]),
    "webhook_write": lambda s: s.webhook_write("w", b"row", b"another row", 100),
    "schedule_write": lambda s: s.schedule_write("every", "1 5", b"2 6\n{}", b"\n{}", 6000),
    "setting": lambda s: s.setting("charge", "actual"),
    "settings": lambda s: s.settings(b"0", b"0"),
    "share": lambda s: s.share(1, "1", "5"),
    "snooze": lambda s: s.snooze(["a", TOKEN, 500]),
    "spread": lambda s: s.spread(4),
    "stats": lambda s: s.stats(),
    "throttle": lambda s: s.throttle(["a", TOKEN, 500, "key"]),
    "trim": lambda s: s.trim(0, 0, 0, 10),
    "why": lambda s: s.why("a"),
}  # fmt: skip
"""One call of each script that has an effect in BEFORE."""
BEFORE = also(
    held("a", till=1),
    waiting("b"),
    standing("completed", "c"),
    standing("delayed", "d"),
    {"parked": {"t\0d": 0}, "unserved": {"d": "1 5000 t"}},
    {"schedules": {"every": 900}, "schedule_rows": {"every": "1 5\n{}\n\n{}"}},
)

every_script = pytest.mark.parametrize("name", sorted(SCRIPTS))


def body(name: str) -> str:
    return SCRIPTS[name].source.decode()


def test_every_script_has_a_call_in_this_table():
    assert sorted(CALLS) == sorted(SCRIPTS)


@every_script
def test_header(name: str):
    lines = body(name).splitlines()
    assert lines[1].startswith(f"-- {name}: ")
    header = lines[1 : next(i for i, line in enumerate(lines) if i and not line.startswith("--"))]
    words = [line.split()[1] for line in header if re.match(r"-- [A-Z]+ ", line)]
    assert words == ["KEYS", "ARGV", "RETURNS"], "what it takes and what it returns, in this order"
    assert body(name).isascii()


@every_script
def test_the_keys_of_the_header_are_those_of_the_body(name: str):
    keys = SCRIPTS[name].keys
    assert len(set(keys)) == len(keys)
    assert [key for key in keys if key not in COLUMNS] == (["set"] if name in ("page", "sample") else [])
    unpacked = re.findall(r"^local (.+) = unpack\(KEYS\)$", body(name), re.MULTILINE)
    assert len(unpacked) == (name != "rows")
    for line in unpacked:
        names = tuple(line.split(", "))
        # If the other keys are accessed by number, only the first names are compared.
        assert names == (keys[: len(names)] if "#KEYS" in body(name) else keys)
    first = re.search(r"for i = (\d+), #KEYS", body(name))
    if first:
        assert keys[int(first[1]) - 1] == "keys", "from `keys` on: the columns of a removed job"


@every_script
def test_every_key_is_used(name: str):
    if "#KEYS" in body(name) or name == "rows":  # They read keys by number.
        return
    code = "\n".join(line for line in body(name).splitlines() if not line.startswith("--"))
    for key in SCRIPTS[name].keys:
        assert len(re.findall(rf"\b{key}\b", code)) >= 2, f"{key} is declared and not used"


def test_remove_and_trim_delete_the_same_columns():
    def columns(name: str) -> set[str]:
        keys = SCRIPTS[name].keys
        return set(keys[keys.index("keys") :])

    assert columns("remove") == columns("trim")
    per_job = {column for column, text in COLUMNS.items() if text.startswith("hash: id ->")}
    assert columns("remove") == per_job - {"leases"}, "a new column of jobs must be removed with them"


def test_a_dropped_queue_leaves_no_key():
    assert set(SCRIPTS["drop"].keys) == set(COLUMNS) - {"control"}, "a new column must be dropped too"


@every_script
def test_now_is_taken_in_one_way(name: str):
    lines = [line for line in body(name).splitlines() if "'TIME'" in line]
    takes_now = re.search(r"^-- ARGV now", body(name), re.MULTILINE) is not None
    uses_now = len(re.findall(r"\bnow\b", "".join(line for line in body(name).splitlines() if line[:2] != "--"))) > 0
    assert lines == ([NOW_LINE] if uses_now else [])
    assert takes_now or not uses_now


@pytest.mark.skipif("JOBQ_TEST_LUA" in os.environ, reason="a broken piece must be noticed by what it does")
def test_shared_pieces_are_the_same_everywhere():
    """A file runs verbatim, so shared code is copied into each script. The copies must not differ."""
    pieces: dict[str, dict[str, str]] = {}
    for name in SCRIPTS:
        for title, text in re.findall(r"^-- shared: ([^\n]+)\n(.*?)^-- end$", body(name), re.MULTILINE | re.DOTALL):
            pieces.setdefault(title, {})[name] = text
        assert body(name).count("-- shared: ") == body(name).count("\n-- end\n")
    assert len(pieces) >= 8
    for title, texts in pieces.items():
        assert len(texts) > 1, f"only {set(texts)} has {title!r}: nothing shares it"
        assert len(set(texts.values())) == 1, f"{title!r} differs between {sorted(texts)}"


@every_script
def test_flags(name: str):
    flags = "" if name in REFUSED_WHEN_FULL else " flags=no-writes" if name in READERS else " flags=allow-oom"
    assert body(name).splitlines()[0] == f"#!lua{flags}"


def _methods() -> dict[str, list[str]]:
    """The scripts that each method of the store calls."""
    found: dict[str, list[str]] = {}
    for node in (
        node
        for file in (opening, scheduling, counting, sharing, webhooks, reading, store_module)
        for node in ast.walk(ast.parse(inspect.getsource(file)))
    ):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = [
                call.args[0].value
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "Call"
                and isinstance(call.args[0], ast.Constant)
                and isinstance(call.args[0].value, str)
            ]
    return found


@every_script
def test_each_has_one_method_of_its_name(name: str):
    methods = _methods()
    assert Counter(script for scripts in methods.values() for script in scripts)[name] == 1
    assert methods[name] == [name]


def test_the_readme_has_a_row_for_each():
    readme = (Path(__file__).parents[2] / "scripts" / "lua" / "README.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.lua\) \|", readme, re.MULTILINE)
    assert [name for name, _ in rows] == [file for _, file in rows]
    assert sorted(name for name, _ in rows) == sorted(SCRIPTS)


@every_script
async def test_runs_verbatim(name: str, bench: Bench):
    """As ``redis-cli --eval`` sends it: the file unchanged, without the loader."""
    await bench.seed(BEFORE)
    call = CALLS[name](bench.store)
    keys = call.keys or tuple(bench.store.keys[column] for column in SCRIPTS[name].columns(short=call.short))
    source = (lua.folder() / f"{name}.lua").read_bytes()
    verb = b"EVAL_RO" if name in READERS else b"EVAL"
    by_eval = await bench.admin.command(verb, source, len(keys), *keys, *call.args)
    after = await bench.dump()
    await bench.admin.command(b"FLUSHALL")
    await bench.seed(BEFORE)
    assert await bench.store.do(call) == call.read(by_eval)
    assert await bench.dump() == after


@every_script
async def test_takes_the_servers_time(name: str, bench: Bench):
    """With '' as the time, as in production."""
    await bench.seed(BEFORE)
    await bench.do(CALLS[name](Store(bench.store.connection, "test")))


@every_script
async def test_reloads_itself(name: str, bench: Bench):
    """After SCRIPT FLUSH, a restart or a failover the server knows no scripts."""
    await bench.seed(BEFORE)
    await bench.admin.command(b"SCRIPT", b"FLUSH")
    await bench.do(CALLS[name](bench.store))


@pytest.fixture
async def full(bench: Bench):
    """A queue whose server is at maxmemory."""
    await bench.seed(BEFORE)
    await bench.admin.command(b"CONFIG", b"SET", b"maxmemory", 1)
    yield bench
    await bench.admin.command(b"CONFIG", b"SET", b"maxmemory", 0)


@every_script
async def test_at_maxmemory(name: str, full: Bench):
    before = await full.dump()
    if name in REFUSED_WHEN_FULL:
        with pytest.raises(StoreFull, match="Redis is at maxmemory and accepts no new jobs; free memory or raise"):
            await full.do(CALLS[name](full.store))
        assert await full.dump() == before
    else:
        await full.do(CALLS[name](full.store))


@pytest.mark.skipif("JOBQ_TEST_LUA" in os.environ, reason="one of them is in place")
def test_each_mutation_matches_its_script_once():
    """A mutation that no longer matches is found only when somebody runs them, which takes an hour."""
    stale = [
        f"{broken.script}: {broken.what}"
        for broken in SABOTAGES + left_out()
        if body(broken.script).count(broken.old) != 1
    ]
    stale += [f"{script}: {end}" for script, end in EQUIVALENT if body(script).count(end) != 1]
    assert not stale, "give these mutations the text that their scripts have now"


def test_a_file_without_a_header_is_refused():
    with pytest.raises(ValueError, match=r"x\.lua has no '-- KEYS' line"):
        lua.parse("x", b"#!lua\nreturn 1\n")

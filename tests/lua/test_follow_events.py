"""follow_events.lua: one process at a time follows the events for webhooks, and its place is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench


HOOKS = {"webhooks": {"crm": "{}"}}


@table(
    [
        Case(
            "the first process gets the turn",
            HOOKS,
            lambda s: s.follow_events("a", 500),
            {"webhook_facts": {"follower": "1 1500 a"}},
            [1, ""],
        ),
        Case(
            "it goes on, and stores its place",
            HOOKS | {"webhook_facts": {"follower": "3 1200 a", "cursor": "1-0.0"}},
            lambda s: s.follow_events("a", 500, 3, "2-0.1"),
            {"webhook_facts": {"follower": "3 1500 a", "cursor": "2-0.1"}},
            [3, "2-0.1"],
        ),
        Case(
            "another process is refused, and stores nothing",
            HOOKS | {"webhook_facts": {"follower": "3 1001 a", "cursor": "1-0.0"}},
            lambda s: s.follow_events("b", 500, 3, "2-0.1"),
            {},
            [0, "1-0.0"],
        ),
        Case(
            "another process goes on where a dead one stopped",
            HOOKS | {"webhook_facts": {"follower": "3 1000 a", "cursor": "1-0.0"}},
            lambda s: s.follow_events("b", 500),
            {"webhook_facts": {"follower": "4 1500 b", "cursor": "1-0.0"}},
            [4, "1-0.0"],
        ),
        Case(
            "a process whose turn was over stores no place that it reached before",
            HOOKS | {"webhook_facts": {"follower": "3 1000 a", "cursor": "5-0.0"}},
            lambda s: s.follow_events("a", 500, 3, "2-0.1"),
            {"webhook_facts": {"follower": "4 1500 a", "cursor": "5-0.0"}},
            [4, "5-0.0"],
        ),
        Case(
            "without webhooks nobody follows, and no place is kept",
            {"webhook_facts": {"follower": "3 1200 a", "cursor": "1-0.0"}},
            lambda s: s.follow_events("a", 500, 3, "2-0.1"),
            {"webhook_facts": {"follower": "3 1200 a"}},
            [0, ""],
        ),
        Case(
            "a time of a wrong clock keeps nobody away",
            HOOKS | {"webhook_facts": {"follower": "1 99999999 a"}},
            lambda s: s.follow_events("b", 500),
            {"webhook_facts": {"follower": "2 1500 b"}},
            [2, ""],
        ),
        Case(
            "a damaged row keeps nobody away",
            HOOKS | {"webhook_facts": {"follower": "?"}},
            lambda s: s.follow_events("b", 500),
            {"webhook_facts": {"follower": "1 1500 b"}},
            [1, ""],
        ),
    ]
)
async def test_follow_events(bench: Bench, case: Case):
    await bench.check(case)

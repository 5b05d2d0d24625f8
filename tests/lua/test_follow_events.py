"""follow_events.lua: one process at a time follows the events for webhooks, and its place is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench


@table(
    [
        Case(
            "the first process follows",
            {},
            lambda s: s.follow_events("a", 500, ""),
            {"webhook_facts": {"follower": "a 1500"}},
            [1, ""],
        ),
        Case(
            "it goes on, and stores its place",
            {"webhook_facts": {"follower": "a 1200", "cursor": "1-0.0"}},
            lambda s: s.follow_events("a", 500, "2-0.1"),
            {"webhook_facts": {"follower": "a 1500", "cursor": "2-0.1"}},
            [1, "2-0.1"],
        ),
        Case(
            "another process is refused, and stores nothing",
            {"webhook_facts": {"follower": "a 1001", "cursor": "1-0.0"}},
            lambda s: s.follow_events("b", 500, "2-0.1"),
            {},
            [0, "1-0.0"],
        ),
        Case(
            "another process goes on where a dead one stopped",
            {"webhook_facts": {"follower": "a 1000", "cursor": "1-0.0"}},
            lambda s: s.follow_events("b", 500, ""),
            {"webhook_facts": {"follower": "b 1500", "cursor": "1-0.0"}},
            [1, "1-0.0"],
        ),
        Case(
            "a time of a wrong clock keeps nobody away",
            {"webhook_facts": {"follower": "a 99999999"}},
            lambda s: s.follow_events("b", 500, ""),
            {"webhook_facts": {"follower": "b 1500"}},
            [1, ""],
        ),
        Case(
            "a damaged row keeps nobody away",
            {"webhook_facts": {"follower": "?"}},
            lambda s: s.follow_events("b", 500, ""),
            {"webhook_facts": {"follower": "b 1500"}},
            [1, ""],
        ),
    ]
)
async def test_follow_events(bench: Bench, case: Case):
    await bench.check(case)

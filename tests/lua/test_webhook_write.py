"""webhook_write.lua: of two changes at the same time neither is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench

HOOKS = {"webhooks": {"crm": "a row"}}
FACTS = {"webhook_facts": {"disabled:crm": "it is gone", "failures:crm": "3", "failing:crm": "5", "cursor": "1-0"}}


@table(
    [
        Case(
            "a new one is written",
            {},
            lambda s: s.webhook_write("crm", b"", b"a row", 100),
            HOOKS,
            "ok",
        ),
        Case(
            "one that has the row that was read is written",
            HOOKS | FACTS,
            lambda s: s.webhook_write("crm", b"a row", b"another row", 100),
            {"webhooks": {"crm": "another row"}},
            "ok",
        ),
        Case(
            "what jobq has noted of it is forgotten",
            HOOKS | FACTS,
            lambda s: s.webhook_write("crm", b"a row", b"another row", 100, forget=True),
            {"webhooks": {"crm": "another row"}, "webhook_facts": {"cursor": "1-0"}},
            "ok",
        ),
        Case(
            "a repeated call changes nothing, and is no refusal",
            HOOKS,
            lambda s: s.webhook_write("crm", b"an earlier row", b"a row", 100),
            {},
            "ok",
        ),
        Case(
            "one that was changed meanwhile stays as it is",
            HOOKS | FACTS,
            lambda s: s.webhook_write("crm", b"an earlier row", b"another row", 100, forget=True),
            {},
            "stale",
        ),
        Case(
            "one that was removed meanwhile does not come back",
            FACTS,
            lambda s: s.webhook_write("crm", b"a row", b"another row", 100),
            {},
            "stale",
        ),
        Case(
            "one that was made meanwhile is not overwritten",
            HOOKS,
            lambda s: s.webhook_write("crm", b"", b"another row", 100),
            {},
            "stale",
        ),
        Case(
            "one too many is refused",
            HOOKS,
            lambda s: s.webhook_write("other", b"", b"another row", 1),
            {},
            "full",
        ),
        Case(
            "with the last one the place in the events is removed",
            HOOKS | FACTS,
            lambda s: s.webhook_write("crm", b"a row", b"", 100),
            {"webhooks": None, "webhook_facts": None},
            "ok",
        ),
        Case(
            "one of several leaves the place in the events",
            {"webhooks": {"crm": "a row", "other": "a row"}} | FACTS,
            lambda s: s.webhook_write("crm", b"a row", b"", 100),
            {"webhooks": {"other": "a row"}, "webhook_facts": {"cursor": "1-0"}},
            "ok",
        ),
        Case(
            "one that is changed at the same time is not removed",
            HOOKS,
            lambda s: s.webhook_write("crm", b"an earlier row", b"", 100),
            {},
            "stale",
        ),
    ]
)
async def test_webhook_write(bench: Bench, case: Case):
    await bench.check(case)

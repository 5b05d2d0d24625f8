"""disable_webhook.lua: a webhook that was changed meanwhile is not disabled for what its earlier address did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table import Case, table

if TYPE_CHECKING:
    from table import Bench

HOOKS = {"webhooks": {"crm": "a row"}}


@table(
    [
        Case(
            "it is disabled, and the reason is stored",
            HOOKS,
            lambda s: s.disable_webhook("crm", b"a row", "it is gone"),
            {"webhook_facts": {"disabled:crm": "it is gone"}},
            1,
        ),
        Case(
            "one that was changed meanwhile stays enabled",
            HOOKS,
            lambda s: s.disable_webhook("crm", b"an earlier row", "it is gone"),
            {},
            0,
        ),
        Case(
            "one that was removed meanwhile leaves nothing",
            {},
            lambda s: s.disable_webhook("crm", b"a row", "it is gone"),
            {},
            0,
        ),
        Case(
            "the first reason stays",
            HOOKS | {"webhook_facts": {"disabled:crm": "it is gone"}},
            lambda s: s.disable_webhook("crm", b"a row", "100 attempts failed"),
            {},
            0,
        ),
    ]
)
async def test_disable_webhook(bench: Bench, case: Case):
    await bench.check(case)

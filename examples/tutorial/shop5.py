"""Step 5: every night, a report for each tenant. jobq work examples/tutorial/shop5.py:queue"""

from jobq import Context, Queue, inject

queue = Queue("shop")
TENANTS = ("acme", "globex")


@queue.task(attempts=3, timeout=600, group="{tenant}")
async def nightly_report(tenant: str) -> str:
    """The report of one tenant. If it fails, the others are not written again."""
    return f"report of {tenant}"


@queue.schedule("0 3 * * *", tz="Europe/Berlin", name="nightly", overlap="skip")
@queue.task(attempts=3)
async def all_reports(ctx: Context = inject) -> int:
    """Enqueue a job for each tenant. A second run for the same night adds nothing, because of the keys."""
    night = ctx.schedule.slot.date() if ctx.schedule else "by hand"
    for tenant in TENANTS:
        await nightly_report.options(key=f"{night}:{tenant}", key_ttl=86_400).enqueue(tenant=tenant)
    return len(TENANTS)

"""Step 6: a test of the service. pytest examples/tutorial/test_shop.py"""

from shop5 import all_reports, queue

from jobq.testing import drain, on_server


async def test_each_tenant_gets_a_report(jobq_url: str) -> None:
    """``jobq_url`` is a server for the tests; pytest_plugins = ["jobq.testing_plugin"] brings it."""
    async with on_server(queue, jobq_url):
        await all_reports.enqueue()
        done = await drain(queue)
        assert (done.completed, done.failed) == (3, 0)

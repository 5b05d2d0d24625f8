"""The worker: pool, sources, runs, heartbeat, sweeper, child processes."""

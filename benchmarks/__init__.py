"""The benchmark harness: jobq beside its bare limit and beside other queues, in one interleaved run.

``python -m benchmarks run`` measures, ``install`` makes the peers' environments, ``page`` writes docs/benchmarks.md.
Every queue is a *driver*: a program with the protocol of ``benchmarks/peers/kit``, in its own environment.
"""

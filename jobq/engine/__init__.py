"""The engine. Its packages, from the bottom up: model, store, task, queue, worker. ``server`` is the embedded
server."""

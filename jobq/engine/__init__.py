"""The engine. Rooms, from the bottom up: model, store, task, queue, worker; server is the embedded one."""

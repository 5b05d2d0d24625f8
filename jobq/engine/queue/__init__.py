"""Producing and operating: queue, handle, producer, verbs, pages, results."""

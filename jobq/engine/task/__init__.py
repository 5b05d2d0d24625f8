"""Handlers and their arguments: task, registry, signature, context, injection."""

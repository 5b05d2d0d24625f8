"""What a handler is and what it gets: task, registry, signature, context, injection."""

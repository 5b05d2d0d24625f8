"""The embedded server and the process that keeps it running."""

"""The embedded server and its keeper."""

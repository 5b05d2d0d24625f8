"""The data model: spec, rows, ids, options, backoff, outcome. Pure functions and data, no I/O."""

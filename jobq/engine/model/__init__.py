"""What a job is: spec, rows, ids, options, backoff, outcome. Pure functions and data, no I/O."""

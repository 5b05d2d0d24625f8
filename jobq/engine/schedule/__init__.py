"""Schedules without I/O: expressions, slots, what a schedule says, and what became of its slots."""

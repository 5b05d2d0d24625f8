"""The tests behind docs/reliability.md: real servers and real processes, with faults at every point where one can
occur."""

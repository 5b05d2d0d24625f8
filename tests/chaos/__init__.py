"""The proof of docs/reliability.md: real servers, real processes, and faults at every point where one can hit."""

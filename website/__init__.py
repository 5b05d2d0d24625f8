"""The documentation site: ``python -m website`` builds it from docs/, the code and its docstrings."""

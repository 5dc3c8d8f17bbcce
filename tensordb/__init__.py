"""A tensor database for PyTorch, embedded like DuckDB or SQLite."""

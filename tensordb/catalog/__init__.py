"""The catalog: a DuckDB file with the records, small payloads, and the places of the large ones."""

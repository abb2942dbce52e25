"""The page of results: tables, pictures, and what is missing (`python -m benchmarks.report`)."""

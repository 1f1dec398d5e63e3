"""Show results: terminal tables, JSON, HTML."""

"""The command gpusvm."""

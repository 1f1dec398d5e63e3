"""The command gpusvm."""

from gpusvm.cli.main import main, run

__all__ = ["main", "run"]

"""Show results: terminal tables, JSON, HTML. What renders is imported when something is shown."""

from gpusvm.report.html import fragment, page
from gpusvm.report.terminal import print_comparison

__all__ = ["fragment", "page", "print_comparison"]

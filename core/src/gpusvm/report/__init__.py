"""Show results: terminal tables, JSON, HTML. What renders is imported when something is shown."""

from gpusvm.report.drivers import print_survey, survey_document
from gpusvm.report.html import fragment, page
from gpusvm.report.json import print_json
from gpusvm.report.realkernel import print_check
from gpusvm.report.terminal import print_comparison
from gpusvm.report.trace import print_trace_info

__all__ = [
    "fragment",
    "page",
    "print_check",
    "print_comparison",
    "print_json",
    "print_survey",
    "print_trace_info",
    "survey_document",
]

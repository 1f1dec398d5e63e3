"""Show results: terminal tables, JSON, HTML. What renders is imported when something is shown."""

from gpusvm.report.call_graph_diagram import sequence_diagram
from gpusvm.report.call_graph_text import explained_document, print_explained
from gpusvm.report.characterized import print_characterization
from gpusvm.report.conformed import checks_document, print_changes, print_checks, print_conformance
from gpusvm.report.conformed_html import conformance_fragment, conformance_page
from gpusvm.report.drivers import checked_document, print_checked, print_survey, survey_document
from gpusvm.report.explanation import print_explanation, print_repeated, repeated_document
from gpusvm.report.explored import print_explorations, print_scenarios, scenarios_document
from gpusvm.report.html import fragment, page
from gpusvm.report.injected import print_sweeps
from gpusvm.report.json import print_json
from gpusvm.report.raced import print_races
from gpusvm.report.realkernel import print_check, print_diff, print_run
from gpusvm.report.swimlanes import draw_explanation
from gpusvm.report.terminal import print_comparison
from gpusvm.report.trace import print_trace_info

__all__ = [
    "checked_document",
    "checks_document",
    "conformance_fragment",
    "conformance_page",
    "draw_explanation",
    "explained_document",
    "fragment",
    "page",
    "print_changes",
    "print_characterization",
    "print_check",
    "print_checked",
    "print_checks",
    "print_comparison",
    "print_conformance",
    "print_diff",
    "print_explained",
    "print_explanation",
    "print_explorations",
    "print_json",
    "print_races",
    "print_repeated",
    "print_run",
    "print_scenarios",
    "print_survey",
    "print_sweeps",
    "print_trace_info",
    "repeated_document",
    "scenarios_document",
    "sequence_diagram",
    "survey_document",
]

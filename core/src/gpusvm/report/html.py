"""Show a comparison as HTML: one page without scripts or links, or the same as a fragment for a notebook."""

import functools
from typing import TYPE_CHECKING, Any

from gpusvm.compare import Comparison, Table
from gpusvm.report.chart import stage_charts
from gpusvm.report.power import power_chart, power_texts
from gpusvm.report.units import conditions_text, row_texts

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "fragment", "page"]


def page(comparison: Comparison) -> str:
    """Return a whole page that needs nothing but itself."""
    return _render("page.html.j2", comparison)


def fragment(comparison: Comparison) -> str:
    """Return what ``_repr_html_`` shows: the page's body with its style."""
    return _render("fragment.html.j2", comparison)


def _render(name: str, comparison: Comparison) -> str:
    return environment().get_template(name).render(comparison=comparison, sections=_sections(comparison))


@functools.cache
def environment() -> "Environment":
    """Return what renders the templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("gpusvm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _sections(comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for table in comparison.tables():
        runs = [run for run in comparison.runs if run["workload"] == table.workload]
        found.append(
            {
                "table": table,
                "conditions": conditions_text(table),
                "groups": _groups(table),
                "charts": stage_charts(table.workload, runs),
                "power": power_chart(table.workload, runs),
                "power_texts": power_texts(runs),
            }
        )
    return found


def _groups(table: Table) -> list[tuple[str, list[dict[str, Any]]]]:
    """Collect the rows under the names of their groups, with the text of every cell."""
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    for row in table.rows:
        if not groups or groups[-1][0] != row.metric.group:
            groups.append((row.metric.group, []))
        cells = [(text, index in row.best) for index, text in enumerate(row_texts(row))]
        groups[-1][1].append({"label": row.metric.label, "path": row.metric.path, "cells": cells})
    return groups

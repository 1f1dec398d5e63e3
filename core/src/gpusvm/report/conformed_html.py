"""Show what the conformance suite came to as HTML: the matrix, and for each cell that is no pass why, and its trace."""

from typing import TYPE_CHECKING, Any

from gpusvm.report.html import environment

if TYPE_CHECKING:
    from gpusvm.conformance.suite.conformance import Conformance

__all__ = ["conformance_fragment", "conformance_page"]


def conformance_page(found: "Conformance") -> str:
    """Return a whole page that needs nothing but itself."""
    return _render("conform_page.html.j2", found)


def conformance_fragment(found: "Conformance") -> str:
    """Return what ``_repr_html_`` shows: the page's body with its style."""
    return _render("conform_fragment.html.j2", found)


def _render(name: str, found: "Conformance") -> str:
    from gpusvm.conformance.suite import SPEC_VERSION

    rules = {check.id: check for check in found.checks}
    cells = {(each.check, each.driver): each for each in found.results}
    rows = [(check, [cells[check.id, driver] for driver in found.drivers]) for check in found.checks]
    notes: list[dict[str, Any]] = [
        {"result": each, "check": rules[each.check], "command": f"gpusvm {found.command(each)}"}
        for each in sorted(found.results, key=lambda each: each.status.rank)
        if each.status.value != "pass"
    ]
    drivers = [(driver, found.counts(driver), found.standing(driver)) for driver in found.drivers]
    return (
        environment().get_template(name).render(found=found, spec=SPEC_VERSION, rows=rows, notes=notes, drivers=drivers)
    )

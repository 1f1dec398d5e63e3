"""Hold a comparison that has run: its results, its tables, and the files it becomes."""

import json
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from gpusvm.compare.jobs import Failure
from gpusvm.compare.store import RunDirectory
from gpusvm.compare.table import Table, make_table
from gpusvm.errors import InputError, nearest
from gpusvm.run.spec import RunResult

__all__ = ["Comparison", "InterruptedComparison"]


@frozen(kw_only=True, repr=False)
class Comparison:
    """Hold the runs of some driver specs on some workloads.

    `runs` are entries of ``compare.json``, by workload, then driver, in the order asked for; a run that failed is in
    `failures` instead. `document` is the content of ``run.json``: everything needed to repeat the comparison.
    """

    drivers: tuple[str, ...]
    workloads: tuple[str, ...]
    runs: tuple[RunResult, ...]
    failures: tuple[Failure, ...]
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        """True if every run finished, and no read saw what it should not but by a named quirk."""
        return not self.findings()

    def findings(self) -> tuple[str, ...]:
        """Say what is not as it should be, one line each; nothing if `ok`."""
        failed = [f"{each.driver} on {each.workload}: {each.kind}: {each.message}" for each in self.failures]
        wrong = [
            f"{run['driver']} on {run['workload']}: {run['integrity']['mismatches']} reads saw a wrong value, "
            "and no named quirk explains it"
            for run in self.runs
            if run["integrity"]["mismatches"]
        ]
        return (*failed, *wrong)

    def table(self, workload: str | None = None) -> Table:
        """Return the table of one workload; None is the only one. Raises InputError for another name."""
        if workload is None:
            if len(self.workloads) != 1:
                raise InputError(f"table(): name one of the workloads: {', '.join(self.workloads)}")
            workload = self.workloads[0]
        if workload not in self.workloads:
            raise InputError(f"table(): unknown workload {workload!r}; {nearest(workload, self.workloads)}")
        found = {run["driver"]: run for run in self.runs if run["workload"] == workload}
        specs = [planned["spec"] for planned in self.document.get("runs", ())]
        fixed = any(spec["quirks"] == "fixed" for spec in specs)
        return make_table(workload, self.drivers, found, extra={"quirks": "fixed"} if fixed else {})

    def tables(self) -> tuple[Table, ...]:
        """Return the table of each workload."""
        return tuple(self.table(workload) for workload in self.workloads)

    def run(self, driver: str, workload: str) -> RunResult:
        """Return one run; raises InputError if there is none of that (normalised) spec and workload."""
        for run in self.runs:
            if (run["driver"], run["workload"]) == (driver, workload):
                return run
        raise InputError(f"no finished run of {driver!r} on {workload!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``compare.json``, schema 1 (docs/reference/compare-json.md)."""
        return {
            "schema": 1,
            "runs": [dict(run) for run in self.runs],
            "failures": [attrs.asdict(failure) for failure in self.failures],
        }

    def to_json(self) -> str:
        """Return ``compare.json`` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, directory: str | Path) -> Path:
        """Write ``run.json``, ``compare.json`` and ``compare.html`` into a new or empty directory; return its path."""
        store = RunDirectory(Path(directory))
        store.check(resume=False)
        store.begin(self.document)
        self.write_to(store)
        return store.path

    def write_to(self, store: RunDirectory) -> None:
        """Write ``compare.json`` and ``compare.html`` into a directory that has been begun."""
        from gpusvm.report import page

        store.write("compare.json", self.to_json())
        store.write("compare.html", page(self))

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return (
            f"<Comparison of {', '.join(self.drivers)} on {', '.join(self.workloads)}: {len(self.runs)} runs{failed}>"
        )

    def _repr_html_(self) -> str:
        """Show the tables in a notebook."""
        from gpusvm.report import fragment

        return fragment(self)


class InterruptedComparison(KeyboardInterrupt):  # as KeyboardInterrupt, it is no error
    """Report an interrupt: `comparison` holds the runs that had finished, of `total`."""

    def __init__(self, comparison: Comparison, *, total: int) -> None:
        """Take what had finished."""
        super().__init__(f"interrupted with {len(comparison.runs)} of {total} runs finished")
        self.comparison = comparison
        self.total = total

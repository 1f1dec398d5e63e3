"""Show which drivers are installed, and what is wrong with those that cannot be used."""

from collections.abc import Mapping, Sequence
from typing import IO, Any

import attrs

from gpusvm.plugins import BrokenPluginError, LoadedDriver, Survey

__all__ = ["checked_document", "print_checked", "print_survey", "survey_document"]


def survey_document(survey: Survey) -> dict[str, Any]:
    """Return the content of ``gpusvm drivers --json``."""
    from gpusvm.driver import ABI

    return {
        "schema": 1,
        "abi": _abi(ABI),
        "drivers": [_driver_document(driver) for driver in survey.drivers.drivers],
        "broken": [_problem_document(problem) for problem in survey.problems],
    }


def print_survey(survey: Survey, *, full: bool, file: IO[str] | None = None) -> None:
    """Print a block for each driver, with its tunables and quirks if `full`, and a line for each problem."""
    from rich.table import Table
    from rich.text import Text

    from gpusvm.report.console import open_console

    console = open_console(file, width=200)
    for driver in survey.drivers.drivers:
        info = driver.info
        version = f" {driver.version}" if driver.version else ""
        origin = driver.distribution or driver.origin
        console.print(
            Text.assemble((f"{info.name}{version}", "bold"), f"  {origin}, ABI {_abi(info.abi)}, {info.kernel}")
        )
        console.print(Text(f"  {info.summary}"))
        shown = Table.grid(padding=(0, 2))
        shown.add_column(no_wrap=True)
        shown.add_column()
        rows = [("embedding", info.embedding), ("bo mapping", info.bo_mapping), ("runtime PM", info.pm)]
        if info.capabilities.runtime_pm.supported:
            rows.append(("awake with pages", "promised" if info.awake_with_pages else "not promised"))
        rows += [(name, f"{'yes' if each else 'no'}: {each.how}") for name, each in info.capabilities.items()]
        if full:
            rows += _settings(driver)
        for name, text in rows:
            shown.add_row(Text(f"  {name}", style="dim"), Text(text))
        console.print(shown)
        console.print()
    for problem in survey.problems:
        console.print(Text.assemble((f"{problem.plugin}", "bold red"), f"  broken: {problem}"), soft_wrap=True)
    if not survey.drivers and not survey.problems:
        console.print("No driver plugin is installed.")


def checked_document(looked: Mapping[str, int], problems: Sequence[BrokenPluginError]) -> dict[str, Any]:
    """Return the content of ``gpusvm drivers --check --json``: `looked` says how many ops of each driver were seen."""
    return {
        "schema": 1,
        "drivers": [{"name": name, "ops": ops} for name, ops in looked.items()],
        "problems": [{**_problem_document(each), "rule": each.duty.name, "see": each.duty.see} for each in problems],
    }


def print_checked(looked: Mapping[str, int], problems: Sequence[BrokenPluginError]) -> None:
    """Print each problem with the rule that it breaks, and a line for each driver without one."""
    broken = {each.plugin for each in problems}
    for each in problems:
        origin = f" ({each.distribution} {each.version})" if each.distribution else ""
        print(f"{each.plugin}{origin}: {f'{each.place}: ' if each.place else ''}{each.problem}")
        print(f"    rule {each.duty.name}: {each.duty.text}")
        print(f"    see {each.duty.see}")
    for name, ops in looked.items():
        if name not in broken:
            print(f"{name}: {ops} ops looked at, nothing wrong with them")
    if not looked and not problems:
        print("No driver plugin is installed.")


def _problem_document(problem: BrokenPluginError) -> dict[str, Any]:
    return {
        "plugin": problem.plugin,
        "distribution": problem.distribution,
        "version": problem.version,
        "file": str(problem.place.file) if problem.place else None,
        "line": problem.place.line if problem.place else None,
        "problem": problem.problem,
    }


def _settings(driver: LoadedDriver) -> list[tuple[str, str]]:
    rows = []
    document = _driver_document(driver)
    for name, tunable in document["tunables"].items():
        rows.append((f"{name}={tunable['default']}", tunable["doc"]))
    for name, protocol in document["strategies"].items():
        rows.append((f"{name}=MODULE:CLASS", f"A class of your own that does what {protocol} says"))
    for name, quirk in document["quirks"].items():
        rows.append((f"quirk.{name}={'|'.join(quirk['variants'])}", quirk["doc"]))
    return rows


def _driver_document(driver: LoadedDriver) -> dict[str, Any]:
    info = driver.info
    return {
        "name": info.name,
        "version": driver.version,
        "distribution": driver.distribution,
        "plugin": driver.plugin,
        "path": driver.path,
        "abi": _abi(info.abi),
        "kernel": info.kernel,
        "summary": info.summary,
        "capabilities": {name: attrs.asdict(capability) for name, capability in info.capabilities.items()},
        "embedding": info.embedding,
        "bo_mapping": info.bo_mapping,
        "pm": info.pm,
        "awake_with_pages": info.awake_with_pages,
        "tunables": {
            each.name: {
                "default": _written(each.default, each.metadata["unit"]),
                "unit": each.metadata["unit"],
                "doc": each.metadata["doc"],
            }
            for each in attrs.fields(info.tunables)
        },
        "strategies": {key: protocol.__name__ for key, protocol in info.strategies.items()},
        "quirks": {
            each.name: {"variants": list(each.metadata["choices"]), "doc": each.metadata["doc"]}
            for each in attrs.fields(info.quirks)
        },
    }


def _written(value: Any, unit: str) -> str:
    """Write a default as it would stand in a spec string."""
    from gpusvm.driver import format_size

    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "+".join(_written(each, unit) for each in value)
    return format_size(value) if unit == "bytes" else str(value)


def _abi(abi: tuple[int, int]) -> str:
    return f"{abi[0]}.{abi[1]}"

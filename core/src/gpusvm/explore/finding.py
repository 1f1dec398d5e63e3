"""Keep one finding as a small text file: what ran, what broke, and the answers that repeat it, to be read and mailed.

::

    gpusvm finding 1
    gpusvm     0.1.0
    driver     xe
    quirks     fixed
    failures   1
    found-by   random, seed 0, schedule 17
    shrunk     preemptions 9 -> 1, failures 1 -> 1, operations 4 -> 2, steps 310 -> 122
    kind       invariant
    invariant  12
    steps      122

    message
        invariant 12 (…): …

    scenario
        [[scenario]]
        …

    answers
        31 carry on
        switch to 1 cpu
        fail dma.map
        2 carry on

    end

A line that begins with ``#`` is a comment. What the answers are is in `gpusvm.explore.answers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

from attrs import field, frozen

from gpusvm.errors import InputError, nearest
from gpusvm.explore.answers import CARRY_ON, Answer
from gpusvm.explore.scenario import Scenario, read_scenarios

__all__ = ["Finding", "read_finding"]

_FORMAT: Final = 1
_FIRST: Final = "gpusvm finding"
_SECTIONS: Final = ("message", "scenario", "answers")
_INDENT: Final = "    "
_KEYS: Final = (
    "gpusvm",
    "driver",
    "quirks",
    "mutant",
    "failures",
    "found-by",
    "shrunk",
    "kind",
    "invariant",
    "steps",
)
_OPTIONAL: Final = frozenset({"mutant", "shrunk"})


@frozen(kw_only=True)
class Finding:
    """Hold everything that it takes to see one failure again.

    `driver` is a spec string, `mutant` the bug that was switched on, if one was. `found_by` says in words which search
    came upon it, `shrunk` what shrinking has made of it. `source` is the file it was read from.
    """

    scenario: Scenario
    driver: str
    quirks: Literal["as_written", "fixed"]
    mutant: str | None = None
    failures_max: int = 0
    found_by: str
    shrunk: str = ""
    kind: str
    invariant: str
    message: str
    steps: int
    answers: tuple[Answer, ...]
    version: str
    source: str = field(default="", eq=False)

    def __str__(self) -> str:
        """Write it as the text of a finding file."""
        header = {
            "gpusvm": self.version,
            "driver": self.driver,
            "quirks": self.quirks,
            "mutant": self.mutant,
            "failures": str(self.failures_max),
            "found-by": self.found_by,
            "shrunk": self.shrunk,
            "kind": self.kind,
            "invariant": self.invariant,
            "steps": str(self.steps),
        }
        lines = [f"{_FIRST} {_FORMAT}", *(f"{key:<10} {value}" for key, value in header.items() if value)]
        sections = (self.message.splitlines(), self.scenario.to_toml().splitlines(), _written(self.answers))
        for name, content in zip(_SECTIONS, sections, strict=True):
            lines += ["", name, *(f"{_INDENT}{line}".rstrip() for line in content)]
        return "\n".join([*lines, "", "end", ""])


def _written(answers: Sequence[Answer]) -> Iterator[str]:
    for answer, run in groupby(answers):
        times = len(list(run))
        line = _line(answer)
        if answer.kind == "carry on":
            yield f"{times} {line}"
        else:
            yield from [line] * times


def _line(answer: Answer) -> str:
    match answer.kind:
        case "carry on":
            return "carry on"
        case "switch":
            return f"switch to {answer.value} {answer.name}"
        case "next":
            return f"next is {answer.value} {answer.name}"
        case "fail":
            return f"fail {answer.name}"
    return f"choose {answer.value} {answer.name}"


def read_finding(path: Path | str) -> Finding:
    """Read a finding file. InputError with file and line for one that is damaged or of another kind."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InputError(f"{path}: expected a finding file, cannot be read: {reason}") from None
    return _Reader(text, str(path)).read()


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self._source = source
        # Mail may end lines otherwise, and quote or cut what is empty at their ends.
        self._lines = [line.rstrip() for line in text.removeprefix("\ufeff").splitlines()]

    def _error(self, line: int, message: str) -> InputError:
        return InputError(f"{self._source}:{line}: {message}")

    def read(self) -> Finding:
        first = self._lines[0] if self._lines else ""
        if not first.startswith(f"{_FIRST} "):
            raise self._error(1, f"expected {f'{_FIRST} {_FORMAT}'!r}, got {first[:40]!r}: it is no finding file")
        if first != f"{_FIRST} {_FORMAT}":
            raise self._error(1, f"expected format {_FORMAT}, got {first.removeprefix(_FIRST).strip()!r}")
        header: dict[str, tuple[int, str]] = {}
        sections: dict[str, list[tuple[int, str]]] = {}
        section: list[tuple[int, str]] | None = None
        ended = False
        for number, line in enumerate(self._lines[1:], start=2):
            if not line and section is not None:
                section.append((number, ""))
            if not line or line.startswith("#"):
                continue
            if ended:
                raise self._error(number, f"expected nothing after 'end', got {line[:40]!r}")
            if line == "end":
                ended = True
            elif line in _SECTIONS:
                expected = _SECTIONS[len(sections)] if len(sections) < len(_SECTIONS) else "end"
                if line != expected:
                    raise self._error(number, f"expected the section {expected!r}, got {line!r}")
                section = sections[line] = []
            elif section is None:
                key, _, value = line.partition(" ")
                if key not in _KEYS:
                    raise self._error(number, f"unknown key {key!r}, {nearest(key, _KEYS)}")
                if key in header:
                    raise self._error(number, f"{key} is given twice, the first time in line {header[key][0]}")
                header[key] = (number, value.strip())
            elif line.startswith(_INDENT):
                section.append((number, line.removeprefix(_INDENT)))
            else:
                raise self._error(number, f"expected a line of {[*sections][-1]!r}, indented by 4, got {line[:40]!r}")
        if not ended:
            raise self._error(len(self._lines), "the file is cut short: expected 'end' as its last line")
        missing = [key for key in _KEYS if key not in header and key not in _OPTIONAL]
        missing += [name for name in _SECTIONS if name not in sections]
        if missing:
            raise self._error(len(self._lines), f"{missing[0]!r} is missing")
        return self._finding(header, sections)

    def _finding(self, header: dict[str, tuple[int, str]], sections: dict[str, list[tuple[int, str]]]) -> Finding:
        def value(key: str) -> str:
            return header[key][1] if key in header else ""

        line, quirks = header["quirks"]
        if quirks not in {"as_written", "fixed"}:
            raise self._error(line, f"quirks: unknown value {quirks!r}, {nearest(quirks, ['as_written', 'fixed'])}")
        return Finding(
            scenario=self._scenario(sections["scenario"]),
            driver=value("driver"),
            quirks="fixed" if quirks == "fixed" else "as_written",
            mutant=value("mutant") or None,
            failures_max=self._number("failures", *header["failures"]),
            found_by=value("found-by"),
            shrunk=value("shrunk"),
            kind=value("kind"),
            invariant=value("invariant"),
            message="\n".join(text for _, text in sections["message"]).rstrip("\n"),
            steps=self._number("steps", *header["steps"]),
            answers=tuple(answer for number, text in sections["answers"] for answer in self._answers(number, text)),
            version=value("gpusvm"),
            source=self._source,
        )

    def _number(self, key: str, line: int, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise self._error(line, f"{key}: expected a whole number, got {text!r}")
        return int(text)

    def _scenario(self, lines: list[tuple[int, str]]) -> Scenario:
        first = lines[0][0] if lines else len(self._lines)
        found = read_scenarios("\n".join(text for _, text in lines), source=f"{self._source}:{first}")
        if len(found) != 1:
            raise self._error(first, f"expected one scenario, got {len(found)}")
        return found[0]

    def _answers(self, number: int, text: str) -> list[Answer]:
        match re.fullmatch(r"(?:(\d{1,9}) (carry on)|(switch to|next is|choose) (\d{1,9}) (.+)|(fail) (.+)|)", text):
            case None:
                raise self._error(
                    number,
                    f"expected 'N carry on', 'switch to N TASK', 'next is N TASK', 'fail SITE' or 'choose N WHAT', "
                    f"got {text[:40]!r}",
                )
            case found:
                times, carry_on, words, value, name, fail, site = found.groups()
        if carry_on:
            return [CARRY_ON] * int(times)
        if fail:
            return [Answer("fail", 1, site)]
        if not words:
            return []
        if not int(value):
            raise self._error(number, f"{words!r} counts from 1; 0 is to carry on")
        kinds: dict[str, Literal["switch", "next", "choose"]] = {
            "switch to": "switch",
            "next is": "next",
            "choose": "choose",
        }
        return [Answer(kinds[words], int(value), name)]

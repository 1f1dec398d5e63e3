"""Draw a call graph as a Mermaid sequence diagram: who calls whom, between the rooms of the kernel."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gpusvm.report.explained import Explained

__all__ = ["sequence_diagram"]

_ROOM_NAMES: Final = {
    "gpusvm.kernel": "kernel",
    "gpusvm.mm": "mm",
    "gpusvm.drm": "drm",
    "gpusvm.gpu": "GPU",
    "gpusvm.driver": "fault pipeline",
}
_TOLD: Final = ("notifier_start", "copy", "pm_state", "fault_ack", "tlb_invalidate", "svm_invalidate")


def sequence_diagram(explained: "Explained") -> str:
    """Return a Mermaid ``sequenceDiagram``: an arrow for each call from one room into another, notes for what was told.

    Locks and references are left out; the text has them.
    """
    lines = ["sequenceDiagram"]
    parties: dict[str, str] = {}
    body: list[str] = []
    for each in _messages(explained, parties):
        if not body or body[-1] != each:  # a loop over pages is one arrow
            body.append(each)
    lines += [f"    participant {name} as {label}" for label, name in parties.items()]
    return "\n".join([*lines, *(f"    {line}" for line in body)]) + "\n"


def _messages(explained: "Explained", parties: dict[str, str]) -> Iterator[str]:
    open_rooms: dict[str, list[str]] = {}
    lines = explained.graph.lines
    ended = -1
    for at, line in enumerate(lines):
        stack = open_rooms.setdefault(line.task, [])
        here = stack[-1] if stack else line.task
        match line.kind:
            case "call":
                room = _room(line.ours, explained.driver)
                plain = lines[at + 1].kind == "return" and lines[at + 1].task == line.task and not lines[at + 1].ns
                if room != here:
                    arrow = "->>" if plain else "->>+"
                    yield f"{_party(here, parties)}{arrow}{_party(room, parties)}: {line.text}"
                if plain:
                    ended = at + 1
                else:
                    stack.append(room)
            case "return" if at == ended:
                pass
            case "return" if stack:
                room = stack.pop()
                outer = stack[-1] if stack else line.task
                if room != outer:
                    took = f"{line.ns / 1000:.1f} us" if line.ns else "-"
                    yield f"{_party(room, parties)}-->>-{_party(outer, parties)}: {took}"
            case "event" if line.text.startswith(_TOLD):
                yield f"Note over {_party(here, parties)}: {line.text}"


def _room(ours: str, driver: str) -> str:
    for prefix, name in _ROOM_NAMES.items():
        if ours.startswith(f"{prefix}."):
            return name
    return driver.partition(":")[0]


def _party(label: str, parties: dict[str, str]) -> str:
    return parties.setdefault(label, f"p{len(parties)}")

"""Say what the devices' power did in a run: states over time, and who held references when."""

from collections.abc import Sequence
from typing import Final

from gpusvm.driver import Driver
from gpusvm.drm import PmHeld, RuntimePm
from gpusvm.run.spec import Pm, PmDevice, PmHolder, PmReferences

__all__ = ["power"]

_FINEST: Final = 500  # a picture is so many points wide: spans that lie closer are one


def power(drivers: Sequence[Driver], now_ns: int) -> Pm | None:
    """Collect it from every device whose driver has runtime PM, until now; None if none has.

    `resumes` and `awake_ns` are added up, `refs_max` is that of the device that was held most.
    """
    every = [driver.device.pm for driver in drivers if driver.device.pm is not None]
    if not every:
        return None
    devices = [_device(pm, now_ns) for pm in every]
    return Pm(
        resumes=sum(device["resumes"] for device in devices),
        awake_ns=sum(device["awake_ns"] for device in devices),
        refs_max=max(pm.refs_max for pm in every),
        devices=devices,
    )


def _device(pm: RuntimePm, now_ns: int) -> PmDevice:
    return PmDevice(
        device=pm.name,
        resumes=pm.resumes,
        awake_ns=pm.awake_ns,
        states=[{"from_ns": ns, "state": state} for ns, state in pm.history],
        holders=[_holder(held, now_ns // _FINEST) for held in pm.held],
        references=_references(pm),
    )


def _holder(held: PmHeld, gap_ns: int) -> PmHolder:
    spans: list[list[int]] = []
    for began, ended in held.spans_ns:
        if spans and began - spans[-1][1] <= gap_ns:
            spans[-1][1] = ended
        else:
            spans.append([began, ended])
    return PmHolder(holder=str(held.holder), held_ns=held.held_ns, refs_max=held.refs_max, spans_ns=spans)


def _references(pm: RuntimePm) -> list[PmReferences]:
    found: dict[str, PmReferences] = {}
    for reference in pm.references:
        entry = found.setdefault(
            str(reference.holder), PmReferences(holder=str(reference.holder), count=0, since_ns=[])
        )
        entry["count"] += reference.count
        entry["since_ns"].append(reference.since_ns)
    return list(found.values())

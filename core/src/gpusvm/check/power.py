"""Invariant 53: a device is awake while one of its pages is in use, if its driver promises so."""

from collections.abc import Iterable
from functools import partial

import numpy as np

from gpusvm.check.rules import rule
from gpusvm.check.shadow import Shadow, ZoneShadow
from gpusvm.check.violation import InvariantError
from gpusvm.drm import RuntimePm
from gpusvm.mm import MemoryManager

__all__ = ["device_awake", "devices_awake", "watch_power"]


@rule(53)
def device_awake(s: Shadow, shadow: ZoneShadow) -> None:
    """53: no page of a device is in use while it sleeps."""
    pgmap = shadow.zone.pgmap
    power = None if pgmap is None else pgmap.power
    if power is None or not power.promised or not power.is_asleep or not shadow.live_pages:
        return
    heads = [shadow.zone.base + i for i in np.flatnonzero(shadow.live).tolist()]
    s.report(
        53,
        f"{power.name} is in {power.state}, and pages of it are in use: {shadow.live_pages}",
        addresses=tuple(place for pfn in heads[:4] for place in s.places(pfn)),
        pfns=tuple(heads),
        known=power.excuse,
    )


def devices_awake(s: Shadow, shadows: Iterable[ZoneShadow]) -> None:
    """Look at all zones."""
    for shadow in shadows:
        device_awake(s, shadow)


def watch_power(memory: MemoryManager, devices: Iterable[RuntimePm]) -> None:
    """Look at each device whenever it has fallen asleep and when it is about to wake, in a machine without a `Checker`.

    A violation that no quirk explains is raised where the device's state changes.
    """
    for device in devices:
        device.watcher = partial(_look, memory)


def _look(memory: MemoryManager, device: RuntimePm) -> None:
    s = Shadow(memory)
    mine = [zone for zone in memory.pages.zones if zone.pgmap is not None and zone.pgmap.power is device]
    shadows = [s.zone(zone.base) for zone in mine]
    for shadow in shadows:
        shadow.count_live()
    devices_awake(s, shadows)
    found = tuple(one for one in s.violations if one.known is None)
    if found:
        raise InvariantError(found)

"""Run one spec: boot a machine, replay the workload on it, tear it down, and say what happened."""

import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpusvm.check import check_quiescent, watch_power
from gpusvm.driver import Driver, read_spec
from gpusvm.drm.page_index import GAUGE
from gpusvm.drm.zdd import MARKS_GAUGE
from gpusvm.errors import InputError, KernelError, ModelError
from gpusvm.kernel import SeededChoices
from gpusvm.machine import Machine, load_topology
from gpusvm.run.costs import load_profile
from gpusvm.run.power import power
from gpusvm.run.spec import FaultLatency, Integrity, Objects, PageIndexUse, RunResult, RunSpec, StageNs
from gpusvm.workload import Trace, load
from gpusvm.workload.replay import Replay

if TYPE_CHECKING:
    from gpusvm.plugins import Registry

__all__ = ["execute"]


def execute(spec: RunSpec, /, *, drivers: "Registry | None" = None, events_to: Path | None = None) -> RunResult:
    """Run `spec` in this process; the entry of ``compare.json``.

    `drivers` defaults to what `load_drivers()` finds; with ``spec.events`` the trace goes to the new file `events_to`,
    one JSON array a line: time in ns, task, kind, fields. Raises InputError for a spec that cannot run (with the
    reason), ModelError for a finding that ends the run. Wrong contents do not raise: they are counted in ``integrity``.
    """
    if drivers is None:
        from gpusvm.plugins import load_drivers

        drivers = load_drivers()
    driver_spec = read_spec(spec.driver, drivers, quirks=spec.quirks)
    trace = load(spec.workload)
    profile = load_profile(spec.costs)
    began_s = time.perf_counter()
    collecting = gc.isenabled()
    # The model makes cycles only at boot; the collector would walk millions of live objects for nothing.
    gc.disable()
    try:
        topology = load_topology(spec.topology)
        machine = Machine.boot(
            topology,
            [driver_spec] * len(topology.device),
            vram_bytes=spec.vram_bytes,
            costs=profile.costs,
            choices=SeededChoices(spec.seed),
            thp=spec.thp,
            checked=spec.checked,
        )
        machine.kernel.tracer.on = spec.events
        if spec.checked:
            watch_power(machine.memory, [each.device.pm for each in machine.drivers if each.device.pm is not None])
        result = _replay(machine, spec, trace, explicit=driver_spec.populate == "explicit", name=driver_spec.name)
        result["driver"] = driver_spec.text
        result["assumed_ns"] = _assumed_ns(machine.kernel.charged, profile.assumed_events)
        if spec.checked:
            machine.kernel.settle()
            check_quiescent(machine.memory)
        machine.teardown()
        result["integrity"] = _integrity(machine)
        if spec.events:
            if events_to is None:
                raise InputError("a run with events needs a file to write them to")
            _write_events(machine, events_to)
    finally:
        if collecting:
            gc.enable()
    result["wall_s"] = round(time.perf_counter() - began_s, 3)
    return result


def _replay(machine: Machine, spec: RunSpec, trace: Trace, *, explicit: bool, name: str) -> RunResult:
    """Replay and collect; what needs the machine torn down is filled in by the caller."""
    kernel = machine.kernel
    process = machine.process(trace.name)
    replay = Replay(machine, trace, process=process, engines=machine.open_engines(process), explicit_populate=explicit)
    try:
        replay.run()
    except KernelError as error:
        raise ModelError(
            f"{spec.driver} on {trace.name}: {error} ({replay.accesses} of {len(trace)} accesses done)"
        ) from error
    sim_ns = kernel.now_ns
    stats, drivers = kernel.stats, machine.drivers
    latency = np.concatenate([_latencies(driver) for driver in drivers])
    return RunResult(
        driver=spec.driver,
        name=name,
        workload=spec.workload,
        seed=spec.seed,
        vram_bytes=spec.vram_bytes,
        thp=spec.thp,
        topology=spec.topology,
        costs=spec.costs,
        accesses=replay.accesses,
        gpu_faults=len(latency),
        cpu_faults=stats.cpu_faults,
        cpu_minor_faults=stats.cpu_minor_faults,
        sim_ns=sim_ns,
        wall_s=0.0,
        migrated_to_device_bytes=stats.migrated_to_device_bytes,
        migrated_to_ram_bytes=stats.migrated_to_ram_bytes,
        remote_bytes=stats.remote_bytes,
        remote_ns=stats.remote_ns,
        evictions=stats.evictions if drivers[0].info.capabilities.eviction else None,
        retries=stats.retries,
        fault_latency_ns=_latency(latency),
        stage_ns=_stages(drivers),
        assumed_ns=0,
        pm=power(drivers, sim_ns),
        objects=_objects(machine),
        page_index=_page_index(machine),
        integrity=Integrity(reads_checked=0, mismatches=0, known={}),
    )


def _assumed_ns(charged: Mapping[str, int], assumed: frozenset[str]) -> int:
    """Sum what tasks, engines and the link spent on events whose cost is assumed (see `RunResult`)."""
    events = set(assumed)
    if "remote_bytes_per_row" in events:  # how long the link is busy depends on it as on its rate
        events.add("remote_ns_per_byte")
    return sum(ns for event, ns in charged.items() if event in events)


def _latency(latency: "np.typing.NDArray[np.int64]") -> FaultLatency:
    if not len(latency):
        return FaultLatency(mean=None, p50=None, p99=None)
    return FaultLatency(
        mean=round(float(latency.mean()), 1),
        p50=float(np.percentile(latency, 50)),
        p99=float(np.percentile(latency, 99)),
    )


def _latencies(driver: Driver) -> "np.typing.NDArray[np.int64]":
    latency = driver.accounts.latency_ns
    return np.frombuffer(latency, np.int64) if len(latency) else np.zeros(0, np.int64)


def _stages(drivers: Sequence[Driver]) -> StageNs:
    """Add the stages of all devices up."""
    stages = [driver.accounts.stages() for driver in drivers]
    total: StageNs = {name: sum(each[name] for each in stages) for name in stages[0]}  # type: ignore[assignment]  # the stages are its keys
    return total


def _objects(machine: Machine) -> Objects:
    peak = machine.gauges()
    return Objects(
        pagemaps=peak.get("pagemap"),
        bos_max=peak.get("bo"),
        zdds_max=peak.get("zdd"),
        ranges_max=peak.get("range"),
        notifiers_max=peak.get("notifier"),
    )


def _page_index(machine: Machine) -> PageIndexUse | None:
    bytes_max = machine.gauges().get(GAUGE)
    if bytes_max is None:
        return None
    stats = machine.kernel.stats
    return PageIndexUse(
        lookups=stats.page_lookups,
        loads=stats.page_lookup_loads,
        bytes_max=bytes_max,
        marks_bytes_max=machine.gauges().get(MARKS_GAUGE),
        ns=machine.kernel.charged["page_index_load"],
    )


def _integrity(machine: Machine) -> Integrity:
    contents = machine.memory.contents
    return Integrity(
        reads_checked=contents.reads_checked,
        mismatches=contents.mismatch_count,
        known=dict(sorted(contents.known.items())),
    )


def _write_events(machine: Machine, path: Path) -> None:
    with path.open("x", encoding="utf-8") as file:
        for event in machine.kernel.tracer.events:
            file.write(json.dumps(event, default=str))
            file.write("\n")

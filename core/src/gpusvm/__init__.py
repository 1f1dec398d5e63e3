"""Run, check and compare GPU drivers' strategies for shared virtual memory on a model of Linux.

Everything that the command line does is a call here; docs/how-to/python-api.md shows them. The names are imported when
they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusvm import realkernel
    from gpusvm.compare import Comparison, InterruptedComparison, ProcessExecutor, SerialExecutor
    from gpusvm.compare.comparing import compare
    from gpusvm.conformance.characterizing import Characterization, characterize
    from gpusvm.conformance.conforming import conform
    from gpusvm.conformance.injection import inject
    from gpusvm.conformance.suite.conformance import Conformance, InterruptedConformance
    from gpusvm.errors import GpusvmError, InputError, KernelError, ModelError, PluginError
    from gpusvm.plugins import Registry, load_drivers, survey_drivers
    from gpusvm.report.explained import explain
    from gpusvm.workload import load as read_trace
    from gpusvm.workload import trace_info, write_trace

__all__ = [
    "Characterization",
    "Comparison",
    "Conformance",
    "GpusvmError",
    "InputError",
    "InterruptedComparison",
    "InterruptedConformance",
    "KernelError",
    "ModelError",
    "PluginError",
    "ProcessExecutor",
    "Registry",
    "SerialExecutor",
    "characterize",
    "compare",
    "conform",
    "explain",
    "inject",
    "load_drivers",
    "read_trace",
    "realkernel",
    "survey_drivers",
    "trace_info",
    "write_trace",
]

_HOMES = {
    "Characterization": "gpusvm.conformance.characterizing",
    "Comparison": "gpusvm.compare",
    "Conformance": "gpusvm.conformance.suite.conformance",
    "GpusvmError": "gpusvm.errors",
    "InputError": "gpusvm.errors",
    "InterruptedComparison": "gpusvm.compare",
    "InterruptedConformance": "gpusvm.conformance.suite.conformance",
    "KernelError": "gpusvm.errors",
    "ModelError": "gpusvm.errors",
    "PluginError": "gpusvm.errors",
    "ProcessExecutor": "gpusvm.compare",
    "Registry": "gpusvm.plugins",
    "SerialExecutor": "gpusvm.compare",
    "characterize": "gpusvm.conformance.characterizing",
    "conform": "gpusvm.conformance.conforming",
    "explain": "gpusvm.report.explained",
    "inject": "gpusvm.conformance.injection",
    "load_drivers": "gpusvm.plugins",
    "survey_drivers": "gpusvm.plugins",
    "trace_info": "gpusvm.workload",
    "write_trace": "gpusvm.workload",
}


def __getattr__(name: str) -> Any:
    if name in {"compare", "realkernel"}:  # the rooms themselves; compare can be called
        return importlib.import_module(f"gpusvm.{name}")
    if name == "read_trace":  # `load` says enough inside its room only
        return importlib.import_module("gpusvm.workload").load
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpusvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Ask drivers how they behave where Linux's drivers differ: questions S1 to S45, each answered by doing it."""

from gpusvm.conformance.probes import atomics, faults, identity, invalidation, placement, power
from gpusvm.conformance.probes.expectation import Expectation, expectations
from gpusvm.conformance.probes.probe import PROBES, Lab, NotApplicableError, Observation, Probe

_asked = sorted(PROBES.items(), key=lambda item: int(item[0][1:]))
PROBES.clear()
PROBES.update(_asked)

__all__ = [
    "PROBES",
    "Expectation",
    "Lab",
    "NotApplicableError",
    "Observation",
    "Probe",
    "atomics",
    "expectations",
    "faults",
    "identity",
    "invalidation",
    "placement",
    "power",
]

"""Compare the model with a real Linux: answers that a kernel gave to sequences of operations, given again by the model.

A recording holds what a kernel answered; `check` has the model do the same operations and says where it answers
otherwise. `run` has a real kernel in a virtual machine do operations, and `diff` both: `gpusvm.realkernel.build` makes
that kernel. `race` has two threads do operations at once, on two CPUs. A driver's plugin does the operations on its
devices (`gpusvm.driver.operations`).
"""

from gpusvm.realkernel.answers import LEVELS, Level
from gpusvm.realkernel.checking import CheckProgress, CheckProgressListener, check
from gpusvm.realkernel.differing import Diff, DiffListener, DiffProgress, Finding, diff
from gpusvm.realkernel.races import RaceListener, RaceProgress, RaceResult, Races, race
from gpusvm.realkernel.recordings import write_recording
from gpusvm.realkernel.result import Check, KindCount
from gpusvm.realkernel.running import Run, run
from gpusvm.realkernel.sequence import Difference

__all__ = [
    "LEVELS",
    "Check",
    "CheckProgress",
    "CheckProgressListener",
    "Diff",
    "DiffListener",
    "DiffProgress",
    "Difference",
    "Finding",
    "KindCount",
    "Level",
    "RaceListener",
    "RaceProgress",
    "RaceResult",
    "Races",
    "Run",
    "check",
    "diff",
    "race",
    "run",
    "write_recording",
]

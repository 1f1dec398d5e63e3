"""Put drivers side by side on the same workloads, with what-if variants and baselines.

The room can be called: ``gpusvm.compare(…)`` is `gpusvm.compare.comparing.compare`. A function of that name in the
package ``gpusvm`` would be replaced by this module as soon as anything imports it.
"""

import sys
from types import ModuleType

from gpusvm.compare.comparing import compare
from gpusvm.compare.comparison import Comparison, InterruptedComparison
from gpusvm.compare.jobs import Failure
from gpusvm.compare.progress import Progress, ProgressListener
from gpusvm.compare.table import METRICS, Metric, Row, Table
from gpusvm.run.executor import Executor, ProcessExecutor, SerialExecutor, available_cpus

__all__ = [
    "METRICS",
    "Comparison",
    "Executor",
    "Failure",
    "InterruptedComparison",
    "Metric",
    "ProcessExecutor",
    "Progress",
    "ProgressListener",
    "Row",
    "SerialExecutor",
    "Table",
    "available_cpus",
    "compare",
]


class _CallableModule(ModuleType):
    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _CallableModule

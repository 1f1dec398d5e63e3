"""The kernel a driver runs in: tasks, choices, clock, locks and lockdep, work, references, failure injection, trace."""

from gpusvm.kernel.choices import (
    ABANDON,
    Abandoned,
    CarryOn,
    Choices,
    Drawn,
    FirstChoice,
    RecordedChoices,
    SeededChoices,
)
from gpusvm.kernel.core import Kernel
from gpusvm.kernel.costs import Costs
from gpusvm.kernel.footprint import EVERYTHING, Footprint
from gpusvm.kernel.lockdep import Lockdep, LockMap
from gpusvm.kernel.locks import Mutex, SpinLock
from gpusvm.kernel.module import Module
from gpusvm.kernel.poison import Graveyard, describe, is_freed, peek
from gpusvm.kernel.refs import Gauges, Kref, Ledger
from gpusvm.kernel.rwsem import RwSemaphore
from gpusvm.kernel.srcu import Srcu
from gpusvm.kernel.stats import Stats
from gpusvm.kernel.task import Task
from gpusvm.kernel.timers import Timer
from gpusvm.kernel.trace import Tracer
from gpusvm.kernel.wait import Completion, WaitQueue
from gpusvm.kernel.work import Work, Workqueue

__all__ = [
    "ABANDON",
    "EVERYTHING",
    "Abandoned",
    "CarryOn",
    "Choices",
    "Completion",
    "Costs",
    "Drawn",
    "FirstChoice",
    "Footprint",
    "Gauges",
    "Graveyard",
    "Kernel",
    "Kref",
    "Ledger",
    "LockMap",
    "Lockdep",
    "Module",
    "Mutex",
    "RecordedChoices",
    "RwSemaphore",
    "SeededChoices",
    "SpinLock",
    "Srcu",
    "Stats",
    "Task",
    "Timer",
    "Tracer",
    "WaitQueue",
    "Work",
    "Workqueue",
    "describe",
    "is_freed",
    "peek",
]

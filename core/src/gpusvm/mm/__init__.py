"""Linux's mm: folios, page tables, VMAs, interval notifiers, hmm, migration, dev_pagemap, CPU faults.

`MemoryManager` is the subsystem of one machine; what the rooms above may know of it is in `gpusvm.mm.api`.
"""

from gpusvm.mm.api import Geometry
from gpusvm.mm.contents import Contents
from gpusvm.mm.memory_manager import MemoryManager
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.quirks import MmQuirks
from gpusvm.mm.vma import Vma

__all__ = ["Contents", "Geometry", "MemoryManager", "MmQuirks", "MmStruct", "Vma"]

"""Linux's mm, as of 7.3.4, as far as device memory meets it. `MemoryManager` is the subsystem of one machine.

What the rooms above may know of it is in `gpusvm.mm.api`. By subject:

- Data: `page` and `page_alloc` (struct pages, folios, the allocator), `pgtable` and `ptemask` (page tables),
  `mm_struct`, `vma`, `vma_merge`, `mmap_lock`, `rss`, `contents` (what is in memory), `swap`, `filemap`,
  `shmem`, `hugetlb`.
- Notifiers: `mmu_notifier`.
- Mirroring: `hmm`, `hmm_dma`.
- Migration: `migrate_device` with `migrate_collect` and `migrate_insert`; `rmap`, `rmap_walk`, `try_to_unmap`; `split`.
- Device memory: `memremap`; `exclusive`.
- Faults: `cpu`, `memory`, `do_fault`, `huge_memory`, `userfaultfd`, `insert_page`.
- Address spaces: `mmap`, `zap`, `mprotect`, `mremap` with `move_tables`, `madvise` with `madvise_guard` and `lazyfree`,
  `khugepaged`, `fork` with `copy_page_range`, `oom_kill`.
- Pins and poison: `gup`, `memory_failure`.
- The model's own: `quirks` (which surprises of Linux it repeats), `observer` (who may listen).
"""

from gpusvm.mm.api import Geometry
from gpusvm.mm.contents import Contents
from gpusvm.mm.memory_manager import MemoryManager
from gpusvm.mm.mm_struct import MmStruct
from gpusvm.mm.quirks import MmQuirks
from gpusvm.mm.vma import Vma

__all__ = ["Contents", "Geometry", "MemoryManager", "MmQuirks", "MmStruct", "Vma"]

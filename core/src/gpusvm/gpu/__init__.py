"""The parts that a modelled GPU is assembled from: page table, TLB, copy engine, fault buffer, link, compute units."""

from gpusvm.gpu.compute import ComputeEngine, FaultEntry, RaiseFaults
from gpusvm.gpu.copy_engine import D2D, CopyEngine, Direction, Shape
from gpusvm.gpu.cpu_copy import charge_cpu_copy
from gpusvm.gpu.fault_buffer import FaultBuffer
from gpusvm.gpu.link import D2H, H2D, Link
from gpusvm.gpu.page_table import ATOMIC, NEED_OF_OP, READ, REMOTE, STALE, WRITE, GpuPageTable, PteWindow, runs
from gpusvm.gpu.tlb import Tlb

__all__ = [
    "ATOMIC",
    "D2D",
    "D2H",
    "H2D",
    "NEED_OF_OP",
    "READ",
    "REMOTE",
    "STALE",
    "WRITE",
    "ComputeEngine",
    "CopyEngine",
    "Direction",
    "FaultBuffer",
    "FaultEntry",
    "GpuPageTable",
    "Link",
    "PteWindow",
    "RaiseFaults",
    "Shape",
    "Tlb",
    "charge_cpu_copy",
    "runs",
]

"""For the authors of driver plugins: a workbench for one driver, and faults raised by hand."""

from gpusvm.testing.bench import Bench, Fault

__all__ = ["Bench", "Fault"]

"""Drivers and cores that break one rule of the ops of drm_gpusvm and drm_pagemap each: that the checks of those ops can
fail is shown with them.

They are apart from the broken drivers that the whole suite is tried on: each is for the checks of `ops.*`.
"""

from collections.abc import Mapping
from typing import Final

from gpusvm.conformance.mutants.broken import BrokenDriver
from gpusvm.conformance.mutants.ops_core import CORES_HALF
from gpusvm.conformance.mutants.ops_driver import DRIVERS_HALF

__all__ = ["OPS_BROKEN"]

OPS_BROKEN: Final[Mapping[str, BrokenDriver]] = {broken.id: broken for broken in (*DRIVERS_HALF, *CORES_HALF)}
"""By id."""

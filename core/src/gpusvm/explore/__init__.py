"""Explore orders and failures of concurrent programs: what runs them, what decides, and what is found.

The room can be called: ``gpusvm.explore(…)`` is `gpusvm.explore.exploring.explore`.
"""

import sys
from types import ModuleType

from gpusvm.explore.exploring import ExplorationProgress, explore, explore_cases
from gpusvm.explore.programs import Finding, Program, explore_program, random_walk, replay
from gpusvm.explore.result import Exploration, Explorations, Found
from gpusvm.explore.scenario_program import ScenarioError, scenario_program

__all__ = [
    "Exploration",
    "ExplorationProgress",
    "Explorations",
    "Finding",
    "Found",
    "Program",
    "ScenarioError",
    "explore",
    "explore_cases",
    "explore_program",
    "random_walk",
    "replay",
    "scenario_program",
]


class _CallableModule(ModuleType):
    __call__ = staticmethod(explore)


sys.modules[__name__].__class__ = _CallableModule

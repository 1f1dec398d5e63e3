"""Orders of concurrent programs: a seeded random walk over schedules, and the replay of one."""

from gpusvm.explore.walk import Finding, Program, random_walk, replay

__all__ = ["Finding", "Program", "random_walk", "replay"]

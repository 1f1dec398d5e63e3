"""Let two threads race in a real kernel, and compare what comes of it with all that the model allows."""

from gpusvm.realkernel.races.racing import RaceListener, RaceProgress, race
from gpusvm.realkernel.races.result import RaceResult, Races, Verdict

__all__ = ["RaceListener", "RaceProgress", "RaceResult", "Races", "Verdict", "race"]

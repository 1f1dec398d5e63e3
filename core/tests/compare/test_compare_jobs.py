import pickle

from gpusvm.compare.jobs import Job
from gpusvm.plugins import Installed, Registry
from gpusvm.run.spec import RunSpec

SPEC = RunSpec(driver="xe", workload="triad", vram_bytes=1 << 30)


def travelled(job):
    return pickle.loads(pickle.dumps(job))


def test_installed_drivers_are_loaded_again_where_a_job_arrives():
    here = Job(spec=SPEC, events_to=None, drivers=Installed(("broken",), Registry.of()))
    assert here.drivers.registry() == Registry.of()
    there = travelled(here)
    assert there.spec == SPEC
    assert (there.drivers.without, there.drivers.loaded) == (("broken",), None)


def test_a_registry_made_in_python_travels():
    there = travelled(Job(spec=SPEC, events_to=None, drivers=Registry.of()))
    assert there.drivers == Registry.of()

"""Make every run of the tests the same run, and let them run with every machine checked at each step.

Hypothesis draws the same examples everywhere, and keeps none aside. `--check-always` attaches a `gpusvm.check.Checker`
to each machine that a test builds; a test that listens to a machine itself takes its place.
"""

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None, deadline=None, print_blob=True)
# `pytest --hypothesis-profile=soak FILE`: new examples every time, for hours.
settings.register_profile("soak", max_examples=200_000, deadline=None, print_blob=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer to check every machine."""
    parser.addoption("--check-always", action="store_true", help="check the invariants of every machine as it runs")


_spared = False  # the running test breaks rules on purpose


def pytest_configure(config: pytest.Config) -> None:
    """Attach a checker wherever memory is built, if asked to."""
    if not config.getoption("--check-always"):
        return
    from gpusvm.check import Checker
    from gpusvm.mm import MemoryManager

    built = MemoryManager.__init__

    def checked(self: MemoryManager, *arguments: object, **options: object) -> None:
        built(self, *arguments, **options)  # type: ignore[arg-type]  # whatever a test gives
        if self.kernel.observer is None and not _spared:
            Checker(self).attach()

    MemoryManager.__init__ = checked  # type: ignore[method-assign,assignment]  # for this run only


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note whether the test breaks rules on purpose."""
    global _spared  # noqa: PLW0603  # one process runs one test at a time
    _spared = item.get_closest_marker("breaks_invariants") is not None

"""What the table of explorations says below itself."""

import io
from collections import Counter

from gpusvm.explore.coverage import Coverage
from gpusvm.explore.result import Exploration, Explorations
from gpusvm.report import print_explorations

WENT_WELL = (("one", "cpu_write 0 4", "ok"),)
FAILED = (("one", "cpu_write 0 4", "SIGSEGV"),)


def explored(name, *, scheduler="random", schedules=100, outcomes=(WENT_WELL,)):
    coverage = Coverage(outcomes=Counter({each: schedules // len(outcomes) for each in outcomes}))
    return Exploration(scenario=name, driver="acme", scheduler=scheduler, schedules=schedules, coverage=coverage)


def advice(*results):
    text = io.StringIO()
    print_explorations(Explorations(results=list(results)), file=text)
    return [line for line in text.getvalue().splitlines() if line.startswith("one outcome only")]


def test_random_orders_that_all_end_alike_call_for_another_scheduler():
    (line,) = advice(*(explored(name) for name in "abcd"))
    assert line == (
        "one outcome only: a on acme, b on acme, c on acme and 1 more; random switches at every other point, so that "
        "what is long hardly gets on beside what is short: try --scheduler pct"
    )


def test_what_ends_in_two_ways_was_few_or_had_another_scheduler_does_not():
    assert advice(explored("a", outcomes=(WENT_WELL, FAILED))) == []
    assert advice(explored("a", schedules=99)) == []
    assert advice(explored("a", scheduler="pct:depth=3")) == []

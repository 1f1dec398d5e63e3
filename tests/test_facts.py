"""What the pages of facts in docs/reference name is there, has the value that they say, and is tested or left out on
purpose.
"""

from pathlib import Path

import attrs
import pytest
from generators import facts

ROOT = Path(__file__).resolve().parent.parent


def test_everything_that_the_facts_name_is_there():
    assert facts.problems(ROOT) == []


FACT = facts.Fact(
    says="it is so",
    places=("gpusvm.drm.evict:ATTEMPTS",),
    value=3,
    tests=("test_facts::test_a_fact_that_is_not_so_is_named",),
)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"value": 4}, "it is so: gpusvm.drm.evict:ATTEMPTS is 3, not 4"),
        (
            {"places": ("gpusvm.drm.evict:ATTEMPT",), "value": None},
            "it is so: gpusvm.drm.evict:ATTEMPT: module 'gpusvm.drm.evict' has no attribute 'ATTEMPT'",
        ),
        ({"tests": ("test_facts::test_gone",)}, "it is so: there is no test test_facts::test_gone"),
        ({"tests": ()}, "it is so: in the model and tested, or left out, one of the two"),
        (
            {"places": (), "tests": (), "value": None, "left_out": "no words of that page"},
            "it is so: docs/explanation/fidelity.md does not say 'no words of that page'",
        ),
    ],
)
def test_a_fact_that_is_not_so_is_named(monkeypatch, change, problem):
    section = facts.Section(title="", kernel="", facts=(FACT, attrs.evolve(FACT, **change)))
    monkeypatch.setattr(facts, "read_facts", lambda: [section])
    assert facts.problems(ROOT) == [problem]


@pytest.mark.parametrize("name", facts.PAGES)
def test_a_page_has_the_sections_of_its_file_alone(name):
    text = facts.page(name, ROOT)
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [section.title for section in facts.read_facts(name)]
    assert len(titles) < len(facts.read_facts())

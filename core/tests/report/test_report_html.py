import html.parser
import re

import attrs
import pytest
from gpusvm.compare import METRICS, Failure
from gpusvm.report import fragment, page

VOID = {"meta", "rect", "line"}


class Outline(html.parser.HTMLParser):
    """Collects tags, attributes and cells, and checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and ("td" in self.open or "th" in self.open):
            self.cells[-1] += data


def outline(text):
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.mark.parametrize("render", [page, fragment])
def test_it_needs_nothing_but_itself(comparison, render):
    text = render(comparison)
    parsed = outline(text)
    assert {"script", "link", "img", "iframe", "a"}.isdisjoint(parsed.tags)
    assert {"src", "href", "xlink:href", "onclick"}.isdisjoint(name for name, _ in parsed.attributes)
    assert not re.search(r"https?:|url\(|@import", text)


def test_the_page_has_a_table_and_a_chart_for_each_workload(comparison):
    parsed = outline(page(comparison))
    assert parsed.tags.count("table") == 2
    assert parsed.tags.count("svg") == 4
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert labels[0] == (
        "Time in GPU faults, by stage, summed over the faults, triad: "
        "xe 13.9 ms, nouveau 197.7 ms, dmirror 441.3 ms, xe:chunk_sizes=64K+4K 47.3 ms"
    )
    cells = [cell.strip() for cell in parsed.cells]
    start = cells.index("simulated time")
    assert cells[start : start + 5] == ["simulated time", "0.21 s*", "3.03 s", "6.77 s", "0.73 s"]
    assert {metric.label for metric in METRICS} <= set(cells)


def test_the_page_draws_power_and_says_it(comparison):
    text = page(comparison)
    parsed = outline(text)
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert labels[1].startswith(
        "Power over time: the state of each device, and when who held references on it, triad: "
        "xe, gpu0: D0 88 %, D3cold 12 %; 1 resume; "
    )
    assert "<title>xe, gpu0, D3cold: 1.00 ms to 26.7 ms</title>" in text
    assert "<title>xe, gpu0, bo, 96 at most: 53.4 ms to 107 ms</title>" in text
    assert (
        "<p>nouveau, gpu0: D0 50 %, D3hot 50 %; 2 resumes; held by ioctl &lt; 1 %; when the program ended by nobody</p>"
        in text
    )


def test_without_power_management_there_is_no_picture_of_it(comparison):
    runs = tuple({**run, "pm": None} for run in comparison.runs)
    parsed = outline(page(attrs.evolve(comparison, runs=runs)))
    assert parsed.tags.count("svg") == 2


def test_both_themes_have_every_colour(comparison):
    style = page(comparison)
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    names = set(re.findall(r"--([a-z_]+):", light))
    assert names == set(re.findall(r"--([a-z_]+):", dark.split(".gpusvm h1")[0]))
    assert {"queue", "gc", "lookup", "migrate", "get_pages", "bind", "ack", "awake", "hot", "cold", "held"} <= names


def test_what_a_user_named_is_escaped(comparison):
    run = {**comparison.runs[0], "workload": "<script>alert(1)</script>.parquet"}
    hostile = attrs.evolve(comparison, workloads=(run["workload"],), runs=(run,))
    text = page(hostile)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.parquet" in text


def test_a_failed_run_is_told(comparison):
    failed = attrs.evolve(
        comparison,
        runs=tuple(run for run in comparison.runs if run["driver"] != "dmirror"),
        failures=(Failure(driver="dmirror", workload="triad", kind="KeyError", message="'<bo>'", trace="Traceback"),),
    )
    text = page(failed)
    outline(text)
    assert "dmirror (failed)" in text
    assert "dmirror on triad: KeyError: &#39;&lt;bo&gt;&#39;" in text
    assert "<pre>Traceback</pre>" in text


def test_a_notebook_shows_the_same(comparison):
    assert comparison._repr_html_() == fragment(comparison)

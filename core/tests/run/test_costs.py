"""Cost profiles: the numbers against the measurements and the published times they come from, and the refusals."""

import hashlib
import importlib.util
from importlib import resources
from pathlib import Path

import attrs
import pytest
from gpusvm.errors import InputError
from gpusvm.kernel.costs import Costs
from gpusvm.run.costs import bundled_profiles, load_profile

PROFILES = Path(str(resources.files("gpusvm.run"))) / "profiles"
FIT_COSTS = Path(__file__).parents[3] / "benchmarks" / "fit_costs.py"


@pytest.fixture(scope="module")
def fit_costs():
    spec = importlib.util.spec_from_file_location("fit_costs", FIT_COSTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(fit_costs):
    return fit_costs.read_rows(PROFILES / "h100-costs.csv")


@pytest.fixture(scope="module")
def h100():
    return load_profile("h100-pcie5")


@pytest.fixture(scope="module")
def bmg():
    return load_profile("xe-bmg").costs


def test_the_bundled_profiles():
    assert bundled_profiles() == ("h100-pcie5", "xe-bmg")
    for name in bundled_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.sha256 == hashlib.sha256((PROFILES / f"{name}.toml").read_bytes()).hexdigest()


def test_the_fit_gives_the_numbers_of_the_h100_profile(fit_costs, rows, h100):
    for name, fit in fit_costs.fit_copies(rows).items():
        _, shape, direction = name.split(".")
        assert h100.costs.copies[shape, direction] == fit[:3], name
        assert h100.sources[f"copy_{shape}_{direction}"].kind == "fitted"
    lines = fit_costs.fit_lines(rows)
    for name in ("bo_clear", "cpu_copy"):
        assert getattr(h100.costs, f"{name}_base") == lines[name].base_ns
        assert getattr(h100.costs, f"{name}_per_byte") == lines[name].ns_per_byte
    assert h100.costs.dma_map_per_folio == lines["dma_map_per_folio"].per_piece_ns


def test_the_residuals_are_those_the_h100_profile_states(fit_costs, rows, h100):
    stated = {
        f"copy.{s.split('_', 1)[1].rsplit('_', 1)[0]}.{s[-3:]}": v.source
        for s, v in h100.sources.items()
        if s.startswith("copy_")
    }
    for name, fit in fit_costs.fit_copies(rows).items():
        assert f"rms {100 * fit.rms:.1f} %, worst {100 * fit.worst[1]:+.0f} %" in stated[name]


def test_what_is_called_measured_is_a_row_of_the_file(fit_costs, rows, h100):
    medians = {**fit_costs.measured(rows), "remote_ns_per_byte": fit_costs.remote_ns_per_byte(rows)}
    measured = {event for event, source in h100.sources.items() if source.kind == "measured"}
    # That one has a file and a test of its own: tests/test_pagemap_embedding.py
    assert measured == {*medians, "page_index_load"}
    assert {event: getattr(h100.costs, event) for event in medians} == medians


@pytest.mark.parametrize(
    ("shape", "pieces", "median_us"),
    [("per_piece", 512, 1409.704), ("gather", 512, 53.163), ("gather", 1, 46.964)],
)
def test_2_mib_take_the_h100_what_was_measured(h100, shape, pieces, median_us):
    assert h100.costs.copy_ns(shape, "h2d", 2 << 20, pieces) == pytest.approx(1000 * median_us, rel=0.04)


def test_nothing_to_copy_costs_nothing(h100):
    assert h100.costs.copy_ns("gather", "h2d", 0, 0) == 0


def test_rates_round_to_whole_ns(h100):
    assert h100.costs.bo_clear_ns(2 << 20) == 8990 + 745
    assert h100.costs.remote_ns(4096) == 85


# Published: "Enable THP support in drm_pagemap", us without and with huge pages. n is folios, pieces, entries, leaves.
@pytest.mark.parametrize(
    ("folios", "published_us"),
    [
        (512, {"migrate": 942, "copy": 223, "get_pages": 9, "bind": 10, "fault": 966}),
        (1, {"migrate": 128, "copy": 106, "get_pages": 1, "bind": 2, "fault": 132}),
    ],
)
def test_xe_bmg_gives_the_published_times_of_a_2_mib_fault(bmg, folios, published_us):
    copy = bmg.copy_ns("gather", "h2d", 2 << 20, folios)
    per_folio = (
        bmg.migrate_setup_per_folio
        + bmg.dma_map_per_folio
        + bmg.migrate_pages_per_folio
        + bmg.migrate_finalize_per_folio
    )
    base = bmg.migrate_setup_base + bmg.notifier_callback + bmg.bo_alloc + bmg.migrate_finalize_base
    parts = {
        "copy": copy,
        "migrate": base + folios * per_folio + copy,
        "get_pages": bmg.get_pages_base + folios * bmg.get_pages_per_entry,
        "bind": bmg.bind_base + folios * bmg.bind_per_pte,
    }
    rest = bmg.gpu_fault_delivery + bmg.fault_buffer_entry + bmg.range_lookup + bmg.range_insert + bmg.gpu_replay
    parts["fault"] = parts["migrate"] + parts["get_pages"] + parts["bind"] + rest
    for part, us in published_us.items():
        assert parts[part] == pytest.approx(1000 * us, rel=0.025), part
    assert parts["fault"] == pytest.approx(1000 * published_us["fault"], rel=0.005)


def test_every_number_has_a_source():
    copies = {f"copy_{shape}_{way}" for shape in ("gather", "per_piece") for way in ("h2d", "d2h", "d2d")}
    events = {field.name for field in attrs.fields(Costs)} - {"copies", "assumed"}
    for name in bundled_profiles():
        profile = load_profile(name)
        assert set(profile.sources) == events | copies
        assert profile.assumed_events == {e for e, source in profile.sources.items() if source.kind == "assumed"}
        assert profile.assumed_events == profile.costs.assumed


def test_costs_are_whole_ns_and_rates_are_not(h100):
    for field in attrs.fields(Costs):
        if field.type in {int, float}:
            assert isinstance(getattr(h100.costs, field.name), field.type), field.name


@pytest.fixture
def refused(tmp_path):
    """Change the text of a good profile and return the one line that refuses it, without the file's name."""

    def refuse(old, new):
        path = tmp_path / "mine.toml"
        text = (PROFILES / "h100-pcie5.toml").read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            load_profile(path)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{path}: ")
        return message.removeprefix(f"{path}: ")

    return refuse


def test_an_unknown_event_names_the_nearest(refused):
    assert refused("[cost.bind_base]", "[cost.bind_bse]") == (
        "cost.bind_base: missing; cost: unknown key 'bind_bse', did you mean 'bind_base'?"
    )


def test_a_missing_number(refused):
    assert refused("ns = 1_911\n", "") == "cost.cpu_minor_fault_4k.ns: missing"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("ns = -1\n", "cost.cpu_minor_fault_4k: ns: expected 0 or more, got -1"),
        ("ns = 1.5\n", "cost.cpu_minor_fault_4k.ns: expected a whole number, got 1.5"),
        ("ns = '7'\n", "cost.cpu_minor_fault_4k.ns: expected a whole number, got '7'"),
        ("ns = 7\nus = 3\n", "cost.cpu_minor_fault_4k: unknown key 'us', valid: kind, source, ns"),
    ],
)
def test_a_wrong_number(refused, new, expected):
    assert refused("ns = 1_911\n", new) == expected


def test_a_wrong_rate(refused):
    assert refused("ns_per_byte = 0.018147", "ns_per_byte = inf") == (
        "copy.per_piece.h2d: ns_per_byte: expected 0 or more, got inf"
    )


def test_a_rate_may_be_whole(refused, tmp_path):
    text = (PROFILES / "xe-bmg.toml").read_text(encoding="utf-8").replace("ns = 0.046015", "ns = 1")
    (tmp_path / "whole.toml").write_text(text, encoding="utf-8")
    assert load_profile(tmp_path / "whole.toml").costs.remote_ns_per_byte == 1.0


def test_an_unknown_kind(refused):
    assert refused('kind = "measured"\nsource = "h100-costs.csv: host_zap', 'kind = "guessed"\nsource = "h') == (
        "cost.zap_per_page.kind: expected one of 'measured', 'published', 'fitted', 'assumed', got 'guessed'"
    )


def test_no_source(refused):
    assert refused('source = "h100-costs.csv: host_mprotect, write-protect 4 KiB pages"', 'source = ""') == (
        "cost.protect_per_page: source: expected a text, got none; say where the number comes from"
    )


def test_every_problem_is_in_the_line(refused):
    assert refused("ns = 1_911\n", "ns = true\n[cost.x]\nns = 0\n") == (
        "cost.cpu_minor_fault_4k.kind: missing; cost.cpu_minor_fault_4k.source: missing; "
        "cost.cpu_minor_fault_4k.ns: expected a whole number, got True; "
        f"cost: unknown key 'x', valid: {', '.join(f.name for f in attrs.fields(Costs) if f.type in {int, float})}"
    )


def test_no_toml(refused):
    assert refused("[profile]", "[profile") == (
        "expected TOML, got Expected ']' at the end of a table declaration (at line 9, column 9)"
    )


def test_no_file(tmp_path):
    with pytest.raises(InputError) as caught:
        load_profile(tmp_path / "none.toml")
    assert str(caught.value) == (
        f"{tmp_path / 'none.toml'}: no such file; the bundled profiles are: h100-pcie5, xe-bmg"
    )


def test_an_unknown_name():
    with pytest.raises(InputError) as caught:
        load_profile("h100-pcie4")
    assert str(caught.value) == (
        "unknown cost profile 'h100-pcie4', did you mean 'h100-pcie5'? (or the path of a .toml file)"
    )

"""What xe declares: it is inert, complete, and nothing of it is decoration."""

import subprocess
import sys
from pathlib import Path

import attrs
import gpusvm_xe
import pytest
from gpusvm.driver import format_size, read_spec
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers
from gpusvm_xe.plugin import INFO
from gpusvm_xe.quirks import XeQuirks
from gpusvm_xe.tunables import XeTunables

SOURCES = [path for path in Path(gpusvm_xe.__file__).parent.glob("*.py") if path.name != "tunables.py"]


def test_it_is_found_by_its_name():
    assert load_drivers()["xe"] is INFO


def test_importing_the_plugin_builds_nothing():
    program = "import sys, gpusvm_xe.plugin; print('gpusvm_xe.driver' in sys.modules, 'gpusvm_xe.vm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(XeTunables)])
def test_every_tunable_is_read_somewhere(name):
    assert any(f"tunables.{name}" in path.read_text("utf-8") for path in SOURCES)


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(XeQuirks)])
def test_every_quirk_is_read_somewhere(name):
    assert any(f"quirks.{name}" in path.read_text("utf-8") for path in SOURCES)


def test_every_default_can_be_written_in_a_spec_string():
    def text(each):
        if isinstance(each.default, bool):
            return "on" if each.default else "off"
        value = each.default if isinstance(each.default, tuple) else (each.default,)
        return "+".join(format_size(v) if each.metadata["unit"] == "bytes" else str(v) for v in value)

    spec = "xe:" + ",".join(f"{each.name}={text(each)}" for each in attrs.fields(XeTunables))
    assert read_spec(spec, {"xe": INFO}).tunables == XeTunables()


def test_the_defaults_are_the_kernels():
    assert attrs.asdict(XeTunables()) == {
        "chunk_sizes": (2 << 20, 64 << 10, 4 << 10),
        "notifier_size": 512 << 20,
        "check_pages_threshold": 64 << 10,
        "queues": 4,
        "eus": 160,
        "slice_ms": 20,
        "timeslice_ms": 5,
        "timeslice_growth": 2,
        "migrate_after": 1,
        "tries": 1,
        "atomic_tries": 3,
        "fallback": "system",
        "device_atomics_on_smem": 1,
        "populate_attempts": 2,
        "evict_attempts": 3,
        "migrate_lock": "global",
        "same_pagemap": False,
        "allow_mixed": False,
        "evict_order": "fifo",
        "order_fallback": True,
        "clear": "async",
        "owner": "clique",
        "tlb_min": 16 << 20,
        "tlb_timeout_ms": 250,
        "copy_chunk": 8 << 20,
        "media_gt": True,
        "need_64k": False,
        "embedding": ("siblings",),
        "page_to_bo": "zone_device_data",
        "autosuspend_ms": 1000,
        "d3cold_mib": 300,
    }


def test_a_notifier_smaller_than_a_range_is_refused_with_the_reason():
    with pytest.raises(InputError) as caught:
        read_spec("xe:notifier_size=1M", {"xe": INFO})
    assert str(caught.value) == (
        "driver spec 'xe:notifier_size=1M': notifier_size=1M is below the largest of chunk_sizes, 2M: "
        "a range lies within one notifier window, so it would never be used"
    )

"""The bundled traces against the tables that came with the captures, which another program computed."""

import math

import pytest
from gpusvm.workload import DEFAULT_WORKLOADS, bundled, load, trace_info

# file KiB (rounded up), footprint MiB, pages touched, duration ms, launches, agent switches, bucket µs, logged / not
SIZE = {
    "triad": (323, 192, 49152, 199.5, 2, 4, 16.4, 1.35),
    "gemm": (398, 192, 49152, 126.5, 1, 2, 32.8, 1.36),
    "gups": (290, 72, 18432, 25.2, 1, 2, 131.1, 1.13),
    "jacobi": (401, 64, 16416, 32.1, 10, 20, 16.4, 2.86),
    "bfs": (412, 80, 18929, 23.3, 7, 14, 65.5, 2.23),
    "spmv": (442, 140, 35841, 56.8, 3, 6, 262.1, 2.31),
    "hashjoin": (382, 144, 33793, 68.7, 3, 2, 32.8, 1.53),
    "llm-decode": (410, 112, 20616, 36.4, 769, 18, 16.4, 2.39),
    "pingpong": (301, 68, 17408, 144.5, 64, 128, 16.4, 1.06),
    "scan": (444, 256, 65540, 77.1, 2, 4, 65.5, 1.38),
}

# events, GPU read, write, atomic, CPU read, write, then shares: re-touch, GPU re-touch, next page, near, same 2 MiB
EVENTS = {
    "triad": (163962, 65617, 32809, 0, 32768, 32768, 0.700, 0.501, 0.037, 0.966, 0.996),
    "gemm": (340854, 270715, 20987, 0, 16384, 32768, 0.856, 0.831, 0.003, 0.837, 0.975),
    "gups": (151573, 2069, 0, 114688, 16384, 18432, 0.878, 0.842, 0.005, 0.077, 0.870),
    "jacobi": (192057, 83808, 83313, 0, 8512, 16424, 0.915, 0.902, 0.013, 0.986, 0.996),
    "bfs": (161372, 125902, 1681, 15347, 1030, 17412, 0.883, 0.868, 0.053, 0.278, 0.873),
    "spmv": (189899, 140788, 5078, 0, 6144, 37889, 0.811, 0.754, 0.058, 0.695, 0.911),
    "hashjoin": (182350, 106525, 17426, 32797, 9217, 16385, 0.815, 0.784, 0.033, 0.302, 0.980),
    "llm-decode": (202564, 177267, 12966, 0, 16, 12315, 0.898, 0.892, 0.051, 0.879, 0.984),
    "pingpong": (150581, 76633, 4316, 0, 4096, 65536, 0.884, 0.785, 0.006, 0.771, 0.997),
    "scan": (202028, 136480, 6, 1, 4, 65537, 0.676, 0.520, 0.003, 0.219, 0.873),
}


def test_the_bundled_traces_are_those_of_the_tables():
    assert bundled() == tuple(sorted(SIZE))
    assert set(DEFAULT_WORKLOADS) <= set(bundled())
    assert len(DEFAULT_WORKLOADS) == 4


@pytest.mark.parametrize("name", SIZE)
def test_a_trace_has_the_numbers_of_the_tables(name):
    info = trace_info(load(name))
    assert info["name"] == name
    assert (
        math.ceil(info["file_bytes"] / 1024),
        round(info["footprint_mib"]),
        info["pages_touched"],
        round(info["duration_ns"] / 1e6, 1),
        info["launches"],
        info["agent_switches"],
        round(info["bucket_ns"] / 1e3, 1),
        round(info["gpu_time_ratio"], 2),
    ) == SIZE[name]
    assert (
        info["events"],
        info["gpu_read"],
        info["gpu_write"],
        info["gpu_atomic"],
        info["cpu_read"],
        info["cpu_write"],
    ) == EVENTS[name][:6]
    shares = [info[f"{key}_share"] for key in ("retouch", "gpu_retouch", "next_page", "near", "same_2mib")]
    assert shares == pytest.approx(EVENTS[name][6:], abs=0.0006)

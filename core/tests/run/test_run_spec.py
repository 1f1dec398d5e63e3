import pickle

import attrs
from gpusvm.run.spec import RunSpec

SPEC = RunSpec(driver="xe", workload="triad", vram_bytes=256 << 20)


def test_a_spec_crosses_a_process_boundary():
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC


def test_the_key_follows_every_field_and_every_input():
    inputs = {"trace": "0" * 64}
    variants = [
        attrs.evolve(SPEC, driver="nouveau"),
        attrs.evolve(SPEC, workload="gemm"),
        attrs.evolve(SPEC, vram_bytes=1 << 30),
        attrs.evolve(SPEC, seed=1),
        attrs.evolve(SPEC, thp="never"),
        attrs.evolve(SPEC, topology="two"),
        attrs.evolve(SPEC, costs="xe-bmg"),
        attrs.evolve(SPEC, quirks="fixed"),
        attrs.evolve(SPEC, checked=False),
        attrs.evolve(SPEC, events=True),
    ]
    assert len(variants) == len(attrs.fields(RunSpec))
    keys = {spec.key(inputs=inputs) for spec in [SPEC, *variants]} | {SPEC.key(inputs={"trace": "1" * 64})}
    assert len(keys) == len(variants) + 2
    assert SPEC.key(inputs=inputs) == RunSpec(driver="xe", workload="triad", vram_bytes=256 << 20).key(inputs=inputs)
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)

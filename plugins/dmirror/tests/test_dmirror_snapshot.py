"""The byte that SNAPSHOT has for each word that hmm_range_fault can report (dmirror_mkentry)."""

import pytest
from gpusvm.mm.api import HMM_PFN_ERROR, HMM_PFN_ORDER_SHIFT, HMM_PFN_VALID, HMM_PFN_WRITE
from gpusvm_dmirror.snapshot import mkentry
from hmm_harness import Hmm


@pytest.fixture(scope="module")
def hmm():
    made = Hmm(0)
    yield made
    made.teardown()


def pages(hmm):
    """Name one page of each kind."""
    own, other, coherent, other_coherent = (device.pool.chunks[0].first for device in hmm.module.devices)
    return {
        "system": 7,
        "zero": hmm.memory.zero_pfn,
        "own": own,
        "other": other,
        "own coherent": coherent,
        "other coherent": other_coherent,
    }


@pytest.mark.parametrize(
    ("page", "minor", "base"),
    [
        ("system", 0, 0x00),
        ("zero", 0, 0x10),
        ("own", 0, 0x20),
        ("own", 1, 0x30),
        ("other", 0, 0x30),
        ("own coherent", 2, 0x40),
        ("own coherent", 0, 0x50),
        ("other coherent", 2, 0x50),
    ],
)
@pytest.mark.parametrize(("write", "access"), [(0, 0x01), (HMM_PFN_WRITE, 0x02)], ids=["read", "write"])
@pytest.mark.parametrize(("order", "size"), [(0, 0), (9, 0x04), (18, 0x08), (4, 0)], ids=["PTE", "PMD", "PUD", "other"])
def test_a_mapped_page(hmm, page, minor, base, write, access, order, size):
    word = HMM_PFN_VALID | write | order << HMM_PFN_ORDER_SHIFT | pages(hmm)[page]
    assert mkentry(hmm.module.devices[minor], word) == base | access | size


def test_what_is_not_mapped_or_cannot_be(hmm):
    device = hmm.module.devices[0]
    assert [mkentry(device, word) for word in (0, HMM_PFN_WRITE, HMM_PFN_ERROR, HMM_PFN_ERROR | HMM_PFN_VALID | 7)] == [
        0x00,
        0x00,
        0xFF,
        0xFF,
    ]

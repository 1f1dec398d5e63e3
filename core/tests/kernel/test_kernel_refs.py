import pytest
from gpusvm.errors import InputError, LedgerError, ModelError
from gpusvm.kernel import Gauges, Kref, Ledger


class Bo:
    def __init__(self, name):
        self.name = name


class Nameless:
    pass


def test_checked_ledger_names_holders():
    ledger = Ledger(checked=True)
    a, b = Bo("a"), Bo("b")
    ledger.get("dma", a)
    ledger.get("dma", b, 2)
    ledger.get("pm", "fault worker")
    ledger.get("zdd", Nameless())
    ledger.put("dma", b)
    assert ledger.count("dma") == 2
    with pytest.raises(LedgerError) as caught:
        ledger.put("pm", a)
    assert str(caught.value) == "ledger: Bo 'a' puts 1 'pm' and holds 0"
    with pytest.raises(LedgerError) as caught:
        ledger.put("dma", a, 2)
    assert str(caught.value) == "ledger: Bo 'a' puts 2 'dma' and holds 1"
    with pytest.raises(ModelError) as caught:
        ledger.assert_empty()
    assert str(caught.value) == (
        "ledger: not given back\n"
        "  'dma' held by Bo 'a': 1\n"
        "  'dma' held by Bo 'b': 1\n"
        "  'pm' held by 'fault worker': 1\n"
        "  'zdd' held by Nameless: 1"
    )


def test_unchecked_ledger_counts_by_class():
    ledger = Ledger(checked=False)
    a, b = Bo("a"), Bo("b")
    ledger.get("dma", a)
    ledger.put("dma", b)
    ledger.assert_empty()
    ledger.put("pm", "x")
    with pytest.raises(LedgerError) as caught:
        ledger.assert_empty()
    assert str(caught.value) == "ledger: not given back\n  'pm' held by 'x': -1"
    ledger.get("pm", "x")
    ledger.get("dma", a)
    assert ledger.entries() == [("dma", "Bo", 1)]


def test_gauges_remember_the_peak():
    gauges = Gauges()
    gauges.inc("bo", 3)
    gauges.dec("bo")
    gauges.inc("bo")
    gauges.dec("bo", 3)
    assert (gauges.now, gauges.peak) == ({"bo": 0}, {"bo": 3})
    with pytest.raises(ModelError) as caught:
        gauges.dec("bo")
    assert str(caught.value) == "gauge 'bo' falls to -1"


def test_kref_releases_once_and_is_in_the_ledger(kernel):
    released = []
    ref = Kref(kernel, "bo", lambda: released.append(True), holder="lru")
    ref.get("vm", 2)
    assert (ref.count, kernel.ledger.count("bo")) == (3, 3)
    assert not ref.put("vm", 2)
    assert ref.get_unless_zero("pin")
    assert not ref.put("pin")
    with pytest.raises(LedgerError) as caught:
        ref.put("vm")
    assert str(caught.value) == "ledger: 'vm' puts 1 'bo' and holds 0"
    assert ref.put("lru")
    assert released == [True]
    assert not ref.get_unless_zero()
    kernel.ledger.assert_empty()
    with pytest.raises(ModelError) as caught:
        ref.get()
    assert str(caught.value) == "kref 'bo': a reference is taken after the last was put"
    with pytest.raises(ModelError) as caught:
        ref.put()
    assert str(caught.value) == "kref 'bo': 1 put, 0 left"


def test_injection_counts_sites_and_fails_where_it_is_armed(kernel):
    assert not kernel.inject("alloc.folio")
    kernel.arm("alloc.folio", nth=2, times=2)
    assert [kernel.inject("alloc.folio") for _ in range(5)] == [False, True, True, False, False]
    assert not kernel.inject("dma.map")
    assert kernel.inject_sites == {"alloc.folio": 6, "dma.map": 1}
    assert kernel.injector.failed == ["alloc.folio"] * 2
    kernel.arm("never.reached")
    assert kernel.injector.armed == ["never.reached"]
    with pytest.raises(InputError) as caught:
        kernel.arm("dma.map", nth=0)
    assert str(caught.value) == "inject 'dma.map': nth and times count from 1, got nth=0 times=1"


def test_stats_and_tracer(kernel):
    kernel.stats.gpu_faults += 1
    with pytest.raises(AttributeError):
        kernel.stats.gpu_fault = 1
    kernel.charge("bind_base")
    kernel.tracer.emit("bind", 1, 2)
    assert kernel.tracer.events == [(100, "main", "bind", 1, 2)]

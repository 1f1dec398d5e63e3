"""Waiting for a folio lock."""


def test_a_folio_that_is_locked_anew_before_its_waiter_runs_still_wakes_it_in_the_end(lab):
    machine = lab()
    memory, kernel = machine.memory, machine.kernel
    pfn = memory.alloc_folio(0)
    memory.folio_lock(pfn)
    waiters = [kernel.spawn(memory.pages.folio_wait_locked, pfn, name=f"waiter{i}") for i in range(2)]
    kernel.settle()
    memory.folio_unlock(pfn)
    assert memory.folio_trylock(pfn)
    kernel.settle()
    assert not any(waiter.done for waiter in waiters)
    memory.folio_unlock(pfn)
    for waiter in waiters:
        waiter.join()
    memory.folio_put(pfn)

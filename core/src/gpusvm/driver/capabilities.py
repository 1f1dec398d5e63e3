"""Say what a driver can do, in sentences that a table and a test can both use."""

from attrs import fields, frozen

__all__ = ["Capabilities", "Capability", "no", "yes"]


@frozen
class Capability:
    """State whether a driver has one capability, and how (or why not) in one short sentence without a full stop."""

    supported: bool
    how: str

    def __bool__(self) -> bool:
        return self.supported

    def __str__(self) -> str:
        return self.how if self.supported else f"no: {self.how}"


def yes(how: str) -> Capability:
    """Declare a capability that the driver has."""
    return Capability(supported=True, how=how)


def no(why: str) -> Capability:
    """Declare a capability that the driver lacks."""
    return Capability(supported=False, how=why)


@frozen(kw_only=True)
class Capabilities:
    """Declare every capability; none has a default, so that a new one is a question put to every driver."""

    device_memory: Capability
    """Pages of the process can live in device memory: of which kind, in which unit."""
    migrate_on_fault: Capability
    """A GPU fault moves the memory to the device."""
    explicit_populate: Capability
    """The program can ask for migration (an ioctl, a bind operation); `populate=explicit` needs it."""
    atomics: Capability
    """GPU atomics work on process memory, and by which means."""
    eviction: Capability
    """Memory pressure on the device pushes allocations out."""
    runtime_pm: Capability
    """The driver takes runtime-PM references, and for how long."""
    multi_device_p2p: Capability
    """A GPU maps or copies pages that live on another one."""
    large_folios: Capability
    """Huge pages stay whole through migration and mapping."""
    prefetch: Capability
    """Memory is brought before it is touched."""
    mixed_units: Capability
    """One fault unit may map system and device pages side by side."""
    unplug: Capability
    """The device may go away while its pages are in use."""
    drm_gpusvm: Capability
    """What the GPU maps are ranges of drm_gpusvm, and the driver supplies its ops."""
    drm_pagemap: Capability
    """Device memory is filled and emptied by drm_pagemap, and the driver supplies the ops for that."""
    pagemap_cache: Capability
    """A drm_pagemap that nobody uses is kept in a drm_pagemap_cache, until memory is short."""

    def items(self) -> list[tuple[str, Capability]]:
        """Return (name, capability) in order of declaration."""
        return [(each.name, getattr(self, each.name)) for each in fields(Capabilities)]

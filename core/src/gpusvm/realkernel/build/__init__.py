"""Build what a real Linux needs to answer for itself: a small kernel, the devices' modules, an agent, an initramfs.

Everything comes from Debian packages, through the machine's own package sources, and lies in one folder, the *shop*:
packages as they were got, the kernel's source and objects, what was made of them, and a manifest with the hash of each.
A step is done once: what it was made from is noted, and a build that was stopped goes on where it was.
"""

from gpusvm.realkernel.build.building import BuildListener, Built, build, find_built
from gpusvm.realkernel.build.shop import default_shop

__all__ = ["BuildListener", "Built", "build", "default_shop", "find_built"]

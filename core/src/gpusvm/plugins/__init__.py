"""Find, validate and describe driver plugins; the only room that imports pluggy.

pluggy is for what happens once. A plugin's module marks ``gpusvm_drivers`` with `hookimpl`; what it returns is
checked here, and from then on drivers are plain typed objects. Nothing is loaded at import, and there is no global
manager: `load_drivers` returns a `Registry` value.
"""

from gpusvm.plugins.examining import examine
from gpusvm.plugins.hookspecs import hookimpl
from gpusvm.plugins.installed import Installed
from gpusvm.plugins.loading import Survey, load_drivers, survey_drivers
from gpusvm.plugins.problems import BrokenPluginError, BrokenPluginsError
from gpusvm.plugins.registry import LoadedDriver, Registry

__all__ = [
    "BrokenPluginError",
    "BrokenPluginsError",
    "Installed",
    "LoadedDriver",
    "Registry",
    "Survey",
    "examine",
    "hookimpl",
    "load_drivers",
    "survey_drivers",
]

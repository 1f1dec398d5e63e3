"""Find out what is asked: a driver's operations, the profile of its devices, the spec that the model answers with."""

from typing import Any

from attrs import frozen

from gpusvm.driver.operations import OperationProfile, OperationTarget
from gpusvm.driver.spec import DriverSpec, read_spec, split_spec
from gpusvm.errors import InputError, nearest
from gpusvm.plugins import Registry

__all__ = ["Asked", "ask_as", "ask_to_race", "target_of"]


@frozen(kw_only=True)
class Asked:
    """Hold a driver's operations, one of their profiles, and the driver's spec with what that profile needs."""

    target: OperationTarget
    profile: OperationProfile
    spec: DriverSpec

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.target.devices if self.profile.devices is None else self.profile.devices

    def header(self) -> dict[str, Any]:
        """Return what a recording says of it."""
        return {
            "schema": 1,
            "target": self.target.driver,
            "spec": self.spec.text,
            "profile": self.profile.name,
            "devices": self.devices,
            "module": self.profile.module,
            "parameters": list(self.profile.parameters),
        }


def target_of(name: str, registry: Registry) -> OperationTarget:
    """Return what a driver can be asked. InputError, with those that can, if its plugin offers no operations."""
    found = registry.find(name).operations
    if found is None:
        able = [driver.info.name for driver in registry.drivers if driver.operations is not None]
        raise InputError(
            f"driver {name} cannot execute recorded operations: its plugin has no hook gpusvm_operations"
            + (f"; those that can: {', '.join(able)}" if able else "")
        )
    return found


def ask_as(driver: str, profile: str | None, registry: Registry) -> Asked:
    """Read a spec string and the name of a profile (None: the first). What the profile needs is set unless the spec
    says otherwise. InputError for a driver without profiles, or an unknown one.
    """
    name, options = split_spec(driver)
    read_spec(driver, registry)
    target = target_of(name, registry)
    by_name = {each.name: each for each in target.profiles}
    if not by_name:
        raise InputError(f"driver {name} cannot be asked on a real kernel: its operations have no profile")
    chosen = next(iter(by_name)) if profile is None else profile
    if chosen not in by_name:
        raise InputError(f"--profile: unknown profile {chosen!r} of {name}; {nearest(chosen, by_name)}")
    found = by_name[chosen]
    return Asked(target=target, profile=found, spec=with_settings(name, options, found.settings, registry))


def ask_to_race(driver: str, profile: str | None, registry: Registry) -> Asked:
    """Do as `ask_as`, and set what makes the model small enough for every order, unless the spec says otherwise."""
    name, options = split_spec(driver)
    read_spec(driver, registry)
    small = with_settings(name, options, target_of(name, registry).race_settings, registry)
    return ask_as(small.text, profile, registry)


def with_settings(name: str, options: "dict[str, str]", settings: Any, registry: Registry) -> DriverSpec:
    """Return the spec of a driver with `options`, and with those of `settings` that they do not name."""
    missing = {key: value for key, value in settings.items() if key not in options}
    every = ",".join(f"{key}={value}" for key, value in {**options, **missing}.items())
    return read_spec(f"{name}:{every}" if every else name, registry)

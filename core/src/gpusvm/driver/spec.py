"""Read the spec strings that name a driver wherever one is named: ``NAME[:KEY=VALUE[,KEY=VALUE…]]``.

    xe    xe:chunk_sizes=64K+4K    nouveau:quirk.sticky_atomic=fixed    nouveau:populate=explicit

Keys are the driver's tunables, its quirks and the mm's as ``quirk.NAME``, ``populate``, and the driver's strategies,
for which a class of the user's own may stand: ``pm=mypackage:MyPolicy``. List values are joined
by ``+``, sizes take the suffixes K, M and G (powers of 1024). The normalised string has its keys sorted and its
values in their shortest form; a default that was not given is not in it, so two spellings of one driver are one
string.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import frozen

from gpusvm.driver.contract import DriverInfo
from gpusvm.driver.strategy import load_strategy
from gpusvm.driver.tunables import QUIRK_VARIANTS, Variant, all_fixed
from gpusvm.errors import InputError, nearest

__all__ = ["DriverSpec", "format_size", "parse_size", "read_spec", "split_spec"]

Populate = Literal["fault", "explicit"]
_POPULATE: tuple[Populate, ...] = ("fault", "explicit")
_SUFFIX = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")


@frozen(kw_only=True)
class DriverSpec:
    """Hold one spec string, read against the driver that it names.

    `text` is the normalised string. `tunables`, `quirks` and `mm_quirks` are instances of the classes of the driver
    and of the mm, complete with defaults, and `info` is the driver's as these settings make it. `populate` is
    "explicit" when the program asks for migration itself.
    """

    text: str
    info: DriverInfo
    tunables: Any
    quirks: Any
    mm_quirks: Any
    populate: Populate

    @property
    def name(self) -> str:
        """The driver's bare name."""
        return self.info.name


def split_spec(text: str, *, what: str = "driver spec") -> tuple[str, dict[str, str]]:
    """Split a spec string into its name and its options, without asking what they mean. InputError, which calls it
    `what`, if it is malformed.
    """
    name, colon, rest = text.partition(":")
    if not _NAME.match(name):
        raise InputError(f"{what} {text!r}: expected NAME[:KEY=VALUE[,KEY=VALUE…]], got the name {name!r}")
    options: dict[str, str] = {}
    if not colon:
        return name, options
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not (equals and key and value):
            raise InputError(f"{what} {text!r}: expected KEY=VALUE after the colon, got {part!r}")
        if key in options:
            raise InputError(f"{what} {text!r}: key {key!r} is given twice")
        options[key] = value
    return name, options


def read_spec(
    text: str,
    drivers: Mapping[str, DriverInfo],
    *,
    quirks: Variant = "as_written",
    mm_quirks: type[Any] | None = None,
) -> DriverSpec:
    """Read a spec string against the installed drivers.

    `quirks` is the variant of every quirk that the string does not name, the mm's (class `mm_quirks`, by default
    `gpusvm.mm.MmQuirks`) included; one without a second variant stays as written. InputError, in one line, for a
    malformed string, an unknown driver, key or value, and for a combination that cannot work, with the reason.
    """
    name, options = split_spec(text)
    if name not in drivers:
        raise InputError(f"driver spec {text!r}: unknown driver {name!r}; {nearest(name, sorted(drivers))}")
    info = drivers[name]
    if mm_quirks is None:
        from gpusvm.mm import MmQuirks

        mm_quirks = MmQuirks
    tunables: dict[str, Any] = {}
    given: dict[type[Any], dict[str, str]] = {info.quirks: {}, mm_quirks: {}}
    strategies: dict[str, type] = {}
    populate: Populate = "fault"
    shortest: dict[str, str] = {}
    tunable_fields = {each.name: each for each in attrs.fields(info.tunables)}
    quirk_owners = {
        f"quirk.{each.name}": (owner, each) for owner in (mm_quirks, info.quirks) for each in attrs.fields(owner)
    }
    for key, value in options.items():
        where = f"driver spec {text!r}: {key}"
        if key == "populate":
            populate = _read_populate(where, value, info)
            shortest[key] = value
        elif key in info.strategies and (key not in tunable_fields or ":" in value):
            strategies[key] = load_strategy(where, value, info.strategies[key])
            shortest[key] = value
        elif key in tunable_fields:
            tunables[key] = _read_value(where, value, tunable_fields[key])
            shortest[key] = _write_value(tunables[key], tunable_fields[key])
        elif key in quirk_owners:
            owner, declared = quirk_owners[key]
            given[owner][declared.name] = _read_choice(where, value, declared.metadata.get("choices", QUIRK_VARIANTS))
            shortest[key] = value
        else:
            valid = [*tunable_fields, *(key for key in info.strategies if key not in tunable_fields), "populate"]
            near = nearest(key, [*valid, *quirk_owners])
            if near.startswith("valid"):  # there are too many quirks to name them all
                near = f"valid: {', '.join(valid)}, quirk.NAME"
            raise InputError(f"driver spec {text!r}: unknown key {key!r} of driver {name}; {near}")
    built = info.tunables(**tunables)
    bases = {owner: all_fixed(owner()) if quirks == "fixed" else owner() for owner in given}
    chosen = {owner: attrs.evolve(bases[owner], **given[owner]) for owner in given}
    reasons = list(info.refuse(built, chosen[info.quirks]))
    if reasons:
        raise InputError(f"driver spec {text!r}: {'; '.join(reasons)}")
    normalised = ",".join(f"{key}={shortest[key]}" for key in sorted(shortest))
    return DriverSpec(
        text=f"{name}:{normalised}" if normalised else name,
        info=info.with_settings(info, built, chosen[info.quirks]).variant(**strategies),
        tunables=built,
        quirks=chosen[info.quirks],
        mm_quirks=chosen[mm_quirks],
        populate=populate,
    )


def parse_size(text: str) -> int:
    """Read a number of bytes with an optional suffix K, M or G; ValueError if it is none."""
    suffix = text[-1:].upper()
    digits = text[:-1] if suffix in {"K", "M", "G"} else text
    if not digits.isascii() or not digits.isdigit():
        msg = f"expected a size such as 64K, 2M or 4096, got {text!r}"
        raise ValueError(msg)
    return int(digits) * _SUFFIX[suffix if suffix in {"K", "M", "G"} else ""]


def format_size(size: int) -> str:
    """Write a number of bytes with the largest suffix that loses nothing."""
    for suffix in ("G", "M", "K"):
        if size and size % _SUFFIX[suffix] == 0:
            return f"{size // _SUFFIX[suffix]}{suffix}"
    return str(size)


def _read_populate(where: str, value: str, info: DriverInfo) -> Populate:
    if value == "explicit" and not info.capabilities.explicit_populate:
        raise InputError(
            f"{where}: driver {info.name} has no explicit populate: {info.capabilities.explicit_populate.how}"
        )
    return _read_choice(where, value, _POPULATE)  # type: ignore[return-value]  # one of _POPULATE


def _read_choice(where: str, value: str, choices: tuple[str, ...]) -> str:
    if value in choices:
        return value
    if choices == QUIRK_VARIANTS[:1] and value in QUIRK_VARIANTS:
        raise InputError(f"{where}: this quirk has no variant {value!r}, only 'as_written'")
    raise InputError(f"{where}: unknown value {value!r}; {nearest(value, choices)}")


def _read_value(where: str, value: str, declared: "attrs.Attribute[Any]") -> Any:
    """Turn the text into the type of the field's default, within its limits."""
    meta, default = declared.metadata, declared.default
    if isinstance(default, bool):
        if value not in {"on", "off"}:
            raise InputError(f"{where}: expected on or off, got {value!r}")
        return value == "on"
    if isinstance(default, str):
        return _read_choice(where, value, meta["choices"])
    if not isinstance(default, tuple):
        return _read_int(where, value, meta)
    if meta["choices"] is not None:
        return tuple(_read_choice(where, part, meta["choices"]) for part in value.split("+"))
    numbers = tuple(_read_int(where, part, meta) for part in value.split("+"))
    if meta["descending"] and any(a <= b for a, b in itertools.pairwise(numbers)):
        raise InputError(f"{where}: expected values that fall from left to right, got {value!r}")
    return numbers


def _read_int(where: str, value: str, meta: Mapping[str, Any]) -> int:
    sized = meta["unit"] == "bytes"
    try:
        number = parse_size(value) if sized else int(value)
    except ValueError as error:
        expected = str(error) if sized else f"expected a whole number ({meta['unit']}), got {value!r}"
        raise InputError(f"{where}: {expected}") from None
    write = format_size if sized else str
    if meta["minimum"] is not None and number < meta["minimum"]:
        raise InputError(f"{where}: expected at least {write(meta['minimum'])}, got {value!r}")
    if meta["maximum"] is not None and number > meta["maximum"]:
        raise InputError(f"{where}: expected at most {write(meta['maximum'])}, got {value!r}")
    if meta["power_of_two"] and (number <= 0 or number & (number - 1)):
        raise InputError(f"{where}: expected a power of two, got {value!r}")
    return number


def _write_value(value: Any, declared: "attrs.Attribute[Any]") -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    write = format_size if declared.metadata["unit"] == "bytes" else str
    return "+".join(write(each) for each in value) if isinstance(value, tuple) else write(value)

"""What a driver declares, and what it declares to lack: one check for each capability, on every driver.

Each uses the capability. Where it is declared it has to be there; where it is not, the use has to be refused, or to do
nothing, and nothing may break by it.
"""

from collections.abc import Callable

from gpusvm.conformance.suite import Lab, check
from gpusvm.conformance.suite.place import place
from gpusvm.conformance.uses import USES, Use
from gpusvm.kernel.duties import DUTIES
from gpusvm.plugins.examining import declaration


def _where(lab: Lab, name: str) -> str:
    found = declaration(lab.info, name)
    return "" if found is None else f" at {place(str(found.file), found.line)}"


def _make(name: str, use: Use) -> Callable[[Lab], None]:
    def test(lab: Lab) -> None:
        declared = getattr(lab.capabilities, name)
        there = use.try_(lab)
        seen = "there" if there else "not there"
        assert there == bool(declared) or not (declared or use.decisive), (
            f"{name}: it is {seen}, and declared as '{declared}'{_where(lab, name)}; see {DUTIES['capability'].see}"
        )

    test.__doc__ = (
        f"A driver that declares {name} has it: {use.sentence}; of one that does not, the use is refused or does "
        "nothing, and nothing breaks."
    )
    return check(f"capability.{name.replace('_', '-')}", since="1.0", ref=use.ref)(test)


globals().update({f"test_{name}": _make(name, use) for name, use in USES.items()})

"""Write down the rules that errors about a driver's code end with."""

from pathlib import Path

from gpusvm.kernel.duties import DUTIES

from generators.markdown import NOTICE

__all__ = ["page"]

HEAD = f"""\
# What a driver owes

{NOTICE}

An error that is about a driver's code ends with the op that core had called, the line of the driver's own file, one of
these rules, and its section here:

    ledger: not given back
      'pm' held by 'bo': 1
        1 taken in AcmeVram.populate_mm at gpusvm_acme/pm.py:30
      rule pm-put: every runtime-PM reference is put once, by the holder that took it
      see docs/reference/driver-rules.md#pm-put

`gpusvm drivers --check NAME` finds breaches that need no run (signature, capability, declaration, returned-value), all
at once. The others show on machines that name drivers' code: those of `gpusvm.testing.Bench` and of `gpusvm conform`.
Ops are in [the contract](driver-contract.md)."""


def page(root: Path) -> str:
    """Return docs/reference/driver-rules.md."""
    lines = [HEAD]
    for duty in DUTIES.values():
        rule = duty.text[0].upper() + duty.text[1:]
        lines += ["", f"## {duty.name}", "", f"{rule}.", "", f"- Whose: {duty.ops}."]
        lines += [f"- In Linux 7.3.4: {duty.kernel}.", f"- What to do: {duty.mend}"]
    return "\n".join(lines) + "\n"

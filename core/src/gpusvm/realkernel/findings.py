"""Hold what a comparison with a kernel found."""

from typing import Literal

from attrs import frozen

from gpusvm.realkernel.answers import Level
from gpusvm.realkernel.recordings import Pairs

__all__ = ["Finding", "Kind"]

Kind = Literal["difference", "hang", "crash", "unsteady"]


@frozen(kw_only=True)
class Finding:
    """Hold one sequence that does not end alike.

    `kind`: ``difference``, the answers of kernel and model differ, at `level`; ``hang``, an operation did not return in
    the kernel and does in the model; ``crash``, the kernel died; ``unsteady``, the kernel answered otherwise when asked
    again, in a process of its own after another boot if it hung or died. `serial` is the end of what a kernel said that
    hung or died. `pairs` are the operations, made as short as they could be, with the kernel's answers (none, for a
    crash); `got` is the model's last. `same_as`: the number of the sequence that died in the same place, which is not
    made short again.
    """

    kind: Kind
    sequence: int
    pairs: Pairs
    got: str = ""
    level: Level | None = None
    serial: str = ""
    same_as: int | None = None

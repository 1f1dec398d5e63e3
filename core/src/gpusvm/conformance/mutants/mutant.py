"""Say what a mutant is: a bug that Linux once had, and the guard whose removal brings it back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from inspect import getattr_static
from typing import Any, Final, Literal

from attrs import frozen

from gpusvm.errors import InputError, ModelError

__all__ = ["Mutant", "Swap", "gone", "instead", "never", "replaced"]

Grade = Literal["S", "A", "B"]
Scope = Literal["mm", "drm", "driver", "xe", "nouveau", "dmirror", "kfd"]

# Where something is replaced at this moment, and by which mutant.
_REPLACED: Final[dict[str, str]] = {}


@frozen
class Swap:
    """Replace one guard: `target` is ``module:attribute`` or ``module:Class.attribute``, as production code finds it.

    `by` is given the guard and returns the buggy form. A driver's module is imported when the mutant becomes active,
    not before: the bugs of a driver that is not installed are in the registry all the same.
    """

    target: str
    by: Callable[[Any], Any]

    def place(self) -> tuple[Any, str, Any]:
        """Find the guard: what holds it, under which name, and the guard itself. ModelError if it is not there."""
        module, _, path = self.target.partition(":")
        holder: Any = import_module(module)
        *outer, name = path.split(".")
        try:
            for part in outer:
                holder = getattr(holder, part)
            guard = getattr_static(holder, name) if not outer else holder.__dict__[name]
        except (AttributeError, KeyError):
            raise ModelError(f"there is no guard {self.target}: the mutant that removes it is out of date") from None
        return holder, name, guard


def instead(buggy: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the `Swap.by` of a buggy form that does not need the guard."""
    return lambda _: buggy


def gone(_guard: object) -> Callable[..., None]:
    """Be the `Swap.by` of a guard that does something: nothing is done."""
    return lambda *_: None


def never(_guard: object) -> Callable[..., bool]:
    """Be the `Swap.by` of a guard that answers yes or no: it is no."""
    return lambda *_: False


@contextmanager
def replaced(swaps: tuple[Swap, ...], *, by: str, of: str) -> Iterator[None]:
    """Have guards replaced inside the context, in the name of a mutant of a driver or a room. InputError where another
    has replaced one already, or the driver is not installed.
    """
    from gpusvm.explore.chunk import forget

    with ExitStack() as undo:
        undo.callback(forget)
        for swap in swaps:
            try:
                holder, name, guard = swap.place()
            except ModuleNotFoundError as error:
                raise InputError(f"mutant {by}: it is a bug of {of}, and {error.name} is not installed") from None
            other = _REPLACED.get(swap.target)
            if other is not None:
                raise InputError(f"mutant {by}: {swap.target} is replaced by {other} already")
            _REPLACED[swap.target] = by
            undo.callback(_REPLACED.pop, swap.target)
            undo.callback(setattr, holder, name, guard)
            setattr(holder, name, swap.by(guard))
        forget()
        yield


@frozen(kw_only=True)
class Mutant:
    """Be one bug of Linux that can be switched on.

    `where` is the kernel's file and function, `fix` the commit or version that mended it as far as it is known, and
    `evidence` how it is known: C the patch was read, T its title, V derived from versions of the source, R from
    memory. `importance` is S, A or B; `oracle` what it breaks; `drivers` which of those that ship run through the code
    (none: only code above core can). `needs_failure`: it takes an injected failure to show.
    """

    id: str
    title: str
    where: str
    fix: str
    evidence: str
    importance: Grade
    oracle: tuple[str, ...]
    scope: Scope
    drivers: tuple[str, ...]
    swaps: tuple[Swap, ...]
    needs_failure: bool = False

    def __reduce__(self) -> tuple[Callable[[str], "Mutant"], tuple[str]]:
        """Travel to another process by the id: what a swap puts in place cannot."""
        from gpusvm.conformance.mutants import load

        return load, (self.id,)

    @contextmanager
    def active(self) -> Iterator["Mutant"]:
        """Have the bug in every machine that boots or runs inside the context; outside of it nothing of it is left.

        Two mutants can be active at once unless they replace the same guard. InputError then, and where the driver
        whose bug it is is not installed.
        """
        with replaced(self.swaps, by=self.id, of=self.scope):
            yield self

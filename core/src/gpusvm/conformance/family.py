"""Make one check for each combination of what a rule is about, each under an id of its own."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

from gpusvm.conformance.suite import Lab, Profile, check
from gpusvm.errors import ModelError

__all__ = ["every", "family"]

_SIGNATURE = inspect.Signature([inspect.Parameter("lab", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Lab)])


def every(*, without: Iterable[tuple[str, ...]] = (), **words: Iterable[str]) -> list[dict[str, str]]:
    """Return all combinations of words, in order, `without` those that make no sense, which are given as tuples.

    ModelError for a tuple that is no combination.
    """
    left_out = set(without)
    found = []
    for combination in product(*words.values()):
        if combination in left_out:
            left_out.discard(combination)
        else:
            found.append(dict(zip(words, combination, strict=True)))
    if left_out:
        raise ModelError(f"family: there is no combination {min(left_out)}")
    return found


def family(
    id_: str,
    cases: Iterable[Mapping[str, str]],
    *,
    since: str,
    ref: str,
    profile: "Profile" = "core",
    requires: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], tuple[Callable[[Lab], None], ...]]:
    """Make a check of a function for each case, whose words are its parameters beside `lab`.

    ``{word}`` in the id and in the docstring stands for the case's word. The checks become members of the function's
    module, where pytest finds them; they take the place of the function. ModelError for two of one id.
    """

    def register(function: Callable[..., None]) -> tuple[Callable[[Lab], None], ...]:
        module = sys.modules[function.__module__]
        made = []
        for case in cases:
            one = _bound(function, case)
            if hasattr(module, one.__name__):
                raise ModelError(f"family {id_!r}: two of its checks are called {one.__name__}")
            made.append(check(id_.format(**case), since=since, ref=ref, profile=profile, requires=requires)(one))
            setattr(module, one.__name__, one)
        return tuple(made)

    return register


def _bound(function: Callable[..., None], case: Mapping[str, str]) -> Callable[[Lab], None]:
    def run(lab: Lab) -> None:
        function(lab, **case)

    words = "_".join(case.values()).replace("-", "_")
    bound: Any = run
    bound.__name__ = f"{function.__name__}_{words}"
    bound.__qualname__ = bound.__name__
    bound.__module__ = function.__module__
    bound.__doc__ = (inspect.getdoc(function) or "").format(**case)
    bound.__wrapped__ = function  # where it is defined
    bound.__signature__ = _SIGNATURE
    return run

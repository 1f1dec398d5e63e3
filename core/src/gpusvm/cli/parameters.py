"""Name the kinds of options that several commands have."""

from typing import Annotated, TypeAlias

from cyclopts import Parameter

__all__ = ["Flag", "Repeatable"]

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
Repeatable: TypeAlias = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]

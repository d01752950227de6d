"""What the checks of every contract share: how one says that a part does not do what it has to."""

from __future__ import annotations


class ContractError(AssertionError):
    """A part does not do what this project relies on."""


def expect(holds: object, what: str, saw: object) -> None:
    """Go on when it holds.

    Raises:
        ContractError: it does not; says what was expected, and what was seen.
    """
    if not holds:
        raise ContractError(f"expected: {what}; saw: {str(saw)[:500]}")

"""What a deployment is called that takes a failed rollback up again: X-again, then X-again-again."""

from __future__ import annotations

AGAIN = "-again"


def continued(deployment: str) -> tuple[str, ...]:
    """Return the name of a deployment and of all that it continues, itself first."""
    names = [deployment]
    while names[-1].endswith(AGAIN):
        names.append(names[-1].removesuffix(AGAIN))
    return tuple(names)

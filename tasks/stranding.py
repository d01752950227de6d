"""Whether the applications on a database can work with the schema that it is to have."""

from __future__ import annotations

from rules.change import SchemaChange
from rules.entries import Opened
from rules.schema_plan import refuse_stranding, serves_all
from tasks.fleet import running_releases


def refuse_to_strand(change: SchemaChange, opened: Opened, *, back: bool) -> None:
    """Refuse a schema, gone `back` to or forward, that an application cannot work with as it runs now.

    The applications are asked only where there is a release that it does not serve: one that cannot be
    reached must not stand in the way for nothing.

    Raises:
        InvalidRequestError: says which, and what to do first.
        CommandError, BalancerError: an application cannot be asked.
    """
    if not serves_all(change.serves, back=back):
        refuse_stranding(change.serves, running_releases(opened.users), back=back)

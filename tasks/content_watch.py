"""Whether content that was promoted can still be had: who holds it, and how full the nodes are."""

from __future__ import annotations

from collections.abc import Iterator

from rules.errors import DeployError
from rules.ipfs import ContentState, IpfsContent
from rules.journal import JournalView
from rules.plan import Plan
from tasks import kubo
from tasks.content_state import observe_content
from tasks.kubo import KuboError


def content_health(view: JournalView) -> tuple[dict[str, bool], str]:
    """Return whether what rows refer to since this deployment can be had, and in words what is short.

    It cannot where nodes answer and none of them holds it: the old content, which is still pinned, can. Nodes
    that are away, too few replicas and full nodes are warned of: going back would mend none of them. What
    only rows refer to that users have changed since is theirs.
    """
    content, plan = view.opened.content, view.plan
    if content is None or plan is None or plan.content is None:
        return {}, ""
    promised = plan.content_after.references
    try:
        state = observe_content(
            content,
            view.opened.changed_database,
            keys=tuple(sorted(promised)),
            cids={cid for cid in promised.values() if cid},
            deployment=view.opened.deployment,
        )
    except DeployError as error:
        return {}, f"who holds the content cannot be told: {error}"
    still = {cid for key, cid in state.references.items() if cid and cid == promised[key]}
    cids = tuple(sorted(still))
    is_there = all(any(cid in pinned for pinned in state.pinned.values()) for cid in cids)
    return {"content": is_there}, "; ".join(_shortages(content, plan, state, cids))


def _shortages(content: IpfsContent, plan: Plan, state: ContentState, cids: tuple[str, ...]) -> Iterator[str]:
    wanted = min(content.replicas, len(content.nodes))
    for cid in cids:
        held = sum(cid in pinned for pinned in state.pinned.values())
        if held < wanted:
            yield f"{cid} is pinned on {held} of the {wanted} nodes that are to hold it"
    for node in content.nodes:
        if node.name not in state.pinned:
            if node.name in plan.content_after.pinned:
                yield f"{node.name} does not answer"
            continue
        try:
            storage = kubo.storage(node)
        except KuboError as error:
            yield f"how full {node.name} is cannot be told: {error}"
            continue
        if storage.max_bytes and storage.used_bytes > content.max_used_ratio * storage.max_bytes:
            yield (
                f"{node.name} uses {storage.used_bytes:,} of {storage.max_bytes:,} bytes, more than "
                f"{content.max_used_ratio:.0%}"
            )

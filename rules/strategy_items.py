"""The strategies' checklists as data: what must be true before traffic or instances are moved."""

from __future__ import annotations

from typing import Literal

from rules.checklist import Item
from rules.environment import Stage

DEV, STAGING, CANARY, _ = Stage


def _item(name: str, title: str, *, blocks_from: Stage, remedy: str, attestable: bool = False) -> Item:
    """Rows that only plan and system can answer take nobody's word: there is nothing to read elsewhere."""
    return Item(
        id=name,
        title=title,
        section="strategy",
        blocks_from=blocks_from,
        remedy=remedy,
        attestable=attestable,
    )


_TWO_SIDES = "Declare the instances of two backends, and point the route to one of them; or use rolling."
_REHEARSED = "Plan it anew: a plan of this strategy begins with its rehearsal."
_WAY_BACK = "Plan it anew: every traffic step must name the recorded traffic as its way back."

BLUE_GREEN = (
    _item(
        "blue-green-two-sides",
        "There are two sides, and traffic goes to one of them",
        blocks_from=DEV,
        remedy=_TWO_SIDES,
    ),
    _item(
        "blue-green-idle-size",
        "The idle side is as large as the live one",
        blocks_from=CANARY,
        remedy="Bring up as many instances on the idle side, or use canary or rolling.",
    ),
    _item(
        "blue-green-idle-quiet",
        "The idle side gets no traffic",
        blocks_from=DEV,
        remedy="Finish or undo what sends it traffic first.",
    ),
    _item(
        "blue-green-idle-ready",
        "The idle side's servers are ready in the balancer",
        blocks_from=DEV,
        remedy="Bring them to ready (`set server <backend>/<server> state ready`).",
    ),
    _item(
        "blue-green-own-probes",
        "Each instance has an address and a probe of its own, and the live side answers",
        blocks_from=DEV,
        remedy="Give each instance its own server and probe URL, and bring the live side up.",
    ),
    _item(
        "blue-green-smoke-tests",
        "The new side is smoke tested before it gets traffic",
        blocks_from=CANARY,
        remedy="Declare smoke_tests or smoke_script in the Application block.",
    ),
    _item(
        "blue-green-switch-rehearsed",
        "Switch and switch back are rehearsed before anything is changed",
        blocks_from=DEV,
        remedy=_REHEARSED,
    ),
    _item(
        "blue-green-way-back",
        "The old side stays untouched, one switch leads back to it",
        blocks_from=DEV,
        remedy=_WAY_BACK,
    ),
)

CANARY_ITEMS = (
    _item(
        "canary-two-sides",
        "There are two sides, and traffic goes to one of them",
        blocks_from=DEV,
        remedy=_TWO_SIDES,
    ),
    _item(
        "canary-none-under-way",
        "Nobody else's canary is under way",
        blocks_from=DEV,
        remedy="Finish or undo it first.",
    ),
    _item(
        "canary-first-step",
        "The first step puts at most a quarter of the users at risk",
        blocks_from=CANARY,
        remedy="Begin steps_percent at 25 or below.",
    ),
    _item(
        "canary-steps-rise",
        "The steps rise to all users, each watched before the next",
        blocks_from=DEV,
        remedy="Give steps_percent that rise and end at 100.",
    ),
    _item(
        "canary-limits",
        "The limits for success and failure are declared and sound",
        blocks_from=CANARY,
        remedy="Set success_error_ratio below failure_error_ratio, and that to 0.10 at most, or attest why.",
        attestable=True,
    ),
    _item(
        "canary-traffic",
        "There is enough traffic to judge the smallest step in time",
        blocks_from=CANARY,
        remedy="Begin with a larger step, give watch.deadline_s more time, send requests of your own, or "
        "attest that they will be sent.",
        attestable=True,
    ),
    _item(
        "canary-stable-healthy",
        "The stable side is healthy, so that it can serve as control",
        blocks_from=DEV,
        remedy="Bring its instances up and to ready first.",
    ),
    _item(
        "canary-switch-rehearsed",
        "First step, switch and switch back are rehearsed before anything is changed",
        blocks_from=DEV,
        remedy=_REHEARSED,
    ),
    _item(
        "canary-way-back",
        "The stable side stays untouched, each step goes straight back to 0 %",
        blocks_from=DEV,
        remedy=_WAY_BACK,
    ),
)

ROLLING = (
    _item(
        "rolling-two-serve",
        "At least two instances serve users",
        blocks_from=STAGING,
        remedy="Add an instance, or use in_place and announce the interruption.",
    ),
    _item(
        "rolling-enough-left",
        "Enough instances are left to serve while a batch is out",
        blocks_from=STAGING,
        remedy="Lower batch_size and max_unavailable.",
    ),
    _item(
        "rolling-all-healthy",
        "All of them are healthy and take traffic now",
        blocks_from=DEV,
        remedy="Bring them up and to ready first: each batch leans on the others.",
    ),
    _item(
        "rolling-drain-and-rejoin",
        "Each instance is drained before and rejoined after, the first batch as the test of it",
        blocks_from=STAGING,
        remedy="Put the instances behind a balancer, and name it in the Application block.",
    ),
    _item(
        "rolling-observed",
        "Each batch is observed before the next",
        blocks_from=CANARY,
        remedy="Set observe_s above 0.",
    ),
    _item(
        "rolling-way-back",
        "Each batch's way back restores release and balancer state",
        blocks_from=DEV,
        remedy="Bring a release up on each instance first: without a recorded one there is no way back.",
    ),
)

#: The rows of each strategy; in place has none of its own.
STRATEGY_ITEMS: dict[Literal["in_place", "blue_green", "canary", "rolling"], tuple[Item, ...]] = {
    "in_place": (),
    "blue_green": BLUE_GREEN,
    "canary": CANARY_ITEMS,
    "rolling": ROLLING,
}

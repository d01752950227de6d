"""What the page of a dry run shows as blocking is what the exit code tells."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from rules.checklist import Waiver, judge
from rules.environment import Stage
from rules.finding import Finding
from rules.items import GUIDE
from rules.record import checklist_page
from triggers.cli_page import blocking_rows, print_page

ALL_WAIVED = [Waiver(item=item.id, by="Ada", reason="not | today") for item in GUIDE]
TELLS_LATER = Finding.unknown("a dry run tells nobody; the deployment will.")


def page(*, waived: list[Waiver], told: Finding = TELLS_LATER) -> str:
    return checklist_page(judge(GUIDE, {"team-notified": told}, stage=Stage.PRODUCTION, waivers=waived))


def test_each_row_that_blocks_is_found_on_the_page_and_no_other() -> None:
    report = judge(GUIDE, {"coverage": Finding.failed("71 | %")}, stage=Stage.PRODUCTION)
    assert len(report.blocking) > 3
    assert blocking_rows(checklist_page(report)) == tuple(sorted(check.id for check in report.blocking))
    assert blocking_rows(page(waived=ALL_WAIVED)) == ()


def test_what_only_the_deployment_itself_tells_the_team_blocks_no_dry_run() -> None:
    others = [waiver for waiver in ALL_WAIVED if waiver.item != "team-notified"]
    assert "# Checklist: blocked" in page(waived=others)
    assert blocking_rows(page(waived=others)) == ()
    nobody = Finding.unknown("the environment names nobody to tell.")
    assert blocking_rows(page(waived=others, told=nobody)) == ("team-notified",)


def test_a_release_is_blocked_where_one_of_its_components_is() -> None:
    both = f"{page(waived=ALL_WAIVED)}\n\n{page(waived=ALL_WAIVED[1:])}"
    assert blocking_rows(both) == (ALL_WAIVED[0].item,)


def test_a_page_is_no_command_to_a_terminal() -> None:
    shown = StringIO()
    print_page(Console(file=shown, width=80), "# a\x1b[2J\n\n    x = 1", is_drawn=False)
    assert shown.getvalue() == "# a\n\n    x = 1\n"

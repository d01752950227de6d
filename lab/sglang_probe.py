"""What this project relies on in an SGLang server, as named checks: `python -m lab.sglang_probe URL …`.

The tests run the same list against the simulator and against the real server, so that neither the simulator
nor what we know of SGLang can drift. The server must have been started on a model that `lab.model` made with
the first seed, and not given a served name. Each check leaves it as it found it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx

import lab.sglang_checks
import lab.sglang_swap_checks  # noqa: F401 - both fill the list
from lab.contract import ContractError
from lab.sglang_contract import CHECKS, Contract


def main() -> int:
    """Check a running server and return how many checks it fails."""
    arguments = argparse.ArgumentParser(prog="python -m lab.sglang_probe", description=__doc__)
    arguments.add_argument("url", help="of the server, without a path")
    arguments.add_argument("--model", type=Path, required=True, help="the path that it was started on")
    arguments.add_argument("--version", default="default", help="the weight version that it was started with")
    arguments.add_argument("--admin-key-file", type=Path, help="with the key that its admin routes want")
    arguments.add_argument(
        "--only", action="append", choices=sorted(CHECKS), help="this check; again for more"
    )
    given = arguments.parse_args()
    key = given.admin_key_file.read_text().strip() if given.admin_key_file else ""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        server = Contract(given.url, given.model, given.version, Path(scratch), key)
        for name in given.only or CHECKS:
            began, fault = time.monotonic(), ""
            try:
                CHECKS[name](server)
            except (ContractError, httpx.HTTPError, LookupError) as error:
                fault, failed = f"\n      {error!r}", failed + 1
            words = name.replace("_", " ")
            print(
                f"{'fail' if fault else 'ok':4}  {time.monotonic() - began:5.1f} s  {words}{fault}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())

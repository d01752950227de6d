"""A deployment to be killed: `python -m tests.tasks.guarding_deployer INSTANCE BACK SYSTEM READY`.

It arms the guard, activates the system, is heard from for a while, and is then at something else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rules.fleet import Instance
from rules.nixos_actions import RestoreSystem
from tasks.host import run
from tasks.nixos_guard import extend_guard
from tests.tasks.guarding import DEPLOYMENT, arm

_GUARD_S = 20.0


def deploy(instance: Instance, back: RestoreSystem, system: str) -> None:
    arm(instance, back, guard_s=_GUARD_S)
    places = instance.nixos_host.places
    run(instance.host, (f"{places.programs}/nix-env", "--profile", places.profile, "--set", system))
    run(instance.host, (f"{system}/bin/switch-to-configuration", "switch"))
    # more often than systemd starts a unit by default
    for _ in range(8):
        extend_guard(instance, deployment=DEPLOYMENT)


if __name__ == "__main__":
    given, recorded, built, ready = sys.argv[1:]
    deploy(Instance.model_validate_json(given), RestoreSystem.model_validate_json(recorded), built)
    Path(ready).touch()
    time.sleep(600)

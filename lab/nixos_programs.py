"""The programs of one of the lab's NixOS hosts: product code calls them by their whole path."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from lab.identity import MARK
from lab.processes import LabError

#: Where the lab's modules are imported from.
SOURCES = str(Path(__file__).resolve().parent.parent)
#: What a reboot does in a container.
REBOOT_NOW = "reboot-now"

_NIX = (
    *("nix", "nix-build", "nix-channel", "nix-env", "nix-hash", "nix-instantiate", "nix-shell"),
    *("nix-store", "nix-collect-garbage"),
)
_COLLECTORS = ("nix-store", "nix-collect-garbage")

# A host that is down does nothing. Each program sees the host's places, as root does on a NixOS.
_HEAD = """\
#!/bin/sh
[ ! -e {root}/down ] || {{ echo "the host is down" >&2; exit 255; }}
{exports}
"""
# What the other hosts' profiles and roots keep is kept here, too: they share the store.
_BEFORE_COLLECTING = """\
case " $* " in *" --gc "* | *" --print-roots "* | *" --delete "* | *" -d "*)
  PATH=/usr/bin:/bin
  rm -rf {root}/var/nix/gcroots/others
  mkdir -p {root}/var/nix/gcroots/others
  number=0
  for link in {hosts}/*/var/nix/profiles/*-link {hosts}/*/var/nix/profiles/per-user/*/*-link \\
    {hosts}/*/var/nix/gcroots/auto/* {hosts}/*/run/*-system; do
    target="$(readlink -e "$link")" || continue
    number=$((number + 1))
    ln -s "$target" {root}/var/nix/gcroots/others/$number
  done ;;
esac
"""
_NETWORK = """\
#!/bin/sh
case "$1" in
  down) : >{root}/cut ;;
  up) rm -f {root}/cut ;;
esac
"""
# Who comes by ssh is let in while the host can be reached. 255 is what ssh says when it cannot.
_GATE = """\
#!/bin/sh
lost() {{ [ -e {root}/down ] || [ -e {root}/cut ]; }}
! lost || exit 255
/bin/sh -c "$SSH_ORIGINAL_COMMAND"
code=$?
! lost || exit 255
exit $code
"""
# Stopped first and killed then, so that no session says anything more, as when the line is cut. By a unit of
# its own: who asks may be one of those who are killed.
_CONTAINER_NETWORK = """\
#!/bin/sh
PATH=/usr/bin:/bin
case "$1" in
  down)
    : >{root}/cut
    exec systemd-run --quiet --collect --wait {programs}/network now ;;
  now)
    systemctl kill --signal=STOP lab-sshd.service
    systemctl kill --signal=KILL lab-sshd.service
    systemctl stop lab-sshd.service
    systemctl reset-failed lab-sshd.service ;;
  up) rm -f {root}/cut; exec systemctl start lab-sshd.service ;;
esac
exit 0
"""
_BEFORE_REBOOT = """\
for word in "$@"; do
  [ "$word" != reboot ] || exec /usr/bin/systemd-run --quiet --collect --unit=lab-reboot {programs}/reboot-now
done
"""
# The container goes on; what a reboot takes from a host is taken, and the guard's timers begin anew.
_REBOOT_NOW = """\
#!/bin/sh
PATH=/usr/bin:/bin
sleep 0.05
: >{root}/down
{programs}/network now
systemctl stop 'sovereign-*'
sleep 0.3
system="${{1:-$(readlink -f {root}/boot-default)}}"
[ -e "$system/init-interface-version" ] && [ ! -s "$system/lab/breaks_boot" ] || exit 1
for unit in {root}/run/failing/*; do
  [ ! -e "$unit" ] || rm -f "/run/systemd/system/${{unit##*/}}"
done
rm -rf {root}/run {root}/cut
mkdir -p {root}/run/failing
ln -s "$system" {root}/run/booted-system
ln -s "$system" {root}/run/current-system
systemctl reset-failed
for unit in $(cat "$system/lab/failing_units"); do
  : >{root}/run/failing/$unit
  printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' >"/run/systemd/system/$unit"
done
systemctl daemon-reload
for unit in $(ls {root}/run/failing); do systemctl start "$unit" 2>/dev/null; done
for link in {root}/guard-units/timers.target.wants/*; do
  [ ! -e "$link" ] || systemctl start "${{link##*/}}"
done
rm -f {root}/down
if [ -s "$system/lab/cuts_network" ]; then {programs}/network down; else {programs}/network up; fi
"""


def write_programs(
    root: Path, environment: Mapping[str, str], *, directory: Path, in_container: bool
) -> None:
    """Write a host's programs.

    Args:
        root: the host's directory.
        environment: what makes Nix's commands the host's.
        directory: the lab's.
        in_container: its systemd is a real one, in a container that has the same files.

    Raises:
        LabError: there is no Nix.
    """
    programs = root / "programs"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    places = {"root": root, "hosts": directory / "hosts", "programs": programs}
    words = {"exports": exports, **{name: shlex.quote(str(place)) for name, place in places.items()}}
    for name in _NIX:
        found = shutil.which(name)
        if found is None:
            raise LabError(f"no {name}: install the Debian package nix-bin")
        before = _BEFORE_COLLECTING if name in _COLLECTORS else ""
        _write(programs / name, _HEAD + before + _becoming(found), words)
    ours = f"export {MARK}={shlex.quote(str(directory))}\nexport PYTHONPATH={shlex.quote(SOURCES)}\n"
    stand_in = f"{shlex.quote(sys.executable)} -S -m lab."
    _write(programs / "nixos-rebuild", _HEAD + ours + _becoming(f"{stand_in}nixos_rebuild {{root}}"), words)
    for name in ("systemctl", "systemd-run"):
        if in_container:
            before = _BEFORE_REBOOT if name == "systemctl" else ""
            _write(programs / name, _HEAD + before + _becoming(f"/usr/bin/{name}"), words)
        else:
            becoming = _becoming(f"{stand_in}nixos_systemd {{root}} {name}")
            _write(programs / name, _HEAD + ours + becoming, words)
    _write(programs / "network", _CONTAINER_NETWORK if in_container else _NETWORK, words)
    _write(
        programs / REBOOT_NOW if in_container else root / "gate",
        _REBOOT_NOW if in_container else _GATE,
        words,
    )


def _becoming(program: str) -> str:
    return f'exec {program} "$@"\n'


def _write(place: Path, text: str, words: Mapping[str, str]) -> None:
    place.write_text(text.format(**words))
    place.chmod(0o755)

"""The guard on a NixOS host: it takes itself back when the deployment is not heard of again in time.

The worker can be killed, the network cut by the new system's own configuration, the host rebooted: then
nobody but the host itself can act. So a timer is armed there before anything is activated, and each step
that reaches the host begins its time anew. What it does is what `RestoreSystem` names: absolute, and right
when it is done twice.

Why unit files in /etc/systemd/system.control: systemd reads units there, and the links of `*.wants`, before
all other directories (systemd.unit(5)); `systemctl set-property` keeps there what is to survive a reboot. On
NixOS /etc/systemd/system itself is a link into the store; a switch compares the units there, and so neither
stops nor removes what lies beside it. A transient `systemd-run --on-active` survives a switch too, but no
reboot.

A `daemon-reload`, which each switch does, begins the timer's time anew as well: systemd 252 then counts
OnActiveSec= from the reload. So the host can be later than `guard_s` by the time until its last reload.
"""

from __future__ import annotations

from rules.errors import CommandError, StepFailedError, WorldMovedError
from rules.fleet import Instance
from rules.nixos_actions import ArmGuard, RestoreSystem
from rules.nixos_guard import Guard
from rules.systemd_timer import PROPERTIES, TimerSeen, timer_seen
from tasks import host as hosts
from tasks.nixos_reading import read_links

_EARLY_S, _LATE_S = 2.0, 30.0  # late: somebody reloaded systemd meanwhile
_FIRED, _ANOTHERS, _RESTORING = 10, 11, 75

# $1 the script's directory, $2 the units' directory, $3 name, $4 systemctl; then script, service and timer.
# All is written beside its place first: a directory that cannot be written changes nothing. The link comes
# last: without it no boot starts the timer. Whatever fails, nothing of it is left.
_ARM = """\
set -eu
here=$1 units=$2 name=$3 systemctl=$4
[ ! -e "$here/fired" ] || exit 10
for other in "$units"/sovereign-guard-*.timer; do
  if [ -e "$other" ] && [ "$other" != "$units/$name.timer" ]; then echo "$other"; exit 11; fi
done
armed=
remove() {
  rm -f -- "$units/.$name.timer.new" "$units/.$name.service.new"
  [ -z "$armed" ] || return 0
  [ ! -e "$units/$name.timer" ] || "$systemctl" stop "$name.timer" || :
  rm -f -- "$units/timers.target.wants/$name.timer" "$units/$name.timer" "$units/$name.service"
  rm -rf -- "$here"
  rmdir --ignore-fail-on-non-empty -- "$units/timers.target.wants" "${here%/*}" 2>/dev/null || :
  "$systemctl" daemon-reload || :
}
trap remove EXIT
written() { printf %s "$2" >"$1" && sync -- "$1"; }
mkdir -p -- "$units/timers.target.wants"
written "$units/.$name.service.new" "$6"
written "$units/.$name.timer.new" "$7"
(umask 077; mkdir -p -- "$here")
for mark in armed lock log; do : >>"$here/$mark"; done
[ -e "$here/reboots-1" ] || [ -e "$here/reboots-2" ] || : >"$here/reboots-0"
written "$here/.restore.sh.new" "$5"
mv -T -- "$here/.restore.sh.new" "$here/restore.sh"
mv -T -- "$units/.$name.service.new" "$units/$name.service"
mv -T -- "$units/.$name.timer.new" "$units/$name.timer"
ln -sfn -- "../$name.timer" "$units/timers.target.wants/$name.timer"
sync -- "$here" "$units" "$units/timers.target.wants"
"$systemctl" daemon-reload
"$systemctl" restart "$name.timer"
armed=yes
"""
# It is asked after the restart: a timer that elapsed just before it has started its service by then.
_EXTEND = """\
set -eu
here=$1 units=$2 name=$3 systemctl=$4
[ ! -e "$here/fired" ] || exit 10
[ -e "$units/$name.timer" ] || exit 0
"$systemctl" restart "$name.timer"
shift 4
"$systemctl" show "$@" "$name.service"
echo
"$systemctl" show "$@" "$name.timer"
[ ! -e "$here/fired" ] || exit 10
"""
# The script holds the lock while it restores. With it the service may be stopped: it is between two tries.
_DISARM = """\
set -eu
here=$1 units=$2 name=$3 systemctl=$4 wait_s=$5
if [ -e "$here/lock" ]; then
  exec 9<"$here/lock"
  flock -w "$wait_s" 9 || exit 75
fi
if [ -e "$units/$name.timer" ] || [ -e "$units/$name.service" ]; then
  "$systemctl" stop "$name.timer" "$name.service" || :
fi
rm -f -- "$units/timers.target.wants/$name.timer" "$units/$name.timer" "$units/$name.service" \
  "$units/.$name.timer.new" "$units/.$name.service.new"
[ ! -d "$units/timers.target.wants" ] || rmdir --ignore-fail-on-non-empty -- "$units/timers.target.wants"
[ ! -d "$units" ] || sync -- "$units"
"$systemctl" daemon-reload
"$systemctl" reset-failed "$name.timer" "$name.service" 2>/dev/null || :
if [ -e "$here/fired" ]; then
  rm -f -- "$here/restore.sh" "$here/armed" "$here/lock" "$here"/reboots-?
else
  rm -rf -- "$here"
fi
[ ! -d "${here%/*}" ] || rmdir --ignore-fail-on-non-empty -- "${here%/*}"
shift 5
"$systemctl" show "$@" "$name.service"
echo
"$systemctl" show "$@" "$name.timer"
"""


class GuardError(StepFailedError):
    """The guard cannot be had as it must be."""


class GuardFiredError(GuardError):
    """The host has taken itself back, or is doing so; the deployment must not go on there."""


def arm_guard(instance: Instance, action: ArmGuard, *, deployment: str) -> None:
    """Have the host take itself back `action.guard_s` from now; armed already, its time begins anew.

    Raises:
        WorldMovedError: the host is not what it would be taken back to; nothing was done.
        GuardFiredError: it was armed before and has fired.
        GuardError: it could not be armed, and nothing of it is left; or another deployment's is armed.
    """
    _refuse_moved(instance, action.back)
    guard = _guard(instance, deployment)
    shell = _shell(instance, action)
    texts = (
        guard.script_text(action.back, shell),
        guard.service_text(shell),
        guard.timer_text(action.guard_s),
    )
    finished = hosts.run(instance.host, ("sh", "-c", _ARM, "arm-guard", *_where(guard), *texts), check=False)
    if finished.returncode == _FIRED:
        raise _fired(instance, guard)
    if finished.returncode == _ANOTHERS:
        raise GuardError(
            f"{instance.name}: the guard of another deployment is armed there, {finished.stdout.strip()}. "
            f"Nothing was changed. Take that deployment back or to its end. If it is long over, stop that "
            f"timer on the host, remove it, its service and its link in timers.target.wants, and deploy "
            f"again."
        )
    if finished.returncode:
        raise GuardError(
            f"{instance.name}: no guard could be armed in {guard.places.guard_units}, and nothing of it is "
            f"left: {finished.output[-1000:].strip()}. No system was activated. See that root can write "
            f"there and that systemd reads it (systemctl show --property=UnitPath), or name another "
            f"directory in the block of the hosts."
        )
    _prove(instance, guard, action)


def _refuse_moved(instance: Instance, back: RestoreSystem) -> None:
    """See that the way back is still one: the hosts before this one may have taken hours."""
    links = read_links(instance)
    if (links.profile, links.running) != (back.release, back.running):
        raise WorldMovedError(
            f"{instance.name} is not what the plan was made for: {back.running} ran, and {back.release} was "
            f"what boots. {links.in_words} Somebody else changed it meanwhile, and this deployment did "
            "nothing to its system. Deploy again once they have finished."
        )


def extend_guard(instance: Instance, *, deployment: str) -> None:
    """Have an armed guard's time begin anew; where none is armed nothing happens.

    Raises:
        GuardFiredError: it has fired.
        GuardError: it is armed, and its timer does not run.
        CommandError: the host could not be asked.
    """
    guard = _guard(instance, deployment)
    argv = ("sh", "-c", _EXTEND, "extend-guard", *_where(guard), *_PROPERTIES)
    finished = hosts.run(instance.host, argv, check=False)
    if finished.returncode == _FIRED:
        raise _fired(instance, guard)
    if finished.returncode:
        raise CommandError(argv, instance.host.name, finished.returncode, finished.output)
    if not finished.stdout:
        return
    service, timer = _seen(finished.stdout)
    if service.active != "inactive":
        raise _fired(instance, guard)
    if not timer.waits:
        raise GuardError(
            f"{instance.name}: {guard.timer} does not run any more: {timer.in_words}. The host would not "
            f"take itself back now, so the deployment does not go on: the worker takes it back."
        )


def disarm_guard(instance: Instance, *, deployment: str) -> None:
    """Stop the host's timer and remove all of it; there was none, or it has fired: that is fine.

    While it restores, that is waited for. Of one that has fired the marker and the log stay, as evidence:
    after this call `guard_fired` tells for good whether it did.

    Raises:
        GuardError: it goes on restoring, or systemd still has it.
        CommandError: the host could not be asked.
    """
    guard = _guard(instance, deployment)
    wait_s = instance.nixos_host.activate_s
    argv = ("sh", "-c", _DISARM, "disarm-guard", *_where(guard), str(round(wait_s) + 1), *_PROPERTIES)
    finished = hosts.run(instance.host, argv, timeout_s=wait_s + 60, check=False)
    if finished.returncode == _RESTORING:
        raise GuardError(
            f"{instance.name}: its guard has been restoring the recorded system for more than {wait_s:g} s. "
            f"Its log is {guard.directory}/log there. Wait until {guard.service} has ended, then roll back "
            f"again."
        )
    if finished.returncode:
        raise CommandError(argv, instance.host.name, finished.returncode, finished.output)
    left = [unit for unit in _seen(finished.stdout) if unit.active != "inactive"]
    if left:
        raise GuardError(
            f"{instance.name}: systemd still has {guard.name}: {', '.join(unit.in_words for unit in left)}. "
            f"Its files are gone. Stop its timer and service there by hand."
        )


def guard_fired(instance: Instance, *, deployment: str) -> bool:
    """Return whether the host has begun to take itself back.

    Raises:
        CommandError: the host could not be asked.
    """
    return hosts.exists(instance.host, fired_marker(instance, deployment=deployment))


def fired_marker(instance: Instance, *, deployment: str) -> str:
    """Return the path of the file that a guard leaves on its host before it takes that back."""
    return _guard(instance, deployment).fired


def _prove(instance: Instance, guard: Guard, action: ArmGuard) -> None:
    """See that the timer waits, and that it elapses when it should: another file could have overruled it."""
    argv = (guard.places.program("systemctl"), "show", *_PROPERTIES, guard.timer)
    timer = timer_seen(hosts.run(instance.host, argv).stdout)
    if timer.waits and timer.total_s and -_EARLY_S <= timer.total_s - action.guard_s <= _LATE_S:
        return
    disarm_guard(instance, deployment=guard.deployment)
    raise GuardError(
        f"{instance.name}: {guard.timer} was started and is not as it must be: {timer.in_words}, wanted "
        f"{action.guard_s:g} s. It was removed and no system was activated. Look for drop-in files of that "
        f"name on the host."
    )


def _seen(shown: str) -> tuple[TimerSeen, TimerSeen]:
    """Return what is said of the service, and of the timer."""
    service, _, timer = shown.partition("\n\n")
    return timer_seen(service), timer_seen(timer)


def _shell(instance: Instance, action: ArmGuard) -> str:
    """Return the recorded system's own shell: /bin/sh is the new one's as soon as that is active."""
    shell = f"{action.back.running}/sw/bin/sh"
    return shell if hosts.exists(instance.host, shell) else "/bin/sh"


def _guard(instance: Instance, deployment: str) -> Guard:
    return Guard(deployment=deployment, places=instance.nixos_host.places)


def _where(guard: Guard) -> tuple[str, str, str, str]:
    return guard.directory, guard.places.guard_units, guard.name, guard.places.program("systemctl")


def _fired(instance: Instance, guard: Guard) -> GuardFiredError:
    return GuardFiredError(
        f"{instance.name} has not heard of this deployment in time: its guard has fired and takes it back to "
        f"what it had before, if that is not done already. Its log is {guard.directory}/log there. Look for "
        f"what kept the worker away, or give the host more time (guard_s), then deploy again."
    )


_PROPERTIES = tuple(f"--property={name}" for name in PROPERTIES)

"""The guard of a NixOS host as texts: a timer, its service, and the script that takes the host back."""

from __future__ import annotations

import shlex

from rules.frozen import AbsolutePath, Frozen, Name, PositiveSeconds
from rules.nixos import NixosPlaces
from rules.nixos_actions import RestoreSystem

#: What the script exits with when trying again would not help; systemd then leaves the service failed.
GAVE_UP = 3
_RETRY_S = 5

# No limit of starts: it is started anew whenever the deployment is heard of, and the limit's default is 5 in
# 10 s, after which systemd would leave it failed.
_TIMER = """\
[Unit]
Description=Take this host back unless {deployment} is heard of again
StartLimitIntervalSec=0

[Timer]
OnActiveSec={guard_s}
AccuracySec=1s
"""
# A failed try must not be the last one, and no limit of time may end one in the middle.
_SERVICE = """\
[Unit]
Description=Take this host back to the system it had before {deployment}
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart={shell} {script}
TimeoutStartSec=infinity
Restart=on-failure
RestartSec={retry_s}s
RestartPreventExitStatus={gave_up}
"""

# Nothing here may need free disk space: a full disk can be what the new system did. So what must be
# remembered is remembered by a rename, and what a program says goes to a file system in memory.
# What switch-to-configuration says goes to a file, no pipe: a daemon it left behind would hold that open.
_SCRIPT = r"""
set -u
umask 077
cd /

say() {
  line="$(date -u +%FT%TZ) $*"
  echo "$line"
  { echo "$line" >>"$here/log"; } 2>/dev/null || :
}

recorded_generation() {
  link=$profile-$generation-link
  # its link may be gone, or its number used again: then what it held is made a generation anew
  if [ "$(readlink -f -- "$link")" = "$release" ]; then
    nix-env -p "$profile" --switch-generation "$generation"
  else
    nix-env -p "$profile" --set "$release"
  fi
}

# Returns 0: it ran, the links tell the rest; 1: to be tried again; 2: nothing but a reboot brings it.
activate() {
  said=$runtime/$name.output
  { mkdir -p -- "$runtime" && : >"$said"; } 2>/dev/null || said=/dev/null
  "$1/bin/switch-to-configuration" "$2" </dev/null >"$said" 2>&1
  code=$?
  say "$1/bin/switch-to-configuration $2 exited $code"
  cat -- "$said"
  { tail -c 16384 -- "$said" >>"$here/log"; } 2>/dev/null || :
  way=1
  case $code in
    0 | 2 | 3 | 4) way=0 ;;
    100) way=2 ;;
    *)
      ! grep -q "Pre-switch checks failed" <"$said" || way=2
      # said after the new system has become the active one
      ! grep -q "systemd daemon reload failed" <"$said" || way=0
      ;;
  esac
  [ "$said" = /dev/null ] || rm -f -- "$said"
  return $way
}

activate_recorded() {
  if [ "$running" = "$release" ]; then
    activate "$release" switch
  else
    activate "$release" boot && activate "$running" test
  fi
}

is_recorded() {
  [ "$(readlink -f -- "$profile")" = "$release" ] && [ "$(readlink -f -- "$current")" = "$running" ]
}

same_kernel() {
  for part in kernel initrd kernel-modules; do
    [ "$(readlink -e -- "$1/$part")" = "$(readlink -e -- "$2/$part")" ] || return 1
  done
}

# The recorded generation's own is as good: no reboot brings another.
runs_recorded_kernel() {
  [ -n "$booted_before" ] && [ -e "$booted/kernel" ] && [ -e "$booted_before/kernel" ] || return 0
  same_kernel "$booted" "$booted_before" || same_kernel "$booted" "$release"
}

reboot_host() {
  if mv -T -- "$here/reboots-0" "$here/reboots-1" 2>/dev/null ||
    mv -T -- "$here/reboots-1" "$here/reboots-2" 2>/dev/null; then
    sync -- "$here"
    say "rebooting into what was recorded; the timer begins anew with the boot"
    systemctl reboot
    exit 1
  fi
  say "GAVE UP: two reboots did not bring back what was booted before: $booted_before"
  exit "$GAVE_UP"
}

remove_guard() {
  systemctl stop "$name.timer"
  rm -f -- "$units/timers.target.wants/$name.timer" "$units/$name.timer" "$units/$name.service"
  rmdir --ignore-fail-on-non-empty -- "$units/timers.target.wants"
  sync -- "$units"
  systemctl daemon-reload
  rm -f -- "$here/restore.sh" "$here/lock" "$here/reboots-0" "$here/reboots-1" "$here/reboots-2"
}

main() {
  [ -e "$here/armed" ] || [ -e "$here/fired" ] || exit 0
  # whoever reads the marker must find it also when this is all that happens
  if [ -e "$here/armed" ]; then
    mv -T -- "$here/armed" "$here/fired"
    sync -- "$here"
  fi
  [ "$(stat -c %s -- "$here/log")" -le 1048576 ] || : >"$here/log"
  say "not heard of $deployment in time: back to generation $generation, $release, with $running active"
  recorded_generation || exit 1
  activate_recorded
  case $? in
    0) ;;
    2)
      activate "$release" boot || exit 1
      # refused as well when there is nothing to change any more, as after the reboot for it
      is_recorded || reboot_host
      ;;
    *) exit 1 ;;
  esac
  if ! is_recorded; then
    say "not as recorded yet: $(readlink -f -- "$profile"), $(readlink -f -- "$current") active"
    exit 1
  fi
  runs_recorded_kernel || reboot_host
  say "as recorded: done"
  remove_guard
  exit 0
}

# the lock is flock's own: no daemon that is left behind inherits it. Who disarms the guard holds it.
[ "${1-}" = locked ] || exec flock -o "$here/lock" "$shell" "$here/restore.sh" locked
main
"""


class Guard(Frozen):
    """What is put on a host: where, and for which deployment."""

    deployment: Name
    places: NixosPlaces

    @property
    def name(self) -> str:
        """The name that its timer and service share."""
        return f"sovereign-guard-{self.deployment}"

    @property
    def timer(self) -> str:
        """The timer's unit."""
        return f"{self.name}.timer"

    @property
    def service(self) -> str:
        """The service's unit."""
        return f"{self.name}.service"

    @property
    def directory(self) -> AbsolutePath:
        """Where its script, its markers and its log are, for root alone."""
        return f"{self.places.state}/guard/{self.deployment}"

    @property
    def script(self) -> AbsolutePath:
        """The script that takes the host back."""
        return f"{self.directory}/restore.sh"

    @property
    def fired(self) -> AbsolutePath:
        """The marker that it leaves before it does anything."""
        return f"{self.directory}/fired"

    def timer_text(self, guard_s: PositiveSeconds) -> str:
        """Return the timer's file; it elapses `guard_s` after it was started, or after a boot."""
        return _TIMER.format(deployment=self.deployment, guard_s=_seconds(guard_s))

    def service_text(self, shell: AbsolutePath) -> str:
        """Return the service's file; `shell` runs the script."""
        return _SERVICE.format(
            deployment=self.deployment,
            shell=shell,
            script=_systemd_word(self.script),
            retry_s=_RETRY_S,
            gave_up=GAVE_UP,
        )

    def script_text(self, back: RestoreSystem, shell: AbsolutePath) -> str:
        """Return the script that brings about what `back` records. Its programs are the recorded system's.

        All values are quoted words of assignments before a text that is always the same.
        """
        systems = dict.fromkeys((back.running, back.release))
        programs = (*(f"{system}/sw/bin" for system in systems), self.places.programs)
        values = {
            "PATH": ":".join((*programs, "/run/current-system/sw/bin", "/usr/bin", "/bin")),
            "HOME": "/root",  # systemd sets none, and Nix wants one
            "LC_ALL": "C",
            "NIXOS_INSTALL_BOOTLOADER": "0",
            "GAVE_UP": str(GAVE_UP),
            "deployment": self.deployment,
            "name": self.name,
            "here": self.directory,
            "units": self.places.guard_units,
            "runtime": self.places.runtime,
            "shell": shell,
            "profile": self.places.profile,
            "current": self.places.current,
            "booted": self.places.booted,
            "generation": str(back.generation),
            "release": back.release,
            "running": back.running,
            "booted_before": back.booted or "",
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
        return "\n".join((*lines, "export PATH HOME LC_ALL NIXOS_INSTALL_BOOTLOADER", _SCRIPT.lstrip("\n")))


def _seconds(seconds: float) -> str:
    """Write seconds for systemd, to the millisecond: it takes no exponent."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _systemd_word(text: str) -> str:
    """Quote one word of a command for a unit file, where % and $ would be replaced."""
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(character, written)
    return f'"{text}"'

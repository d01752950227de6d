#!/bin/sh
# Stand-in for NixOS's switch-to-configuration: the same order, words and exit codes as
# pkgs/by-name/sw/switch-to-configuration-ng/src/main.rs of nixpkgs. What it does to the host are links.
PATH=/usr/bin:/bin
out="@out@" root="@root@" units="@units@" fail="@fail@"
run="$root/run" action="${1-}" code=0

# the real one ignores the signal, and panics at its next word when nobody reads what it says
trap '' PIPE
say() { echo "$*" >&2 2>/dev/null || exit 101; }
# what it starts, a guard's timer for instance, must not hold the lock
systemctl() { "$root/programs/systemctl" "$@" 9>&-; }
list() { echo "$*" | tr -s ' ' '\n' | sort -f | paste -sd, | sed 's/,/, /g'; }
tell() { words="$1"; shift; [ $# -eq 0 ] || say "$words the following units: $(list "$@")"; }

case "$action" in
  check | switch | boot | test | dry-activate) ;;
  *) say "Usage: switch-to-configuration [check|switch|boot|test|dry-activate]"; exit 1 ;;
esac
mkdir -p "$run/nixos"
exec 9>>"$run/nixos/switch-to-configuration.lock"
flock --exclusive --nonblock 9 || { say "Could not acquire lock"; exit 1; }

# as the real inhibitors: what may not be changed in a running system may be changed by booting it
if [ "$fail" = PRESWITCH ] && [ "$action" != boot ] && [ "${NIXOS_NO_CHECK-}" != 1 ]; then
  say "There are changes to critical components of the system:"
  say "  dbus-implementation : dbus -> broker"
  say "Switching into this system is not recommended."
  say "Pre-switch check 'switchInhibitors' failed"
  say "Pre-switch checks failed"
  exit 1
fi
[ "$action" != check ] || exit 0

case "$action" in switch | boot)
  [ "$fail" != BOOTLOADER ] || { say "Failed to install bootloader"; exit 1; }
  # systemd-boot's builder knows generations only, and makes that one the default which has this system
  for generation in "$root"/var/nix/profiles/system-*-link; do
    [ "$(readlink "$generation")" != "$out" ] || ln -sfn "$out" "$root/boot-default"
  done ;;
esac
[ "$action" != boot ] || exit 0

if ! cmp -s "$run/current-system/init-interface-version" "$out/init-interface-version"; then
  say "Warning: the new NixOS configuration has an ‘init’ that is"
  say "incompatible with the current configuration.  The new configuration"
  say "won't take effect until you reboot the system."
  say ""
  exit 100
fi

if [ "$action" = dry-activate ]; then
  tell "would stop" @stops@
  say "would activate the configuration..."
  tell "would reload" @reloads@
  tell "would restart" @restarts@
  tell "would start" @starts@
  exit 0
fi

tell "stopping" @stops@
say "activating the configuration..."
[ "@activation_s@" = 0 ] || sleep "@activation_s@"
ln -sfn "$out" "$run/current-system"
# the real script goes on after a snippet that failed, and so does the switch after the script
[ "$fail" != ACTIVATE ] || { say "Failed to run activate script"; code=2; }
if [ -s "$out/lab/cuts_network" ]; then "$root/programs/network" down; else "$root/programs/network" up; fi

# a shortcut where nothing has failed: the stand-in takes its time
if [ ! -d "$run/systemd" ] || grep -qs failed "$run"/systemd/*.json; then systemctl reset-failed; fi
mkdir -p "$run/failing" "$units"
for unit in "$run"/failing/*; do
  [ ! -e "$unit" ] || { rm -f "$unit" "$units/${unit##*/}"; changed=1; }
done
for unit in $(cat "$out/lab/failing_units"); do
  : >"$run/failing/$unit"
  printf '[Service]\nType=oneshot\nExecStart=/bin/false\n' >"$units/$unit"
  changed=1
done
[ "${changed-}" != 1 ] || systemctl daemon-reload
# the older one, in Perl, notes it and goes on; the newer one ends with an error
[ "$fail" != RELOAD ] || code=3
[ "$fail" != RELOAD_TIMEOUT ] || { say "Error: systemd daemon reload failed, timeout after 300s"; exit 1; }

say "restarting sysinit-reactivation.target"
tell "reloading" @reloads@
tell "restarting" @restarts@
tell "starting" @starts@
for unit in $(cat "$out/lab/failing_units"); do
  systemctl start "$unit" 2>/dev/null || { say "Failed to start $unit"; failed="${failed-} $unit"; }
done
[ -z "${failed-}" ] || {
  say "warning: the following units failed: $(list ${failed# })"
  for unit in $failed; do echo "× $unit - loaded (Result: exit-code)"; done
  code=4
}
exit $code

#!/bin/sh
# Make .venv what requirements.lock says; as root on Debian, install the programs the lab drives as well.
#
# Needs Python 3.11 or newer with pip or ensurepip, and the package registries. A second run does nothing
# until the lock changes. The environment may say
#   PYTHON=...             which interpreter to build .venv with
#   SYSTEM_PACKAGES=skip   leave the system's packages alone
#   CI=true                a system package that cannot be installed is an error, not a remark
set -eu
unset PYTHONHOME PYTHONPATH  # a stranger's modules must not stand in for the locked ones
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
may_install() { [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ] && [ "${SYSTEM_PACKAGES:-}" != skip ]; }
limited() { if command -v timeout >/dev/null; then timeout "$@"; else shift && "$@"; fi; }

# --- Debian's packages ------------------------------------------------------------------------------------

apt_get() {
    DEBIAN_FRONTEND=noninteractive limited 900 apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null >>"$log" 2>&1
}

# Install packages without letting their daemons start: the lab starts its own, on ports of its own.
install_packages() {
    policy=/usr/sbin/policy-rc.d
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    trap 'exit 1' HUP INT TERM  # so that EXIT tidies up
    if ! [ -e "$policy" ]; then  # a host with a policy of its own has decided
        trap 'rm -f "$log" "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    say "installing $* (SYSTEM_PACKAGES=skip leaves them out)"
    apt_get update || true  # a source that is away matters only when the install then fails
    apt_get install --yes --no-install-recommends "$@" || { tail -n 5 "$log" >&2 && return 1; }
}

# Print the packages of programs that are not here. Without them some tests are skipped.
missing_packages() {
    for wanted in ssh:openssh-client sshd:openssh-server socat:socat setpriv:util-linux nix-store:nix-bin \
        systemd-nspawn:systemd-container prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager \
        prometheus-node-exporter:prometheus-node-exporter restic:restic zfs-fuse:zfs-fuse mkfs.btrfs:btrfs-progs \
        curl:curl jq:jq git:git
    do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${wanted%%:*}" >/dev/null || printf '%s ' "${wanted#*:}"
    done
}

provide_programs() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # a list of package names
    if may_install && (install_packages $missing); then return; fi
    if may_install && [ "${CI:-}" = true ]; then fail "could not install ${missing% }"; fi
    say "not installed: ${missing% } (Debian's names); the tests that need them are skipped"
}

# --- Python -----------------------------------------------------------------------------------------------

# Print the real path of an interpreter that is new enough: never one inside the .venv we may rebuild.
new_enough() {
    "$1" -c 'import os, sys
if sys.version_info < (3, 11): sys.exit(1)
print(os.path.realpath(sys.executable))' 2>/dev/null
}

can_make_environments() { "$1" -c 'import venv, ensurepip' 2>/dev/null || "$1" -m pip --version >/dev/null 2>&1; }

find_python() {
    incomplete=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        python=$(new_enough "$candidate") || continue
        if can_make_environments "$python"; then return; fi
        incomplete=${incomplete:-$python}
    done
    [ -n "$incomplete" ] || fail "no Python 3.11 or newer found${PYTHON:+ as $PYTHON}; install one, or name one: make PYTHON=..."
    python=$incomplete
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if may_install && (install_packages "$package") && can_make_environments "$python"; then return; fi
    fail "$python has neither pip nor ensurepip; on Debian: apt-get install $package"
}

stamped() { [ "$(cat ".venv/$1" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s\n' "$2" >".venv/$1"; }

make_environment() {
    rm -rf .venv  # a lock is the whole truth: what it no longer names must not linger
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv
    else
        "$python" -m venv --without-pip .venv
    fi
}

pip() {
    if [ -x .venv/bin/pip ]; then
        .venv/bin/python -m pip --disable-pip-version-check --no-input -q "$@"
    else  # Debian's python3-pip without python3-venv
        "$python" -m pip --python .venv/bin/python --disable-pip-version-check --no-input -q "$@"
    fi
}

# Install what the lock says, built files only: no package's own build runs on this machine.
install_locked() {
    say "building .venv with $python (about a minute)"
    make_environment
    pip install --require-hashes --only-binary :all: --no-compile -r requirements.lock
    # Compiled at once and on all cores: Prefect then imports in under a second instead of 2.4.
    # A few packages ship templates that are no Python; they compile when imported, or never.
    .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
}

provide_environment() {
    find_python
    lock="$(cksum <requirements.lock) $python $root"
    if ! stamped locked "$lock"; then
        install_locked
        stamp locked "$lock"
    fi
    project=$(cksum <pyproject.toml)
    if ! stamped installed "$project"; then
        say "installing the project into .venv, editable"
        pip install --no-deps --no-build-isolation -e .
        stamp installed "$project"
    fi
}

if command -v flock >/dev/null; then
    exec 9<requirements.lock  # two `make` at once: the second waits for the first's work
    flock -w 1800 9 || fail "another set-up has been at work here for half an hour"
fi
provide_programs
provide_environment

"""NixOS hosts on this machine: real Nix, profiles and channels, and stand-ins for what needs a whole NixOS.

Neither root nor /nix is needed. A host's system is a real derivation in the shape of
`config.system.build.toplevel`; activating it changes links in the host's own directory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lab.nixos_channel import Web, packed, write_nixpkgs
from lab.nixos_host import LabNixosHost, make_store, nix_value, store_environment
from lab.part import Part
from lab.ports import give_back
from lab.processes import LabError, end_marked
from lab.sshd import LabSshd
from lab.systemd import LabSystemd
from rules.fleet import Fleet, HostService, Instance, NixProfile
from rules.hosts import HostAddress
from rules.nixos import NixosHost, NixosProbe

#: What the hosts run when they have been started.
FIRST_VERSION = "26.05.1000.aaaaaaaaaaaa"
NEXT_VERSION = "26.05.2000.bbbbbbbbbbbb"

_CONFIGURATION = "{{ config, lib, pkgs, ... }}:\n{{\n  lab = {{\n{settings}  }};\n}}\n"
_FLAKE = """\
{{
  description = "the lab's hosts";
  outputs = {{ self }}: {{
    nixosConfigurations = {{
{hosts}    }};
  }};
}}
"""
_FLAKE_HOST = """\
      {name}.config.system.build.toplevel = import ./system.nix {{
        system = {system};
        version = {version};
        settings = {{
{settings}        }};
      }};
"""


class LabNixos(Part):
    """NixOS hosts below `directory`, each installed with the first version and running it.

    Args:
        directory: all that they write is below it.
        hosts: their names.
        systemd: a started systemd that the one host lives in, reached by ssh; it must have `directory`
            below its own. None: on this machine, with stand-ins for systemctl and systemd-run.
        own_store: each host knows only of those store paths that it built or was given.
        ssh: each is reached by an sshd of its own, which lets nobody in while the host is down or cut off.
    """

    def __init__(
        self,
        directory: Path,
        hosts: tuple[str, ...] = ("alpha",),
        systemd: LabSystemd | None = None,
        *,
        own_store: bool = False,
        ssh: bool = False,
    ) -> None:
        self.directory = directory.absolute()
        if systemd and (ssh or len(hosts) > 1 or not self.directory.is_relative_to(systemd.directory)):
            raise LabError("a systemd is one host's, reached by its own ssh, and sees its own directory only")
        self.systemd = systemd
        self._hosts = {
            name: LabNixosHost(self.directory, name, own_store=own_store, systemd=systemd) for name in hosts
        }
        self._doors = {
            name: LabSshd(host.root / "sshd", name=name) for name, host in self._hosts.items() if ssh
        }
        self._options: dict[str, dict[str, object]] = {name: {} for name in hosts}
        self._channel = Web(self._serve_channel)
        self._pages = Web(self._serve_page)
        self._published = b""

    @property
    def fleet(self) -> Fleet:
        """The hosts as deployments know them."""
        return Fleet(application="lab-nixos", instances=tuple(map(self.instance, self._hosts)))

    @property
    def environment(self) -> dict[str, str]:
        """What makes Nix's commands use the hosts' store, as a worker's do that builds for them."""
        home = str(self.directory / "home")
        state = store_environment(self.directory, self.directory / "var" / "nix")
        return {**state, "NIX_PATH": "", "HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}

    def instance(self, name: str) -> Instance:
        """Return one host as deployments know it."""
        host = self._hosts[name]
        door = self.systemd or self._doors.get(name)
        return Instance(
            name=name,
            host=door.host if door else HostAddress(),
            layout=NixProfile(profile=str(host.profile)),
            service=HostService(),
            probe=NixosProbe(current=host.places.current, urls=(self.url(name),)),
            nixos=NixosHost(
                places=host.places,
                urls=(self.url(name),),
                guard_s=20.0,
                activate_s=10.0,
                settle_s=5.0,
                reboot_s=10.0,
                build_s=60.0,
            ),
        )

    def host(self, name: str) -> LabNixosHost:
        """Return one host's places on this machine."""
        return self._hosts[name]

    def url(self, name: str) -> str:
        """Return the address of the page that a host serves while its active system answers."""
        return f"{self._pages.url}/{name}"

    @property
    def channel_url(self) -> str:
        """The address that the hosts' channel follows."""
        return f"{self._channel.url}/nixos-26.05"

    def start(self) -> None:
        """Make the store, serve the channel, and install the hosts.

        Raises:
            LabError: a command of Nix's failed.
        """
        try:
            make_store(self.directory)
            self._channel.start()
            self._pages.start()
            self.publish_channel(FIRST_VERSION)
            for name, host in self._hosts.items():
                host.make()
                self.configure(name)
                self.install(name)
                self._let_in(name)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all that hosts run, and give the ports back; their files stay."""
        for host in self._hosts.values():
            if host.root.is_dir():
                host.stop()
        for door in self._doors.values():
            door.stop()
            give_back(door.port)
        end_marked(self.directory)
        self._channel.close()
        self._pages.close()

    def configure(self, name: str, **options: object) -> None:
        """Write a host's configuration: what its next build will be, but for the version.

        Args:
            name: the host.
            options: kernel, init, revision, note, activation_s, boot_s (texts); fail (BUILD, PRESWITCH,
                ACTIVATE, RELOAD, RELOAD_TIMEOUT or BOOTLOADER); failing_units, stops, restarts, reloads,
                starts (units), packages (such as `openssl-3.0.14`); cuts_network, breaks_boot, answers
                (truths). What is not given is as in a plain system.
        """
        self._options[name] = options
        settings = self._settings(name, options, indent=4)
        self._hosts[name].configuration.write_text(_CONFIGURATION.format(settings=settings))

    def publish_channel(self, version: str) -> None:
        """Serve another version in the channel, and listen where the server was stopped."""
        self._published = packed(write_nixpkgs(self.directory / "nixpkgs", version))
        self._channel.start()

    def stop_channel_server(self) -> None:
        """Stop it: nobody listens at `channel_url` until something is published."""
        self._channel.stop()

    def install(self, name: str) -> str:
        """Bring a host to the channel's version and its configuration, booted; return the system's path."""
        host = self._hosts[name]
        host.run("nix-channel", "--add", self.channel_url, "nixos")
        host.run("nix-channel", "--update", "nixos")
        system = host.run(
            "nix-build", "<nixpkgs/nixos>", "-A", "config.system.build.toplevel", "--no-out-link"
        )
        host.run("nix-env", "--profile", str(host.profile), "--set", system)
        (host.root / "boot-default").unlink(missing_ok=True)
        (host.root / "boot-default").symlink_to(system)
        self.reboot(name)
        return system

    def build(self, name: str, version: str = NEXT_VERSION, **options: object) -> str:
        """Build a host's system in the hosts' store, and return its path; the host is not touched."""
        nixpkgs = write_nixpkgs(self.directory / "nixpkgs", version)
        settings = self._settings(name, options, indent=2)
        known = f"system = builtins.currentSystem; version = {nix_value(version)};"
        expression = f"import {nixpkgs}/system.nix {{ {known} settings = {{\n{settings}}}; }}"
        argv = ("nix-build", "--no-out-link", "--expr", expression)
        ended = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            timeout=60.0,
        )
        if ended.returncode != 0:
            raise LabError(f"{name} cannot be built: {ended.stderr.strip()}")
        return ended.stdout.strip()

    def flake(
        self, options: dict[str, dict[str, object]], version: str = NEXT_VERSION, *, place: str = "flake"
    ) -> Path:
        """Write a flake with a system for each host of `options`, and return its directory."""
        nixpkgs, directory = write_nixpkgs(self.directory / "nixpkgs", version), self.directory / place
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(nixpkgs, directory)
        system = nix_value(f"{os.uname().machine}-linux")
        hosts = "".join(
            _FLAKE_HOST.format(
                name=name,
                system=system,
                version=nix_value(version),
                settings=self._settings(name, given, indent=10),
            )
            for name, given in options.items()
        )
        (directory / "flake.nix").write_text(_FLAKE.format(hosts=hosts))
        return directory

    def reboot(self, name: str) -> bool:
        """Let a host go down and come up with what it boots by default; return whether it came up."""
        return self._hosts[name].boot()

    def boot(self, name: str, system: str) -> bool:
        """Let somebody at the host's console choose a system to boot; the default stays as it is."""
        return self._hosts[name].boot(system)

    def nixos_rebuild(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the stand-in for nixos-rebuild on a host, to its end."""
        return self._hosts[name].finish("nixos-rebuild", *words)

    def observed(self, name: str) -> dict[str, Any]:
        """Return what a deployment must leave as it was, when it is taken back."""
        host = self._hosts[name]
        followed = host.root / "home" / ".nix-channels"
        return {
            "generation": str(host.profile.readlink()),
            "profile": os.path.realpath(host.profile),
            "current": os.path.realpath(host.root / "run" / "current-system"),
            "booted": os.path.realpath(host.root / "run" / "booted-system"),
            "boot_default": os.path.realpath(host.root / "boot-default"),
            "failed_units": self.failed_units(name),
            "channels_link": str(host.channels.readlink()),
            "channels": os.path.realpath(host.channels),
            "channel_urls": followed.read_text() if followed.exists() else "",
            "guard_units": _files(host.guard_units),
            "roots": _files(host.root / "state" / "roots"),
        }

    def failed_units(self, name: str) -> tuple[str, ...]:
        """Return the units that have failed on a host, sorted."""
        argv = ("list-units", "--state=failed", "--plain", "--no-legend", "--no-pager")
        said = self._hosts[name].run("systemctl", *argv)
        return tuple(sorted(line.split()[0] for line in said.splitlines()))

    def _let_in(self, name: str) -> None:
        if door := self._doors.get(name):
            door.start()
            keys = door.directory / "authorized_keys"
            # as a shell of its own that ends with the connection, and what it runs with it
            gate = f"exec setpriv --pdeathsig KILL -- {shlex.quote(str(self._hosts[name].root / 'gate'))}"
            keys.write_text(f'command="{gate}" {keys.read_text()}')

    def _settings(self, name: str, options: dict[str, object], *, indent: int) -> str:
        host = self._hosts[name]
        settings = {"root": str(host.root), "units": host.units, "name": name, **options}
        lines = (f"{key} = {nix_value(value)};\n" for key, value in settings.items())
        return "".join(" " * indent + line for line in lines)

    def _serve_channel(self, path: str) -> tuple[int, bytes] | None:
        # Nix asks the address itself first, to follow where it leads
        return 200, self._published if path.endswith("/nixexprs.tar.xz") else b"a channel\n"

    def _serve_page(self, path: str) -> tuple[int, bytes] | None:
        host = self._hosts.get(path.split("/")[1])
        if host is None:
            return None
        system = host.root / "run" / "current-system"
        try:
            answers = (system / "lab" / "answers").read_text()
            version = (system / "nixos-version").read_text()
        except FileNotFoundError:
            return 503, b"down\n"
        if (host.root / "cut").exists() or not answers:
            return 503, b"not ready\n"
        return 200, f'{{"version": "{version}"}}\n'.encode()


def _files(directory: Path) -> tuple[str, ...]:
    """Return what lies below a directory, links to directories too: roots of the collector are such."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return tuple(sorted(str(path.relative_to(directory)) for path in found))

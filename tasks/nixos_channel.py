"""The channel that a NixOS host is built from: what it follows, its content, its update and its way back.

`nix-channel --update` ends well when the server is down, and within an hour of the last one, with the content
that it has. builtins.fetchTarball does the same. So both are told that nothing is fresh enough, words about a
cached version are an error, and contents are compared.
"""

from __future__ import annotations

import json
import re

from rules.errors import CommandError, InvalidRequestError, StepFailedError, UndoFailedError
from rules.fleet import Instance
from rules.frozen import Count, Frozen
from rules.nixos import StorePath
from rules.nixos_actions import RestoreChannel, UpdateChannel
from rules.nixos_activation import channels_listed, end_of_log, generation_of
from rules.system_change import NixosChannel, SystemRelease
from tasks import host as hosts
from tasks.nixos_reading import resolved
from tasks.nixos_store import lacking, nix_of

_FETCH = "{ url }: builtins.fetchTarball { inherit url; }"
# the same path as fetchTarball's, as both are named by their content: what is built from either is the same
_TAKE = '{ path }: "${builtins.path { name = "source"; inherit path; }}"'
_EVALUATE = ("--eval", "--json", "--read-write-mode")
_FRESH = ("--option", "tarball-ttl", "0")
_CACHED = "using cached version"
_ARCHIVE = re.compile(r"\.tar\.(gz|bz2|xz)$")


class ChannelFacts(Frozen):
    """The profile of channels as it was just read, and the address of the channel of interest."""

    path: StorePath
    generation: Count
    url: str


def read_channel(instance: Instance) -> ChannelFacts:
    """Return what a host's channel follows, and where the profile of channels is.

    Raises:
        InvalidRequestError: root follows no such channel, or never updated it: no way back is known.
        CommandError: the host cannot be asked.
    """
    place, name = instance.nixos_host.places.channels, instance.nixos_host.channel
    url = _followed(instance).get(name)
    link = hosts.read_link(instance.host, place)
    path, content = resolved(instance.host, (place, f"{place}/{name}"))
    if url is None or link is None or path is None or content is None:
        raise InvalidRequestError(
            f"{instance.name} has no channel {name} to update: nix-channel --list names "
            f"{', '.join(sorted(_followed(instance))) or 'none'}, and {place}/{name} is "
            f"{content or 'not there'}. Add it there and update it once, or declare another channel."
        )
    try:
        return ChannelFacts(path=path, generation=generation_of(link), url=url)
    except ValueError as error:
        raise InvalidRequestError(f"{instance.name}: {place}: {error}.") from error


def candidate(instance: Instance, change: SystemRelease) -> tuple[str, str]:
    """Fetch what the channel would bring now, without touching the channel.

    Returns:
        The directory in the host's store that has the content, and its SHA-256 as nix-hash says.

    Raises:
        InvalidRequestError: the change is from no channel, or its server does not answer.
        CommandError: the host cannot be asked.
    """
    if not isinstance(change.source, NixosChannel):
        raise InvalidRequestError(f"{change.subject}: this release comes from no channel")
    url = change.source.url or read_channel(instance).url
    address = url if _ARCHIVE.search(url) else f"{url.rstrip('/')}/nixexprs.tar.xz"
    words = (*_FRESH, "--expr", _FETCH, "--argstr", "url", address)
    fetched = nix_of(instance).run(
        "nix-instantiate", *_EVALUATE, *words, timeout_s=instance.nixos_host.build_s, check=False
    )
    if fetched.returncode or _CACHED in fetched.stderr:
        raise InvalidRequestError(
            f"{instance.name} cannot fetch {address}, so what its channel would bring is not known: "
            f"{end_of_log(fetched.stderr)}\nSee whether the address is right and its server answers, and "
            "deploy again."
        )
    directory = _string(fetched.stdout)
    return directory, _hash(instance, directory)


def live_source(instance: Instance) -> str:
    """Return a directory of the host's store with its channel's content: the same as the candidate's.

    Raises:
        StepFailedError: the channel is not there.
        CommandError: the host cannot be asked.
    """
    directory = _content_directory(instance, instance.nixos_host.channel)
    if directory is None:
        raise StepFailedError(
            f"{instance.name}: {_place(instance, instance.nixos_host.channel)} is not there any more. Bring "
            "the channel back (nix-channel --update there) and deploy again."
        )
    words = ("--expr", _TAKE, "--argstr", "path", directory)
    taken = nix_of(instance).run("nix-instantiate", *_EVALUATE, *words, timeout_s=instance.nixos_host.build_s)
    return _string(taken.stdout)


def _string(stdout: str) -> str:
    said = json.loads(stdout)
    if not isinstance(said, str):
        raise StepFailedError(f"nix-instantiate printed no path but {stdout[:200]!r}")
    return said


def _place(instance: Instance, channel: str) -> str:
    return f"{instance.nixos_host.places.channels}/{channel}"


def _content_directory(instance: Instance, channel: str) -> str | None:
    return resolved(instance.host, (_place(instance, channel),))[0]


def _hash(instance: Instance, directory: str) -> str:
    said = nix_of(instance).run(
        "nix-hash", "--type", "sha256", directory, timeout_s=instance.nixos_host.build_s
    )
    return said.stdout.strip()


def _content(instance: Instance, channel: str) -> str:
    """Return the SHA-256 of a channel's content; empty: it has none."""
    directory = _content_directory(instance, channel)
    return _hash(instance, directory) if directory else ""


def _followed(instance: Instance) -> dict[str, str]:
    return channels_listed(nix_of(instance).run("nix-channel", "--list").stdout)


# --- effects -------------------------------------------------------------------------------------------


def update_channel(instance: Instance, action: UpdateChannel) -> None:
    """Have the host's channel at the content that the plan was made with; there already, nothing is done.

    Raises:
        StepFailedError: it has another content, also where nix-channel said that all went well.
        CommandError: the host cannot be asked.
    """
    nix, channel = nix_of(instance), action.channel
    before = _content(instance, channel)
    follows = not action.url or _followed(instance).get(channel) == action.url
    if before == action.content and follows:
        return
    try:
        if not follows:
            nix.run("nix-channel", "--add", action.url, channel)
        words = ("--update", channel, *_FRESH)
        updated = nix.run("nix-channel", *words, timeout_s=instance.nixos_host.build_s)
    except hosts.HostUnreachableError:
        raise
    except CommandError as error:
        raise StepFailedError(
            f"{instance.name}: channel {channel} could not be updated: {error}. {_UNTOUCHED}"
        ) from error
    after = _content(instance, channel)
    if after != action.content:
        raise StepFailedError(_not_updated(instance, action, before, after, said=updated.stderr))


_UNTOUCHED = "The system that runs and the one that boots were not touched."


def _not_updated(instance: Instance, action: UpdateChannel, before: str, after: str, *, said: str) -> str:
    """Say what became of the channel instead; nix-channel itself said that it went well."""
    if after == before:
        happened = (
            f"was not changed, although nix-channel exited 0: it still has content {after[:16] or 'none'}"
        )
        advice = "See whether its server answers, and deploy again."
    else:
        happened = f"has content {after[:16] or 'none'} now"
        advice = "It was published anew since the plan was made: deploy again for a plan with what it is now."
    tail = end_of_log(said)
    return (
        f"{instance.name}: channel {action.channel} {happened}, not {action.content[:16]}, which the plan "
        f"was made with. {_UNTOUCHED}{f' It said: {tail}' if tail else ''}\n{advice}"
    )


def restore_channel(instance: Instance, step: RestoreChannel) -> None:
    """Have the profile of channels at the recorded generation and address; repeating it changes nothing.

    A generation whose link is gone, or leads elsewhere now, is not trusted: the recorded path is set instead.

    Raises:
        UndoFailedError: it is not so afterwards, or the recorded content is not in the store any more.
        CommandError: a command on the host failed.
    """
    nix, place = nix_of(instance), instance.nixos_host.places.channels
    if step.url and _followed(instance).get(step.channel) != step.url:
        nix.run("nix-channel", "--add", step.url, step.channel)
    path, kept = resolved(instance.host, (place, f"{place}-{step.generation}-link"))
    if kept == step.path:
        if _generation(instance) != step.generation:
            nix.run("nix-env", "--profile", place, "--switch-generation", str(step.generation))
    elif path != step.path:
        _set_path(instance, step)
    _prove_restored(instance, step)


def _generation(instance: Instance) -> int | None:
    link = hosts.read_link(instance.host, instance.nixos_host.places.channels)
    try:
        return generation_of(link) if link else None
    except ValueError:
        return None


def _set_path(instance: Instance, step: RestoreChannel) -> None:
    nix, place = nix_of(instance), instance.nixos_host.places.channels
    if lacking(nix, (step.path,)):
        raise UndoFailedError(
            f"{instance.name}: generation {step.generation} of {place} is gone, and so is its content "
            f"{step.path}: the channel {step.channel} cannot be put back and is as it was found. "
            f"{_UNTOUCHED} Follow a channel of your choice by hand: "
            f"nix-channel --add {step.url} {step.channel} && nix-channel --update {step.channel}"
        )
    nix.run("nix-env", "--profile", place, "--set", step.path)


def _prove_restored(instance: Instance, step: RestoreChannel) -> None:
    path = resolved(instance.host, (instance.nixos_host.places.channels,))[0]
    url = _followed(instance).get(step.channel, "")
    if path != step.path or (step.url and url != step.url):
        raise UndoFailedError(
            f"{instance.name}: the channels are at {path} with {step.channel} from {url or 'nowhere'}, not "
            f"at {step.path} from {step.url}, although every command ended well. Look at "
            f"{instance.nixos_host.places.channels} and nix-channel --list there; another user's channels "
            f"may be meant. {_UNTOUCHED}"
        )

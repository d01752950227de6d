"""Put a model's release beside the others on a server's host, whole and proven, with the server's flags.

`<root>/releases/<release>` has `model` (the files as they came), `server.yaml` (what the server is started
with), `.sha256` (of `model`) and `facts.json` (what was read of it, so that any host can tell later).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import cast

import yaml
from pydantic import ValidationError

from rules.change import ModelRelease
from rules.errors import StepFailedError
from rules.fleet import Instance, ReleaseDirectory
from rules.model_facts import ModelFacts
from rules.model_fit import disk_fault
from rules.serving import FlagValue, ModelServing, server_flags
from tasks import host as hosts
from tasks.model_files import read_model
from tasks.model_reading import ModelArtefactError, all_files
from tasks.settings import Settings

MODEL, FLAGS_FILE, FACTS_FILE, CHECKSUM_FILE = "model", "server.yaml", "facts.json", ".sha256"
#: Copying or reading a whole model, of hundreds of gigabytes at times.
WHOLE_MODEL_S = 4 * 3600.0
#: Disk that a copy needs, as a multiple of the files: metadata, and room for a server that writes logs.
_SPARE_RATIO = 1.05
#: One line for each flag, however long.
_WIDTH = 100_000

# The contract's pipeline; `"$1"` is the model's directory.
_DIGEST = 'cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum'


def root_of(instance: Instance) -> str:
    """Return the directory that holds an instance's releases.

    Raises:
        StepFailedError: its releases are Nix store paths.
    """
    if not isinstance(instance.layout, ReleaseDirectory):
        raise StepFailedError(
            f"{instance.name} is a Nix profile: a model needs the layout release_directory. Nothing was "
            "touched."
        )
    return instance.layout.root


def release_directory(instance: Instance, release: str) -> str:
    """Return where a release lies, or would lie, on an instance's host."""
    return f"{root_of(instance)}/releases/{release}"


# --- reads -----------------------------------------------------------------------------------------


def digest_on_host(instance: Instance, directory: str) -> str:
    """Return the digest of a model's directory on the instance's host, as `ModelDirectory.sha256` has it.

    Raises:
        CommandError: it cannot be read.
    """
    argv = ("sh", "-c", _DIGEST, "digest", directory)
    return hosts.run(instance.host, argv, timeout_s=WHOLE_MODEL_S).stdout[:64]


def staged_digest(instance: Instance, release: str) -> str | None:
    """Return the digest that a release was staged with; None: it was not staged by us, or is not there."""
    text = _read(instance, release, CHECKSUM_FILE)
    return text.strip() or None if text else None


def staged_flags(instance: Instance, release: str) -> dict[str, FlagValue] | None:
    """Return what a release's server.yaml says; None: there is none, or it is no mapping."""
    text = _read(instance, release, FLAGS_FILE)
    try:
        said = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return None
    return cast("dict[str, FlagValue]", said) if isinstance(said, dict) else None


def staged_facts(instance: Instance, release: str) -> ModelFacts | None:
    """Return what was read of a release when it was staged; None: that is not known."""
    text = _read(instance, release, FACTS_FILE)
    try:
        return ModelFacts.model_validate_json(text) if text else None
    except ValidationError:  # written by another version of this program
        return None


def known_facts(instance: Instance, release: str) -> ModelFacts | None:
    """Return what a release on an instance's host holds; None: it can be told neither there nor from here."""
    if (facts := staged_facts(instance, release)) or instance.host.address:
        return facts
    try:
        return read_model(Path(release_directory(instance, release), MODEL))
    except ModelArtefactError:
        return None


def _read(instance: Instance, release: str, file: str) -> str | None:
    path = f"{release_directory(instance, release)}/{file}"
    finished = hosts.run(instance.host, ("cat", "--", path), check=False)
    return finished.stdout if finished.returncode == 0 else None


def flags_of(
    instance: Instance, change: ModelRelease, serving: ModelServing, facts: ModelFacts
) -> dict[str, FlagValue]:
    """Return the content of the server.yaml that the release has on this instance.

    Raises:
        InvalidRequestError: a flag must not be declared; says why.
    """
    # of a model in several files, the first leads a server to the others
    gguf = facts.shards[0] if facts.format == "gguf" else None
    return server_flags(serving, change.flags, root=root_of(instance), release=change.release, gguf=gguf)


def taken_fault(instance: Instance, change: ModelRelease, flags: Mapping[str, FlagValue]) -> str | None:
    """Say why the release's id is taken on this host; None: it is free, or exactly this release is there.

    Raises:
        CommandError: the host cannot be asked.
    """
    final = release_directory(instance, change.release)
    if not hosts.exists(instance.host, final):
        return None
    found = staged_digest(instance, change.release)
    if found != change.artefact.sha256:
        other = f"content (sha256 {found or 'unknown'})"
    elif staged_flags(instance, change.release) != flags:
        other = f"flags in {FLAGS_FILE} than the model's block and this request give"
    else:
        return None
    return (
        f"{instance.name}: {final} is there already with other {other}. A release id never changes its "
        "content: give the new one a new id, or remove that directory if nothing uses it"
    )


# --- the effect ------------------------------------------------------------------------------------


def stage_model(
    instance: Instance, change: ModelRelease, *, serving: ModelServing, deployment: str, settings: Settings
) -> None:
    """Put the release beside the others on the instance's host; the running one is not touched.

    Raises:
        StepFailedError: the digest is wrong, the disk too full, or another release has this id.
        InvalidRequestError: the directory is no model, or a flag must not be declared.
        CommandError: a command on the host failed.
    """
    facts = read_model(Path(change.artefact.path))
    flags = flags_of(instance, change, serving, facts)
    host, final = instance.host, release_directory(instance, change.release)
    if fault := taken_fault(instance, change, flags):
        raise StepFailedError(f"{fault}. The running release was not touched.")
    if hosts.exists(host, final):
        return
    partial = f"{root_of(instance)}/releases/.staging-{deployment}"
    hosts.run(host, ("rm", "-rf", "--", partial), timeout_s=settings.command_timeout_s)
    hosts.run(host, ("mkdir", "-p", "--", f"{partial}/{MODEL}"))
    _refuse_full_disk(instance, partial, facts)
    _copy(instance, Path(change.artefact.path), f"{partial}/{MODEL}")
    _refuse_other_digest(instance, f"{partial}/{MODEL}", change)
    facts = facts.model_copy(update={"sha256": change.artefact.sha256})
    for name, content in (
        (CHECKSUM_FILE, f"{change.artefact.sha256}\n"),
        (FLAGS_FILE, yaml.safe_dump(flags, sort_keys=True, allow_unicode=True, width=_WIDTH)),
        (FACTS_FILE, facts.model_dump_json()),
    ):
        hosts.write_file(host, f"{partial}/{name}", content.encode())
    hosts.run(host, ("sync", "--file-system", partial), timeout_s=WHOLE_MODEL_S)
    hosts.run(host, ("mv", "-T", "--", partial, final))


def _refuse_full_disk(instance: Instance, partial: str, facts: ModelFacts) -> None:
    if fault := disk_fault_of(instance, facts, directory=partial):
        raise StepFailedError(f"{fault}. Nothing was copied. Make room and deploy again.")


def disk_fault_of(instance: Instance, facts: ModelFacts, *, directory: str) -> str | None:
    """Say in words why a model does not fit on the disk that holds `directory`; None: it does.

    Raises:
        CommandError: the host cannot be asked.
    """
    free = hosts.free_bytes(instance.host, directory)
    fault = disk_fault(facts.size_bytes, free_bytes=free, reserve_ratio=_SPARE_RATIO, place=directory)
    return f"{instance.name}: {fault}" if fault else None


def _copy(instance: Instance, source: Path, target: str) -> None:
    """Copy a model's files; on one file system that can, without their bytes."""
    if not instance.host.address:
        argv = ("cp", "--archive", "--no-preserve=ownership", "--reflink=auto", "--", f"{source}/.", target)
        hosts.run(instance.host, argv, timeout_s=WHOLE_MODEL_S)
        return
    made = {PurePosixPath(target)}
    for name, state in sorted(all_files(source)):
        place = PurePosixPath(target, name)
        if place.parent not in made:
            hosts.run(instance.host, ("mkdir", "-p", "--", str(place.parent)))
            made.add(place.parent)
        if stat.S_ISLNK(state.st_mode):
            hosts.replace_link(instance.host, str(place), str((source / name).readlink()))
        else:
            hosts.copy_file(instance.host, str(source / name), str(place), timeout_s=WHOLE_MODEL_S)


def _refuse_other_digest(instance: Instance, directory: str, change: ModelRelease) -> None:
    received = digest_on_host(instance, directory)
    if received != change.artefact.sha256:
        raise StepFailedError(
            f"{instance.name}: the model arrived with sha256 {received}, not {change.artefact.sha256}; it "
            "is no release there, and the running one was not touched. Check the directory and the request's "
            "sha256."
        )

"""A model's release, put beside the others on a server's host: whole, proven, with flags; here and by ssh."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.model import make_gguf, make_model, truncate
from lab.sglang import digest
from rules.change import ModelDirectory, ModelRelease
from rules.errors import InvalidRequestError, StepFailedError
from rules.fleet import CommandService, Instance, NixProfile, Probe, ReleaseDirectory
from rules.serving import ModelServing
from rules.undo import RemoveRelease
from tasks.application import current_release, remove_release, staged_releases, switch_release
from tasks.model_files import read_model
from tasks.model_stage import (
    flags_of,
    known_facts,
    stage_model,
    staged_digest,
    staged_facts,
    staged_flags,
    taken_fault,
)
from tasks.settings import Settings

SETTINGS, DEPLOYMENT = Settings(), "chat-1"
SERVING = ModelServing(flags={"context-length": 2048, "attention-backend": "triton"})
NOTHING = CommandService(start=("true",), stop=("true",), status=("true",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two files, with a directory and a link in it."""
    path = make_model(tmp_path_factory.mktemp("models") / "m1", shards=2)
    (path / "more things").mkdir()
    (path / "more things" / "notes.txt").write_text("beside")
    (path / "config.old.json").symlink_to("config.json")
    return path


@pytest.fixture
def here(tmp_path: Path) -> Instance:
    (tmp_path / "server" / "releases").mkdir(parents=True)
    return Instance(
        name="blue-1",
        layout=ReleaseDirectory(root=str(tmp_path / "server")),
        service=NOTHING,
        probe=Probe(url="http://127.0.0.1:1/model_info", version_key="weight_version"),
    )


@pytest.fixture(params=["here", "by ssh"])
def instance(request: pytest.FixtureRequest, here: Instance) -> Instance:
    if request.param == "here":
        return here
    return here.model_copy(update={"host": request.getfixturevalue("remote")})


def release(model: Path, **fields) -> ModelRelease:
    artefact = ModelDirectory(path=str(model), sha256=fields.pop("sha256", None) or digest(model))
    return ModelRelease(model="chat", release=fields.pop("release", "m1"), artefact=artefact, **fields)


def stage(instance: Instance, change: ModelRelease, serving: ModelServing = SERVING) -> None:
    stage_model(instance, change, serving=serving, deployment=DEPLOYMENT, settings=SETTINGS)


def releases(instance: Instance) -> Path:
    return Path(instance.layout.root, "releases")


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_staged_model_lies_whole_beside_the_others_with_its_flags_and_facts(model, instance):
    stage(instance, release(model, flags={"context-length": 4096, "sleep-on-idle": True}))
    staged = releases(instance) / "m1"
    assert staged_releases(instance) == ("m1",)
    assert [p.name for p in releases(instance).iterdir()] == ["m1"]
    assert sorted(p.name for p in staged.iterdir()) == [".sha256", "facts.json", "model", "server.yaml"]
    assert content(staged / "model") == content(model)
    assert str((staged / "model" / "config.old.json").readlink()) == "config.json"
    assert yaml.safe_load((staged / "server.yaml").read_text()) == {
        "attention-backend": "triton",
        "context-length": 4096,
        "model-path": f"{instance.layout.root}/current/model",
        "sleep-on-idle": True,
        "weight-version": "m1",
    }
    assert staged_digest(instance, "m1") == digest(model)
    assert staged_facts(instance, "m1") == read_model(model).model_copy(update={"sha256": digest(model)})


def test_flags_are_one_line_each_and_in_order_whatever_they_hold(model, here):
    long = "a word " * 100 + "é"
    stage(here, release(model, release="2.0", flags={"zeta": long, "log-level": "no"}))
    text = (releases(here) / "2.0" / "server.yaml").read_text()
    keys = [line.partition(":")[0] for line in text.splitlines()]
    assert keys == [
        "attention-backend",
        "context-length",
        "log-level",
        "model-path",
        "weight-version",
        "zeta",
    ]
    # a release that looks like a number, and a word that YAML takes for a truth value, stay what they are
    assert staged_flags(here, "2.0")["weight-version"] == "2.0"
    assert staged_flags(here, "2.0")["log-level"] == "no"
    assert staged_flags(here, "2.0")["zeta"] == long


def test_staging_twice_is_staging_once(model, here):
    change = release(model)
    stage(here, change)
    inode = (releases(here) / "m1").stat().st_ino
    stage(here, change)
    assert (releases(here) / "m1").stat().st_ino == inode


def test_what_a_killed_deployment_left_behind_is_begun_anew(model, here):
    leftover = releases(here) / f".staging-{DEPLOYMENT}" / "model"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").write_bytes(b"half")
    stage(here, release(model))
    assert [p.name for p in releases(here).iterdir()] == ["m1"]
    assert content(releases(here) / "m1" / "model") == content(model)


def test_a_release_id_never_changes_its_content(model, here, tmp_path):
    stage(here, release(model))
    other = make_model(tmp_path / "other", seed=7)
    with pytest.raises(StepFailedError, match=r"already with other content .*never changes its content"):
        stage(here, release(other))
    assert content(releases(here) / "m1" / "model") == content(model)
    (releases(here) / "m1" / ".sha256").unlink()
    with pytest.raises(StepFailedError, match="sha256 unknown"):
        stage(here, release(model))


def test_a_release_id_never_changes_its_flags(model, here):
    stage(here, release(model))
    with pytest.raises(StepFailedError, match="other flags in server"):
        stage(here, release(model, flags={"context-length": 1024}))
    with pytest.raises(StepFailedError, match="other flags in server"):
        stage(here, release(model), ModelServing())
    flags = flags_of(here, release(model), SERVING, read_model(model))
    assert taken_fault(here, release(model), flags) is None
    (releases(here) / "m1" / "server.yaml").write_text("[unclosed")
    assert "other flags" in taken_fault(here, release(model), flags)


def test_a_model_that_arrives_otherwise_than_declared_is_no_release(model, here):
    with pytest.raises(StepFailedError, match=r"arrived with sha256 .* not 0000"):
        stage(here, release(model, sha256="0" * 64))
    assert staged_releases(here) == ()


def test_a_full_disk_is_refused_before_anything_is_copied(model, here, tmp_path):
    huge = tmp_path / "huge"
    subprocess.run(["cp", "-a", model, huge], check=True)
    with (huge / "ballast.txt").open("wb") as file:
        file.truncate(8 << 40)  # of nothing but holes
    with pytest.raises(StepFailedError, match=r"the disk of .* needed .*Nothing was copied"):
        stage(here, release(huge, sha256="0" * 64))
    assert staged_releases(here) == ()
    assert content(releases(here)) == {}


def test_a_truncated_file_is_refused_before_anything_is_copied(model, here, tmp_path):
    broken = make_model(tmp_path / "broken")
    truncate(broken)
    with pytest.raises(InvalidRequestError, match="no whole safetensors file"):
        stage(here, release(broken))
    assert content(releases(here)) == {}


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("model-path", "follow from the release"),
        ("weight-version", "follow from"),
        ("api-key", "are secrets"),
    ],
)
def test_flags_of_our_own_and_secrets_are_refused_with_the_reason(model, here, flag, why):
    for change, serving in (
        (release(model, flags={flag: "x"}), SERVING),
        (release(model), ModelServing(flags={flag: "x"})),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            stage(here, change, serving)
    assert content(releases(here)) == {}


def test_a_server_of_gguf_is_given_the_file_and_the_tokenizer_beside_it(here, tmp_path):
    directory = tmp_path / "gguf"
    make_gguf(directory / "tiny.gguf")
    stage(here, release(directory))
    model = f"{here.layout.root}/current/model"
    assert staged_flags(here, "m1") == {
        **SERVING.flags,
        "load-format": "gguf",
        "model-path": f"{model}/tiny.gguf",
        "tokenizer-path": model,
        "weight-version": "m1",
    }


def test_a_staged_model_is_switched_to_and_removed_as_any_release(model, here):
    stage(here, release(model))
    switch_release(here, "m1")
    assert current_release(here) == "m1"
    switch_release(here, "m0")
    remove_release(here, RemoveRelease(instance="blue-1", release="m1"), deployment=DEPLOYMENT)
    assert staged_releases(here) == ()
    assert content(releases(here)) == {}


def test_what_is_known_of_a_release_is_read_where_it_lies(model, here):
    stage(here, release(model))
    facts = staged_facts(here, "m1")
    path = releases(here) / "m1" / "facts.json"
    path.write_text(json.dumps({"of": "another version"}))
    assert staged_facts(here, "m1") is None
    assert known_facts(here, "m1") == facts.model_copy(update={"sha256": None})
    assert known_facts(here, "none") is None


def test_a_nix_profile_holds_no_models(model, here):
    profile = here.model_copy(update={"layout": NixProfile(profile="/nix/var/nix/profiles/chat")})
    with pytest.raises(StepFailedError, match="needs the layout release_directory"):
        stage(profile, release(model))

import hashlib
from pathlib import Path

import pytest

from lab.releases import Behaviour, build_release, install_release


def test_the_same_release_has_the_same_bytes_wherever_it_is_built(tmp_path):
    one = build_release(tmp_path / "here", "2.0.0", Behaviour(latency_s=0.1))
    two = build_release(tmp_path / "there", "2.0.0", Behaviour(latency_s=0.1))
    assert one.sha256 == two.sha256 == hashlib.sha256(Path(one.path).read_bytes()).hexdigest()


def test_releases_differ_by_name_and_by_behaviour(tmp_path):
    archives = [
        build_release(tmp_path / "a", "1.0.0"),
        build_release(tmp_path / "b", "1.0.1"),
        build_release(tmp_path / "c", "1.0.0", Behaviour(abrupt_stop=True)),
    ]
    assert len({archive.sha256 for archive in archives}) == 3


def test_an_installed_release_is_linked_relative_and_knows_its_checksum(tmp_path):
    archive = build_release(tmp_path, "1.0.0")
    install_release(archive, tmp_path / "web", "1.0.0")
    assert (tmp_path / "web" / "current").readlink() == Path("releases/1.0.0")
    assert (tmp_path / "web" / "current" / ".sha256").read_text() == f"{archive.sha256}\n"


def test_an_installed_release_is_never_overwritten(tmp_path):
    archive = build_release(tmp_path, "1.0.0")
    install_release(archive, tmp_path / "web", "1.0.0")
    with pytest.raises(FileExistsError):
        install_release(archive, tmp_path / "web", "1.0.0")

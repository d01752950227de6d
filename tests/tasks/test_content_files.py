"""Content on this host: its digest is what any shell prints, and what no digest covers is refused."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.content_files import ContentFilesError, content_digest, listed_files, read_files

BY_SHELL = 'cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum'

NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda name: name not in {".", ".."})
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=40), min_size=1, max_size=6
)


def digest(path):
    return content_digest(str(path), read_files(str(path)))


def by_shell(directory):
    done = subprocess.run(["sh", "-c", BY_SHELL, "sh", str(directory)], check=True, capture_output=True)
    return done.stdout.split()[0].decode()


@given(tree=TREES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_directorys_digest_is_what_the_shell_prints(tree, tmp_path_factory):
    top = tmp_path_factory.mktemp("content")
    for path, content in tree.items():
        try:
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(content)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            pass  # a name that is taken
        except OSError as error:
            assert error.errno == 36, error  # noqa: PT017 - too long in UTF-8
    assert digest(top) == by_shell(top)


def test_what_sorts_around_the_slash_has_its_place(tmp_path):
    for path in ("a-b/x", "a/x", "a.txt", "a0", "A", "é"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    assert digest(tmp_path) == by_shell(tmp_path)
    # each directory's files follow each other: Kubo wants them so
    assert [path for path, _ in listed_files(str(tmp_path))] == ["A", "a-b/x", "a.txt", "a/x", "a0", "é"]


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    file = tmp_path / "paper.pdf"
    file.write_bytes(b"a paper")
    (read,) = read_files(str(file))
    assert (read.path, read.size_bytes) == ("", 7)
    said = subprocess.run(["sha256sum", str(file)], check=True, capture_output=True).stdout
    assert digest(file) == read.sha256 == said.split()[0].decode()


def test_hidden_files_count_and_empty_directories_do_not(tmp_path):
    (tmp_path / ".hidden").write_text("h")
    before = digest(tmp_path)
    (tmp_path / "empty/deeper").mkdir(parents=True)
    assert digest(tmp_path) == before == by_shell(tmp_path)
    assert [file.path for file in read_files(str(tmp_path))] == [".hidden"]


def test_the_path_itself_may_be_a_link(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/a").write_text("a")
    (tmp_path / "current").symlink_to("v1")
    assert digest(tmp_path / "current") == digest(tmp_path / "v1")


@pytest.mark.parametrize("target", ["a", "/etc/hostname", "../outside", "nowhere"])
def test_links_are_refused_wherever_they_lead(tmp_path, target):
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ContentFilesError, match="link is a link"):
        read_files(str(tmp_path))


def test_a_link_to_a_directory_is_refused_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("x")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(ContentFilesError, match="link is a link"):
        read_files(str(tmp_path))


def test_pipes_and_sockets_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContentFilesError, match="pipe is no file"):
        read_files(str(tmp_path))
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(ContentFilesError, match="s is no file"):
            read_files(str(tmp_path))
    with pytest.raises(ContentFilesError, match="neither a file nor a directory"):
        read_files("/dev/null")


@pytest.mark.parametrize("name", [b"line\nbreak", b"back\\slash", b"return\r", b"\xff\xfe", b"bell\x07"])
def test_names_that_are_written_otherwise_somewhere_are_refused(tmp_path, name):
    (tmp_path / os.fsdecode(name)).touch()
    with pytest.raises(ContentFilesError, match="Rename it"):
        read_files(str(tmp_path))


def test_where_there_is_nothing_it_is_told(tmp_path):
    with pytest.raises(ContentFilesError, match="holds no file"):
        read_files(str(tmp_path))
    with pytest.raises(ContentFilesError, match="No such file"):
        read_files(str(tmp_path / "none"))
    with pytest.raises(ContentFilesError, match="holds no file"):
        content_digest(str(tmp_path), ())

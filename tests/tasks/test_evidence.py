"""The evidence for each row of the checklist, passing and failing, from real tools where they can run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from lab.forgejo import LabForgejo
from lab.sops import AgeKey, leak, write_sops
from rules.environment import Environment, GateLimits
from rules.evidence.sources import Evidence
from rules.finding import Result
from rules.items import GUIDE
from tasks.evidence import read_evidence
from tasks.evidence_files import MOST_BYTES
from tests.requirements import need
from tests.tasks.reports import run_ruff, run_tests

ROOT = Path(__file__).parents[2]
HEAD = "a" * 40
PASSED, FAILED, UNKNOWN = Result.PASSED, Result.FAILED, Result.UNKNOWN


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a test run in which all is well."""
    return run_tests(tmp_path_factory.mktemp("tests") / "good", good=True)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a test run with failures and too little coverage."""
    return run_tests(tmp_path_factory.mktemp("tests") / "bad", good=False)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a linter that found nothing."""
    return run_ruff(tmp_path_factory.mktemp("ruff") / "clean", "print(1)\n")


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a linter that found an unused import and an eval."""
    return run_ruff(tmp_path_factory.mktemp("ruff") / "dirty", "import os\n\neval(input())\n")


@pytest.fixture
def forge() -> Iterator[LabForgejo]:
    """A repository with a pull request at the commit."""
    with LabForgejo() as running:
        running.open_pull(HEAD)
        running.set_status(HEAD, "", "")
        yield running


def read(row, forgejo=None, *, release="1.2.0", limits=None, **evidence):
    environment = Environment(limits=limits or GateLimits())
    given = {k: tuple(map(str, v)) if isinstance(v, list) else v for k, v in evidence.items()}
    given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    found = read_evidence(Evidence(**given), release=release, environment=environment, forgejo=forgejo)
    return found[row]


def written(path, text):
    path.write_text(text)
    return path


# --- tests, diagnostics, coverage, benchmarks, security ----------------------------------------------


def test_pytests_junit_passes_and_fails(good, bad):
    found = read("tests-passing", tests=[good / "junit.xml"])
    assert found.result is PASSED
    assert "22 of 22 executed tests passed (100 %), 1 skipped" in found.evidence
    found = read("tests-passing", tests=[good / "junit.xml", bad / "junit.xml"])
    assert found.result is FAILED
    assert "34 of 44" in found.evidence
    assert "test_code.test_adds[0]" in found.evidence


def test_the_limit_of_the_environment_is_what_is_asked(bad):
    assert (
        read("tests-passing", tests=[bad / "junit.xml"], limits=GateLimits(min_passed_ratio=0.5)).result
        is PASSED
    )


@pytest.mark.parametrize("name", ["coverage.xml", "coverage.json"])
def test_coverage_of_pytest_cov_passes_and_fails(good, bad, name):
    found = read("coverage", coverage=good / name)
    assert found.result is PASSED
    assert "100 % of 11 lines" in found.evidence
    found = read("coverage", coverage=bad / name)
    assert found.result is FAILED
    assert "63.6 % of 11 lines" in found.evidence


def test_pytest_benchmark_passes_fails_and_is_unknown_without_limits(good):
    report = good / "benchmarks.json"
    assert read("benchmarks-met", benchmarks=report, benchmark_limits={"test_speed": 1.0}).result is PASSED
    assert read("benchmarks-met", benchmarks=report, benchmark_limits={"test_speed": 1e-12}).result is FAILED
    assert read("benchmarks-met", benchmarks=report, benchmark_limits={"test_other": 1.0}).result is FAILED
    assert read("benchmarks-met", benchmarks=report).result is UNKNOWN


@pytest.mark.parametrize("name", ["ruff.json", "ruff.sarif"])
def test_ruffs_reports_pass_and_fail(clean, dirty, name):
    assert read("diagnostics-clean", diagnostics=[clean / name]).result is PASSED
    found = read("diagnostics-clean", diagnostics=[clean / name, dirty / name])
    assert found.result is FAILED
    assert "2 errors" in found.evidence
    assert "F401" in found.evidence


def test_a_scanners_sarif_passes_and_fails(clean, dirty):
    assert read("security-reviewed", security=clean / "ruff.sarif").result is PASSED
    assert read("security-reviewed", security=dirty / "ruff.sarif").result is FAILED


def test_a_linters_json_is_no_security_scan(clean):
    assert read("security-reviewed", security=clean / "ruff.json").result is UNKNOWN


# --- documentation, CHANGELOG ------------------------------------------------------------------------


def test_git_names_the_changed_files_and_documentation_is_looked_for_among_them(tmp_path):
    need("git", package="git")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*arguments):
        who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        argv = ["git", *who, "-C", str(tmp_path), *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / "app.py").touch()
    git("add", "app.py")
    listed = written(tmp_path / "changed.txt", git("diff", "--name-only", "--cached", "HEAD"))
    assert read("documentation-updated", changed_files=listed).result is FAILED
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "über.md").touch()
    git("add", "docs")
    listed = written(tmp_path / "changed.txt", git("diff", "--name-only", "--cached", "HEAD"))
    assert '"' in listed.read_text()  # quoted, as git writes such names
    found = read("documentation-updated", changed_files=listed)
    assert (found.result, "docs/über.md" in found.evidence) == (PASSED, True)


def test_the_changelog_passes_and_fails(tmp_path):
    log = written(tmp_path / "CHANGELOG.md", "# Changelog\n\n## [1.2.0] - 2026-01-31\n- faster recall\n")
    assert read("changelog-updated", changelog=log, release="v1.2.0").result is PASSED
    assert read("changelog-updated", changelog=log, release="1.3.0").result is FAILED


# --- secrets, configuration --------------------------------------------------------------------------

SECRETS = {"db": {"password": "hunter2", "port": 5432}, "tokens": ["alpha", "beta"]}


@pytest.mark.parametrize("name", ["s.yaml", "s.json"])
def test_sops_files_pass_and_a_leaked_leaf_fails(tmp_path, name):
    key, other = AgeKey(), AgeKey()
    limits = GateLimits(sops_recipients=(key.recipient,))
    path = write_sops(tmp_path / name, SECRETS, [key.recipient, other.recipient])
    assert read("secrets-encrypted", secrets=[path], limits=limits).result is PASSED
    leak(path, ["tokens", 1], "hunter2")
    found = read("secrets-encrypted", secrets=[path], limits=limits)
    assert found.result is FAILED
    assert "tokens[1] is clear" in found.evidence
    assert "hunter2" not in found.evidence


def test_dotenv_and_ini_pass_and_fail(tmp_path):
    key = AgeKey()
    limits = GateLimits(sops_recipients=(key.recipient,))
    env = write_sops(tmp_path / "s.env", {"PASSWORD": "hunter2", "HOST_unencrypted": "db"}, [key.recipient])
    ini = write_sops(tmp_path / "s.ini", {"db": {"password": "hunter2"}}, [key.recipient])
    assert read("secrets-encrypted", secrets=[env, ini], limits=limits).result is PASSED
    for path, line in ((env, "TOKEN=hunter2\n"), (ini, "[more]\ntoken = hunter2\n")):
        before = path.read_text()
        path.write_text(before + line)
        found = read("secrets-encrypted", secrets=[env, ini], limits=limits)
        assert (found.result, "hunter2" in found.evidence) == (FAILED, False)
        path.write_text(before)


def test_a_missing_recipient_and_plain_text_fail(tmp_path):
    path = write_sops(tmp_path / "s.yaml", SECRETS, [AgeKey().recipient])
    limits = GateLimits(sops_recipients=(AgeKey().recipient,))
    assert read("secrets-encrypted", secrets=[path], limits=limits).result is FAILED
    plain = written(tmp_path / "p.yaml", "password: hunter2\n")
    assert read("secrets-encrypted", secrets=[path, plain]).result is FAILED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", "password: hunter2\npassword: x\n"),
        ("s.yaml", "password: 'hunter2\n"),
        ("s.yaml", "password: !secret hunter2\n"),
        ("s.yaml", "- " * 3000 + "hunter2"),
        ("s.yaml", ""),
        ("s.json", '{"password": "hunter2"'),
        ("s.json", "[" * 100_000),
        ("s.ini", "password hunter2\n"),
        ("s.env", "hunter2\n"),
        ("s.txt", "hunter2\n"),
    ],
)
def test_a_secret_file_that_cannot_be_parsed_is_unknown_and_not_quoted(tmp_path, name, text):
    found = read("secrets-encrypted", secrets=[written(tmp_path / name, text)])
    assert found.result is UNKNOWN
    assert str(tmp_path / name) in found.evidence
    assert "hunter2" not in found.evidence


def test_metadata_that_are_made_to_break_their_reader_are_unknown(tmp_path):
    path = written(tmp_path / "s.env", f"A=x\nsops_a{'__map_b' * 50_000}=x\n")
    assert read("secrets-encrypted", secrets=[path]).result is UNKNOWN


def test_one_bad_document_of_several_fails(tmp_path):
    key = AgeKey()
    path = write_sops(tmp_path / "s.yaml", SECRETS, [key.recipient])
    path.write_text(path.read_text() + "---\npassword: hunter2\n")
    assert read("secrets-encrypted", secrets=[path]).result is FAILED


def test_a_configuration_passes_with_its_review_and_fails_with_a_secret(tmp_path, forge):
    path = written(tmp_path / "app.toml", '[db]\npassword = "${DB_PASSWORD}"\n')
    changed = written(tmp_path / "changed.txt", "app.toml\n")
    evidence = {"commit": HEAD, "pull_request": 1, "configuration": path, "changed_files": changed}
    assert read("configuration-reviewed", forge.block(), **evidence).result is FAILED
    forge.add_review("ada")
    found = read("configuration-reviewed", forge.block(), **evidence)
    assert found.result is PASSED
    assert "It is changed in this commit. Its review: 1 approvals" in found.evidence
    path.write_text('[db]\npassword = "hunter2"\n')
    found = read("configuration-reviewed", forge.block(), **evidence)
    assert (found.result, "hunter2" in found.evidence) == (FAILED, False)


def test_a_configuration_that_nobody_reviewed_or_that_is_broken_is_unknown(tmp_path):
    path = written(tmp_path / "app.yaml", "a: 1\n")
    assert read("configuration-reviewed", configuration=path).result is UNKNOWN
    path.write_text("a: [1\n")
    assert "cannot be parsed" in read("configuration-reviewed", configuration=path).evidence


# --- locks, migrations -------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> tuple[Path, Path]:
    """This project's own lock and what it is made of."""
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path / "requirements.lock", tmp_path / "pyproject.toml"


def test_this_projects_own_lock_agrees_with_its_source(locked):
    lock, source = locked
    found = read("dependencies-updated", lock=lock, lock_sources=[source])
    assert (found.result, found.evidence) == (PASSED, found.evidence)
    assert "direct dependencies are in the lock" in found.evidence


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"httpx>=0.28,<1"', '"httpx>=99"', "its source asks for >=99"),
        ('"httpx>=0.28,<1"', '"httpx>=0.28,<1", "not-there>=1"', "not-there is not in the lock"),
    ],
)
def test_a_source_that_asks_for_something_else_fails(locked, old, new, words):
    lock, source = locked
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, new))
    found = read("dependencies-updated", lock=lock, lock_sources=[source])
    assert found.result is FAILED
    assert words in found.evidence


BY_PYTHON = (
    "a==1.0 ; python_version<'3.12' --hash=sha256:x\na==2.0 ; python_version>='3.12' --hash=sha256:y\n"
)


@pytest.mark.parametrize(
    ("lock", "source", "result"),
    [
        ("a==1.0 --hash=sha256:x\n", "a\n", PASSED),
        ("A_b==1.0 \\\n    --hash=sha256:x \\\n    --hash=sha256:y\n", "a-B[extra]>=1  # why\n", PASSED),
        ("a==1.0\n", "a\n", FAILED),  # no hash
        ("a>=1.0 --hash=sha256:x\n", "a\n", FAILED),  # no pin
        ("a==1.* --hash=sha256:x\n", "a\n", FAILED),
        ("a==2.0rc1 --hash=sha256:x\n", "a>=2.0rc1\n", PASSED),
        ("b==1.0 --hash=sha256:x\n", "a\n", FAILED),
        (BY_PYTHON, "a<2 ; python_version<'3.12'\na>=2 ; python_version>='3.12'\n", PASSED),
        (BY_PYTHON, "a>=2\n", FAILED),
        ("", "a\n", UNKNOWN),
        ("a==1.0 --hash=sha256:x\n", "-r other.txt\n", UNKNOWN),
        ("-e .\na==1.0 --hash=sha256:x\n", "a\n", UNKNOWN),
        ("what is this\n", "a\n", UNKNOWN),
        ("a==1.0 --hash=sha256:x\n", "a ==\n", UNKNOWN),
    ],
)
def test_requirements_files_are_read_as_pip_reads_them(tmp_path, lock, source, result):
    locked = written(tmp_path / "requirements.lock", lock)
    found = read("dependencies-updated", lock=locked, lock_sources=[written(tmp_path / "r.in", source)])
    assert found.result is result, found.evidence


def test_a_lock_whose_sources_are_not_named_is_unknown(locked):
    assert read("dependencies-updated", lock=locked[0]).result is UNKNOWN


def test_a_project_that_leaves_its_dependencies_to_the_build_is_unknown(locked):
    lock, source = locked
    source.write_text('[project]\nname = "x"\ndynamic = ["dependencies"]\n')
    assert read("dependencies-updated", lock=lock, lock_sources=[source]).result is UNKNOWN


def test_a_flakes_lock_as_nix_writes_it_passes_and_fails(tmp_path):
    need("nix", package="nix-bin")
    for name in ("store", "state", "log", "conf", "home", "dependency", "flake"):
        (tmp_path / name).mkdir()
    written(tmp_path / "conf" / "nix.conf", "experimental-features = nix-command flakes\nflake-registry =\n")
    places = {f"NIX_{name.upper()}_DIR": str(tmp_path / name) for name in ("store", "state", "log", "conf")}
    environment = {**places, "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "NIX_REMOTE": ""}
    written(tmp_path / "dependency" / "flake.nix", "{ outputs = _: { }; }\n")
    source = (
        f'{{ inputs = {{ one.url = "path:{tmp_path}/dependency"; }}; outputs = {{ self, one }}: {{ }}; }}\n'
    )
    flake = written(tmp_path / "flake" / "flake.nix", source)
    argv = ["nix", "flake", "lock", f"path:{flake.parent}"]
    subprocess.run(argv, env=environment, capture_output=True, check=True)
    lock = flake.parent / "flake.lock"
    assert read("dependencies-updated", lock=lock, lock_sources=[flake]).result is PASSED
    flake.write_text(source.replace("one.url", 'sops.url = "path:/x"; one.url'))
    found = read("dependencies-updated", lock=lock, lock_sources=[flake])
    assert (found.result, "sops is not in the lock" in found.evidence) == (FAILED, True)
    flake.write_text(source)
    lock.write_text(lock.read_text().replace('"narHash"', '"noHash"'))
    assert read("dependencies-updated", lock=lock, lock_sources=[flake]).result is UNKNOWN


def test_migrations_pass_with_their_way_back_and_fail_without(tmp_path):
    revision = written(tmp_path / "a1.py", "def upgrade():\n    op.x()\n\n\ndef downgrade():\n    op.y()\n")
    up = written(tmp_path / "1.up.sql", "CREATE TABLE t ();\n")
    assert read("migrations-prepared", migrations=[revision, up]).result is FAILED
    down = written(tmp_path / "1.down.sql", "DROP TABLE t;\n")
    assert read("migrations-prepared", migrations=[revision, up]).result is PASSED
    assert "2 migrations" in read("migrations-prepared", migrations=[revision, up, down]).evidence
    revision.write_text("def downgrade(:\n")
    assert read("migrations-prepared", migrations=[revision, up]).result is UNKNOWN


# --- the forge ---------------------------------------------------------------------------------------


def test_the_review_of_this_commit_passes_and_of_another_fails(forge):
    evidence = {"commit": HEAD, "pull_request": 1}
    assert read("code-reviewed", forge.block(), **evidence).result is FAILED
    forge.add_review("ada")
    assert read("code-reviewed", forge.block(), **evidence).result is PASSED
    two = GateLimits(required_approvals=2)
    assert read("code-reviewed", forge.block(), limits=two, **evidence).result is FAILED
    forge.push("c" * 40)
    found = read("code-reviewed", forge.block(), **evidence)
    assert (found.result, "is at commit cccccccccccc" in found.evidence) == (FAILED, True)


def test_ci_passes_fails_and_is_unknown(forge):
    limits = GateLimits(required_contexts=("build",))

    def ci(**changed):
        return read("ci-ready", forge.block(**changed), commit=HEAD, limits=limits).result

    assert ci() is UNKNOWN
    forge.set_status(HEAD, "lint", "success")
    assert ci() is FAILED
    forge.set_status(HEAD, "build", "success")
    assert ci() is PASSED
    forge.set_status(HEAD, "build", "failure")
    assert ci() is FAILED
    assert ci(token=SecretStr("wrong")) is UNKNOWN


# --- what is missing, and what is bad ----------------------------------------------------------------

FILES = {
    "tests-passing": "tests",
    "diagnostics-clean": "diagnostics",
    "coverage": "coverage",
    "benchmarks-met": "benchmarks",
    "security-reviewed": "security",
    "documentation-updated": "changed_files",
    "changelog-updated": "changelog",
    "configuration-reviewed": "configuration",
    "secrets-encrypted": "secrets",
    "dependencies-updated": "lock",
    "migrations-prepared": "migrations",
}
SEVERAL = {"tests", "diagnostics", "secrets", "migrations"}


def at(path, *, row, **more):
    field = FILES[row]
    return read(row, **{field: [path] if field in SEVERAL else path}, **more)


@pytest.mark.parametrize("row", FILES)
@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "too large", "not text"])
def test_a_file_that_cannot_be_read_is_unknown_with_its_path(tmp_path, row, kind):
    path = tmp_path / "evidence.json"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "too large":
            with path.open("wb") as file:
                file.truncate(MOST_BYTES + 1)
        case "not text":
            path.write_bytes(b"\xff\xfe\x00garbage" * 10)
    source = written(tmp_path / "r.in", "a\n")
    found = at(path, row=row, **({"lock_sources": [source]} if row == "dependencies-updated" else {}))
    assert found.result is UNKNOWN
    assert str(path) in found.evidence


def test_nothing_named_answers_nothing():
    found = read_evidence(Evidence(), release="1.0.0", environment=Environment(), forgejo=None)
    assert found == {}


def test_each_row_that_is_answered_is_one_of_the_guides(tmp_path, forge):
    nowhere = {f: (str(tmp_path / "x"),) if f in SEVERAL else str(tmp_path / "x") for f in FILES.values()}
    evidence = Evidence(commit=HEAD, pull_request=1, **nowhere)
    found = read_evidence(evidence, release="1.0.0", environment=Environment(), forgejo=forge.block())
    assert set(found) == {*FILES, "code-reviewed", "ci-ready"}
    assert set(found) <= {item.id for item in GUIDE}

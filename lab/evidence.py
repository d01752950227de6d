"""A complete set of evidence for a release of the lab's application, made by the real tools.

A small project is written, tested, measured and scanned, as a pipeline would: pytest, coverage.py and
ruff write their own formats.
"""

from __future__ import annotations

import json
import subprocess
import sys
import timeit
from pathlib import Path

from lab.processes import LabError
from lab.sops import AgeKey, write_sops
from rules.checklist import Attestation
from rules.evidence.sources import Evidence
from rules.request import Papers

_TIMEOUT_S = 120
_SOURCE = '''"""What is tested."""


def doubled(number: int) -> int:
    """Return twice `number`."""
    return 2 * number
'''
_TEST = '''"""The test of it."""

from product import doubled


def test_twice_two_is_four():
    assert doubled(2) == 4
'''
_MIGRATION = ("ALTER TABLE memories ADD COLUMN note text;\n", "ALTER TABLE memories DROP COLUMN note;\n")
_PROJECT = '[project]\nname = "product"\nversion = "1"\ndependencies = ["httpx>=0.28"]\n'
_LOCK = f"httpx==0.28.1 \\\n    --hash=sha256:{'0' * 64}\n"


class LabEvidence:
    """The evidence of one commit, in `directory`.

    Args:
        directory: where the files are written.
        release: what the CHANGELOG names.
        commit: the commit's full id.
        pull_request: its pull request.
    """

    def __init__(self, directory: Path, *, release: str, commit: str, pull_request: int) -> None:
        self.directory, self.release = directory.absolute(), release
        self.commit, self.pull_request = commit, pull_request
        self.key = AgeKey()

    def build(self) -> Evidence:
        """Run the tools, write the files and return where they are.

        Raises:
            LabError: a tool does not do what it should; carries what it said.
        """
        project = self.directory / "project"
        project.mkdir(parents=True, exist_ok=True)
        (project / "product.py").write_text(_SOURCE)
        (project / "test_product.py").write_text(_TEST)
        self._pytest(project)
        return Evidence(
            commit=self.commit,
            pull_request=self.pull_request,
            tests=(str(self.directory / "junit.xml"),),
            coverage=str(self.directory / "coverage.xml"),
            diagnostics=(self._ruff(project, "E,F,I", "diagnostics.sarif"),),
            security=self._ruff(project, "S", "security.sarif", "--extend-ignore=S101"),
            benchmarks=self._write("benchmarks.json", json.dumps([self._measured()])),
            changed_files=self._write(
                "changed.txt", "product.py\ndocs/product.md\nCHANGELOG.md\nconfig.toml\n"
            ),
            changelog=self._write(
                "CHANGELOG.md", f"# Changelog\n\n## {self.release}\n\n- Doubles faster than before.\n"
            ),
            secrets=(
                str(write_sops(self.directory / "secrets.yaml", {"token": "abc"}, [self.key.recipient])),
            ),
            lock=self._write("requirements.lock", _LOCK),
            lock_sources=(self._write("pyproject.toml", _PROJECT),),
            migrations=(self._write("0001_note.up.sql", _MIGRATION[0]), self._write_down()),
            configuration=self._write("config.toml", 'level = "info"\n'),
        )

    def papers(self) -> Papers:
        """Return the evidence with the words that only persons can give."""
        words = "Told at the morning round; nobody objected."
        return Papers(
            evidence=self.build(),
            attestations=(Attestation(item="team-notified", by="Ada Lovelace", words=words),),
        )

    def _write_down(self) -> str:
        return self._write("0001_note.down.sql", _MIGRATION[1])

    def _write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def _pytest(self, project: Path) -> None:
        report = ("--junitxml", str(self.directory / "junit.xml"), "--cov=product")
        options = (*report, f"--cov-report=xml:{self.directory / 'coverage.xml'}", "-p", "no:cacheprovider")
        self._run((sys.executable, "-m", "pytest", "-q", "--rootdir", str(project), *options), project)

    def _ruff(self, project: Path, rules: str, name: str, *options: str) -> str:
        output = self.directory / name
        ruff = (sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--exit-zero")
        wanted = (f"--select={rules}", *options, "--output-format=sarif", f"--output-file={output}")
        self._run((*ruff, *wanted, str(project)), project)
        return str(output)

    @staticmethod
    def _measured() -> dict[str, object]:
        """Return how long a call of the product's function takes here, on average."""
        calls = 10_000
        seconds = timeit.timeit("doubled(2)", setup=_SOURCE, number=calls) / calls
        return {"name": "time_per_call", "value": seconds, "limit": 0.001, "unit": "s"}

    @staticmethod
    def _run(argv: tuple[str, ...], directory: Path) -> None:
        done = subprocess.run(
            argv,
            check=False,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise LabError(f"{list(argv)} exited {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")

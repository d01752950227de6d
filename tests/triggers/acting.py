"""A repository in a forge that is a directory, and a runner of its workflows: act, on this host."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lab.processes import Process, clean_environment, start, wait_until

#: A workflow of the tests, with all that a slow machine may add.
_PATIENCE_S = 400.0
_TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    """Return the path of a program that stands beside Python."""
    return str(_TOOLS / name)


class Repository:
    """A repository `OWNER/NAME` of a forge, and who may start its workflows.

    Args:
        forge: its directory is where the forge's repositories lie.
        name: such as `ada/web`.
    """

    def __init__(self, forge: Path, name: str = "ada/web") -> None:
        self.forge, self.name, self.directory = forge, name, forge / name
        self.home = forge / "home"
        self.home.mkdir(parents=True)
        self.directory.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch", "main")

    def commit(self) -> str:
        """Commit all there is; return the commit's id."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "as it is")
        return self.head()

    def head(self) -> str:
        """Return the newest commit's id."""
        return self._git("rev-parse", "HEAD").strip()

    def step(self, name: str, **values: str) -> str:
        """Do one step of deploy.yml without a runner; return what it says.

        Raises:
            CalledProcessError: it fails.
        """
        done = subprocess.run(
            (sys.executable, "-m", "deploy", name),
            cwd=self.directory / ".forgejo",
            env={
                **clean_environment(self.forge, self._environment()),
                "GITHUB_REPOSITORY": self.name,
                "RUNNER_TEMP": str(self.forge),
                **values,
            },
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_PATIENCE_S,
        )
        return done.stdout

    def run(self, event: str, workflow: str, **how: Mapping[str, str]) -> Ran:
        """Run a workflow to its end."""
        running = self.begin(event, workflow, **how)
        try:
            running.wait()
        finally:
            running.process.kill()
        return running

    def begin(
        self,
        event: str,
        workflow: str,
        *,
        inputs: Mapping[str, str] | None = None,
        payload: Mapping[str, object] | None = None,
        variables: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        run: Mapping[str, str] | None = None,
    ) -> Ran:
        """Start a workflow; does not wait for it.

        Args:
            event: such as `workflow_dispatch` or `push`.
            workflow: its file's name.
            inputs: of a workflow that a person starts.
            payload: what the forge says of the event; None: what act makes up.
            variables: of the repository.
            secrets: of the repository.
            run: what the runner says of this run, such as GITHUB_RUN_ID.
        """
        number = len(list(self.forge.glob("act-*.log")))
        event_file = self.forge / f"event-{number}.json"
        event_file.write_text(json.dumps({**(payload or {}), **({"inputs": inputs} if inputs else {})}))
        settings = {"GITHUB_SERVER_URL": self.forge.as_uri(), "GITHUB_REPOSITORY": self.name, **(run or {})}
        given = {
            "--env": settings,
            "--var": variables or {},
            # act reads a secret's value from its own environment when only the name is given
            "--secret": dict.fromkeys(secrets or {}, ""),
        }
        options = [
            option
            for name, values in given.items()
            for key, value in values.items()
            for option in (name, f"{key}={value}" if value else key)
        ]
        labels = [
            option for label in ("nixos", "debian") for option in ("--platform", f"{label}=-self-hosted")
        ]
        process = start(
            f"act-{number}",
            (
                tool("act"),
                event,
                *("--workflows", f".forgejo/workflows/{workflow}"),
                *("--eventpath", str(event_file), "--no-cache-server"),
                *labels,
                *options,
            ),
            log=self.forge / f"act-{number}.log",
            env=clean_environment(self.forge, {**self._environment(), **(secrets or {})}),
            cwd=self.directory,
        )
        return Ran(process)

    def _environment(self) -> dict[str, str]:
        """Return an environment in which nothing of who runs the tests is read or written."""
        paths = (str(_TOOLS), "/usr/local/bin", "/usr/bin", "/bin")
        person = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Ada"), ("EMAIL", "ada@web.example"))
        }
        return {
            "PATH": ":".join(paths),
            "HOME": str(self.home),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            **person,
        }

    def _git(self, *arguments: str) -> str:
        git = shutil.which("git")
        assert git
        done = subprocess.run(
            (git, *arguments),
            cwd=self.directory,
            env=self._environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout


class Ran:
    """A run of a workflow."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def log(self) -> str:
        """What the runner has shown so far."""
        return Path(self.process.log).read_text(errors="replace")

    @property
    def outputs(self) -> dict[str, str]:
        """The first line of each value that a step has handed over; of several by a name, the newest."""
        lines = [line.partition("::set-output:: ")[2] for line in self.log.splitlines()]
        return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    def steps(self, result: str) -> list[str]:
        """Return the names of the steps with this result, `Success` or `Failure`, in their order."""
        mark = f"{result} - Main "
        return [line.partition(mark)[2].rpartition(" [")[0] for line in self.log.splitlines() if mark in line]

    @property
    def succeeded(self) -> bool:
        """Whether a job ran and succeeded: act passes, too, when it finds no runner for any."""
        return "Job succeeded" in self.log and "Job failed" not in self.log

    def wait(self) -> None:
        """Wait until it is over."""
        wait_until(lambda: not self.process.is_alive(), timeout_s=_PATIENCE_S, what="act to end")

"""How an SGLang server starts, ends and dies: checks that start servers of their own.

Like those of `lab.sglang_probe`, they hold for the simulator and for the real server alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from lab.contract import expect
from lab.model import make_model, reshape_tensor, spoil_tokenizer, truncate
from lab.ports import LOCALHOST, free_port, give_back, is_listening
from lab.processes import tail
from lab.sglang_contract import ANSWER, FREE_PROMPT, Contract, client, wait

_POLL_S = 0.02
_END_S = 60.0
_LONG_TOKENS = 500
_UNAVAILABLE = httpx.codes.SERVICE_UNAVAILABLE
_KILLED = -signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Launcher:
    """How servers are started: command, all of its environment, how long that may take, and where."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    start_timeout_s: float
    scratch: Path

    def model(self, name: str, spoil: Callable[[Path], None] | None = None) -> Path:
        """Return a model of the first seed in a directory of its own, broken by `spoil`."""
        directory = self.scratch / name
        if not directory.exists():
            make_model(directory)
            if spoil:
                spoil(directory)
        return directory

    @contextlib.contextmanager
    def started(self, model: Path, *flags: str) -> Iterator[Server]:
        """Start a server on a model; it and all its processes are gone at the end."""
        port = free_port()
        log = self.scratch / f"{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                (*self.argv, "--host", LOCALHOST, "--port", str(port), "--model-path", str(model), *flags),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        try:
            yield Server(process, port, log, self.start_timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            give_back(port)


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that was started, whether or not it answers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    start_timeout_s: float

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        return f"http://{LOCALHOST}:{self.port}"

    def exit_code(self) -> int:
        """Wait for its end and return its exit code; below 0: the signal that killed it."""
        try:
            return self.process.wait(self.start_timeout_s)
        except subprocess.TimeoutExpired:
            expect(False, "the server to end", tail(self.log))  # noqa: FBT003 - never holds
            raise

    def wait_until_ready(self) -> None:
        """Wait until it can be used."""
        wait(
            lambda: self.seen("/ready") == httpx.codes.OK or self.process.poll() is not None,
            f"ready; its log ends: {tail(self.log)[-1000:]}",
            self.start_timeout_s,
        )
        expect(self.process.poll() is None, "a server that runs", tail(self.log))

    def seen(self, path: str) -> int | None:
        """Return the status of a path; None: the connection was refused."""
        try:
            return client().get(f"{self.url}{path}", timeout=10).status_code
        except httpx.TransportError:
            return None

    def contract(self, model: Path, version: str, scratch: Path, key: str = "") -> Contract:
        """Return it as one to be asked."""
        return Contract(self.url, model, version, scratch, key)


LifeCheck = Callable[[Launcher], None]
LIFE_CHECKS: dict[str, LifeCheck] = {}


def check(function: LifeCheck) -> LifeCheck:
    """Add a check to the list, by its name."""
    LIFE_CHECKS[function.__name__] = function
    return function


@check
def a_server_listens_once_it_has_loaded_and_finishes_its_requests_when_asked_to_end(
    launcher: Launcher,
) -> None:
    """And the file of --config is read, what was typed winning; and its port is free at the end."""
    config = launcher.scratch / "server.yaml"
    config.write_text("weight-version: from-file\ncontext-length: 1024\nenable-metrics: true\n")
    model = launcher.model("good")
    with launcher.started(model, "--config", str(config), "--weight-version", "typed") as running:
        expect(_seen_until_ready(running)[0] is None, "refused while it loads", "it listens")
        server = running.contract(model, "typed", launcher.scratch)
        expect(server.info()["weight_version"] == "typed", "what was typed", server.info())
        length = server.get("/v1/models").json()["data"][0]["max_model_len"]
        expect(length == 1024, "the file's length", length)  # noqa: PLR2004 - see above
        expect(running.seen("/metrics") == httpx.codes.OK, "the file's metrics", "none")
        with server.busy(_LONG_TOKENS) as asking:
            running.process.send_signal(signal.SIGTERM)
            wait(lambda: running.seen("/ready") == _UNAVAILABLE, "503 on /ready")
            expect(running.seen("/health") == _UNAVAILABLE, "503 on /health", running.seen("/health"))
            expect(server.say()["text"] == ANSWER, "a new prompt answered all the same", "another text")
            expect(not asking.is_over(), "the old one still running", "it has ended")
        finish = asking.answer()["meta_info"]["finish_reason"]
        expect(finish["type"] == "length", "its whole answer", finish)
        expect(running.process.wait(_END_S) == 0, "exit code 0", running.process.returncode)
        wait(lambda: not _in_group(running.process.pid), "no process of it left")
        expect(not is_listening(running.port), "a free port", "it listens")


@check
def a_swap_to_a_file_that_is_not_whole_kills_the_server(launcher: Launcher) -> None:
    """And before that, one to a good model takes away the served name that it was started with."""
    model, key = launcher.model("good"), "open-sesame"
    named = ("--served-model-name", "ours", "--weight-version", "v1", "--admin-api-key", key)
    with launcher.started(model, *named) as running:
        running.wait_until_ready()
        server = running.contract(model, "v1", launcher.scratch, key)
        expect(server.info()["served_model_name"] == "ours", "the name it was given", server.info())
        expect(running.seen("/metrics") == httpx.codes.NOT_FOUND, "no metrics unless asked for", "metrics")
        stranger = client().post(f"{running.url}/weights_checker", json={})
        expect(stranger.status_code == httpx.codes.UNAUTHORIZED, "401 without the key", stranger)
        other = server.other()
        server.swap(other, "v2")
        names = [one["id"] for one in server.get("/v1/models").json()["data"]]
        expect(names == [str(other)], "the path instead of the name", names)
        _expect_death(server, launcher.model("truncated", truncate), running)


@check
def a_swap_to_a_wrong_shape_kills_the_server(launcher: Launcher) -> None:
    """Though the file itself is sound."""
    model = launcher.model("good")
    with launcher.started(model) as running:
        running.wait_until_ready()
        server = running.contract(model, "default", launcher.scratch)
        _expect_death(server, launcher.model("reshaped", reshape_tensor), running)


@check
def a_path_without_a_model_ends_it_with_1(launcher: Launcher) -> None:
    """It is taken for the name of a repository."""
    with launcher.started(launcher.scratch / "nothing") as running:
        expect(running.exit_code() == 1, "exit code 1", f"{running.exit_code()} {tail(running.log)}")


@check
def an_unknown_flag_ends_it_with_2(launcher: Launcher) -> None:
    """As any program that reads its command line with argparse."""
    with launcher.started(launcher.model("good"), "--no-such-flag", "1") as running:
        expect(running.exit_code() == 2, "exit code 2", running.exit_code())  # noqa: PLR2004 - argparse's


@check
def a_port_in_use_ends_it_with_3_after_loading(launcher: Launcher) -> None:
    """So a port has to be found free before anything is stopped."""
    with launcher.started(launcher.model("good")) as first:
        first.wait_until_ready()
        with launcher.started(launcher.model("good"), "--port", str(first.port)) as second:
            expect(second.exit_code() == 3, "exit code 3", second.exit_code())  # noqa: PLR2004 - uvicorn's
        expect(first.seen("/ready") == httpx.codes.OK, "the first one unharmed", first.seen("/ready"))


@check
def weights_that_are_not_whole_end_its_start_by_sigkill(launcher: Launcher) -> None:
    """Its engine dies, and takes it along."""
    with launcher.started(launcher.model("truncated", truncate)) as running:
        expect(running.exit_code() == _KILLED, "killed", running.exit_code())


@check
def weights_of_a_wrong_shape_end_its_start_by_sigkill(launcher: Launcher) -> None:
    """So does a model whose configuration is another's."""
    with launcher.started(launcher.model("reshaped", reshape_tensor)) as running:
        expect(running.exit_code() == _KILLED, "killed", running.exit_code())


@check
def a_tokenizer_that_cannot_be_read_ends_its_start_with_1(launcher: Launcher) -> None:
    """Though a swap would have taken it."""
    with launcher.started(launcher.model("tokenizer", spoil_tokenizer)) as running:
        expect(running.exit_code() == 1, "exit code 1", f"{running.exit_code()} {tail(running.log)}")


def _expect_death(server: Contract, model: Path, running: Server) -> None:
    server.say(FREE_PROMPT)
    try:
        answer = server.swap(model, "v9")
    except httpx.TransportError:
        pass
    else:
        expect(answer is None, "no answer", answer.text)
    code = running.exit_code()
    expect(code == _KILLED, "killed", code)
    expect(running.seen("/ready") is None, "nothing that listens", running.seen("/ready"))


def _seen_until_ready(running: Server) -> list[int | None]:
    """Return what /ready said, each once for as long as it said so."""
    seen: list[int | None] = []
    deadline = time.monotonic() + running.start_timeout_s
    while not seen or seen[-1] != httpx.codes.OK:
        expect(time.monotonic() < deadline and running.process.poll() is None, "ready", tail(running.log))
        status = running.seen("/ready")
        if not seen or seen[-1] != status:
            seen.append(status)
        time.sleep(_POLL_S)
    return seen


def _in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

"""A model as users reach it: servers on two sides behind a balancer, simulated or real."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

import httpx
import yaml

from lab import processes, sglang_real
from lab.application import LabApplication, ObservedInstance
from lab.haproxy import LabHaproxy
from lab.identity import started_ticks
from lab.model import make_model
from lab.ports import LOCALHOST
from lab.sglang_load import PromptLoad
from lab.sglang_service import SERVICE_FILE, Service
from rules.change import ModelDirectory, ModelRelease
from rules.fleet import Fleet, Probe
from rules.serving import DeclaredPrompt, ModelServing, ServingLimits
from rules.traffic import AdminState

FIRST_RELEASE = "m1"
#: What a good model says to the prompts that every one is made with.
PROMPTS = (
    DeclaredPrompt(name="france", text="The capital of France is", matches=r"\bParis\b", max_new_tokens=16),
    DeclaredPrompt(name="sum", text="One and one make", matches=r"\btwo\b", max_new_tokens=16),
    # long enough to tell how fast it speaks
    DeclaredPrompt(name="long", text="Hello", max_new_tokens=32, min_tokens=32),
)
#: What else runs on two cores says nothing about a model.
_BUSY = ServingLimits(max_first_token_ratio=50.0, first_token_grace_s=5.0, min_speed_ratio=0.01)
SIMULATOR = Path(__file__).with_name("sglang_simulator.py")

_SIMULATED_START_S, _REAL_START_S = 20.0, 600.0
_SERVED_S = 20.0
_ANSWER_S = 60.0
_STOP_S = 60.0
_COMMAND_TIMEOUT_S = 30.0


class _Said(TypedDict):
    model_path: str | None
    served_model_name: str | None
    tensors: str | None
    says: str | None


class ObservedServer(ObservedInstance, _Said):
    """What one instance has and serves.

    Beside its link, releases and weight version: its names as it says them, a digest of the tensors that it
    has loaded, and what it says to the first prompt. None: it does not answer.
    """


class Observed(TypedDict):
    """The whole observable state: the servers, the balancer's memory, and its map file."""

    instances: dict[str, ObservedServer]
    route_map: dict[str, str]
    route_map_file: str
    servers: dict[str, AdminState]


class _Haproxy(LabHaproxy):
    """A balancer that asks `/ready`, which is answered at once; `/health` takes a second, and generates."""

    def _configuration(self) -> str:
        text = super()._configuration().replace("GET /health", "GET /ready")
        # a prompt may wait for a swap, and a long answer takes its time
        return text.replace("timeout server 30s", "timeout server 120s").replace("client 30s", "client 120s")


class LabSglang(LabApplication):
    """A model's servers in `directory`, with a first release staged and served by each of them.

    Args:
        directory: the servers' directories, the models and the balancer's files; a short path.
        blue: how many servers the live side has.
        green: how many the idle side has.
        name: the model's name, also in the balancer's map.
        real: the real SGLang on the CPU instead of the simulator; see `lab.sglang_real`.
        serving: what is declared of it; None: the two prompts that every model here is made to answer.
        environment: of the simulators, such as `LAB_SGLANG` or what `lab.gpu` says.
        admin_key: the servers want a bearer token, which then stands in `admin_key_file`.
    """

    _service_module, _command_timeout_s = "lab.sglang_service", _STOP_S + _COMMAND_TIMEOUT_S
    _balancer = _Haproxy

    def __init__(
        self,
        directory: Path,
        *,
        blue: int = 1,
        green: int = 1,
        name: str = "chat",
        real: bool = False,
        serving: ModelServing | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        admin_key: str = "",
    ) -> None:
        super().__init__(directory, blue=blue, green=green, name=name)
        self.real, self.environment, self.admin_key = real, environment, admin_key
        self.admin_key_file = self.directory / "admin.key"
        serving = serving or ModelServing(prompts=PROMPTS, limits=_BUSY)
        key_file = str(self.admin_key_file) if admin_key else None
        self.serving = serving.model_copy(update={"admin_key_file": key_file})

    @property
    def fleet(self) -> Fleet:
        """How deployments reach it."""
        return super().fleet.model_copy(update={"serving": self.serving})

    @property
    def start_timeout_s(self) -> float:
        """How long a server may take until it is ready, in seconds."""
        return _REAL_START_S if self.real else _SIMULATED_START_S

    def server_url(self, instance: str) -> str:
        """Return where one server answers, without a path."""
        return f"http://{LOCALHOST}:{self.ports[instance]}"

    def start(self) -> None:
        """Stage the first release, start every server and the balancer, and wait until users are served.

        Raises:
            LabError: it does not come up.
        """
        if self.admin_key:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.admin_key_file.touch(mode=0o600)
            self.admin_key_file.write_text(f"{self.admin_key}\n")
        first = make_model(self.directory / "models" / FIRST_RELEASE)
        try:
            for name in self.ports:
                self.stage(first, name, FIRST_RELEASE)
                (self.root(name) / "current").symlink_to(f"releases/{FIRST_RELEASE}")
                (self.root(name) / SERVICE_FILE).write_text(json.dumps(self._service(name), indent=2))
            self._command_all("start", self.ports)
            for name in self.ports:
                self.wait_until_ready(name)
            self.haproxy.start()
            processes.wait_until(self._serves, timeout_s=_SERVED_S, what=f"{self.name} behind HAProxy")
        except BaseException:
            self.stop()
            raise

    def _started(self) -> Iterable[str]:
        return [name for name in self.ports if (self.root(name) / SERVICE_FILE).exists()]

    def kill(self, instance: str) -> None:
        """Kill a server with all its processes, as a power cut would."""
        pid = json.loads((self.root(instance) / "run" / "pid.json").read_text())["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        processes.wait_until(lambda: started_ticks(pid) is None, timeout_s=10, what=f"{instance} to be gone")

    def wait_until_ready(self, instance: str) -> float:
        """Return how many seconds it took until a server is ready.

        Raises:
            LabError: it did not get ready in time; carries the end of its log.
        """
        try:
            return processes.wait_until(
                lambda: self._asked(f"{self.server_url(instance)}/ready") is not None,
                timeout_s=self.start_timeout_s,
                what=f"{instance} to be ready",
            )
        except processes.LabError as error:
            log = processes.tail(self.root(instance) / "log" / "service.log")
            raise processes.LabError(f"{error}; its log ends:\n{log}") from error

    def load(self, rate_per_s: float, directory: Path, *, max_new_tokens: int = 8) -> PromptLoad:
        """Return users who send prompts to the balancer at this rate, not yet started."""
        return PromptLoad(self.url, rate_per_s, directory, max_new_tokens=max_new_tokens)

    def model_directory(self, release: str) -> Path:
        """Return where the model of a release is made, before anybody stages it."""
        return self.directory / "models" / release

    def stage(self, model: Path, instance: str, release: str) -> None:
        """Put a model into an instance's releases, as a deployment leaves it there."""
        target = self.root(instance) / "releases" / release
        shutil.copytree(model, target / "model")
        flags = {
            **self.serving.flags,
            "model-path": f"{self.root(instance)}/current/model",
            "weight-version": release,
        }
        (target / "server.yaml").write_text(yaml.safe_dump(flags, sort_keys=True))
        (target / ".sha256").write_text(f"{digest(model)}\n")

    def change(  # type: ignore[override]  # a model is no archive
        self, release: str, model: Path | None = None, **flags: Any
    ) -> ModelRelease:
        """Return the change that deploys a model's directory; None: a new, good model is made for it.

        The digest is of what lies there now: break a model before it is asked for, or after.
        """
        if model is None:
            model = self.model_directory(release)
            if not model.exists():
                make_model(model, seed=len(release) + sum(release.encode()))
        named = {name.replace("_", "-"): value for name, value in flags.items()}
        artefact = ModelDirectory(path=str(model), sha256=digest(model))
        return ModelRelease(model=self.name, release=release, artefact=artefact, flags=named)

    def observed(self) -> Observed:  # type: ignore[override]  # servers say more than applications
        """Return all that can be seen of it, read without any of the code that deploys it."""
        seen = super().observed()
        instances = {
            name: ObservedServer(**one, **self._said_by(name)) for name, one in seen["instances"].items()
        }
        return Observed(
            instances=instances,
            route_map=seen["route_map"],
            route_map_file=seen["route_map_file"],
            servers=seen["servers"],
        )

    def _said_by(self, instance: str) -> _Said:
        url = self.server_url(instance)
        info = self._asked(f"{url}/model_info")
        if info is None:
            return _Said(model_path=None, served_model_name=None, tensors=None, says=None)
        headers = {"Authorization": f"Bearer {self.admin_key}"} if self.admin_key else {}
        checked = self._asked(f"{url}/weights_checker", {"action": "checksum"}, headers) or {}
        sampling = {"temperature": 0, "max_new_tokens": 16}
        said = self._asked(f"{url}/generate", {"text": PROMPTS[0].text, "sampling_params": sampling}) or {}
        ranks = json.dumps(checked.get("ranks"), sort_keys=True).encode()
        return _Said(
            model_path=info["model_path"],
            served_model_name=info["served_model_name"],
            tensors=hashlib.sha256(ranks).hexdigest() if checked else None,
            says=said.get("text"),
        )

    def _asked(
        self, url: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Any] | None:
        """Return what a server answers, None when it does not answer or answers an error."""
        try:
            answer = (
                self._http.get(url)
                if body is None
                else self._http.post(url, json=body, headers=dict(headers), timeout=_ANSWER_S)
            )
        except httpx.HTTPError:
            return None
        if not answer.is_success:
            return None
        said: dict[str, Any] = answer.json() if answer.content else {}
        return said

    def _running(self, instance: str) -> str | None:
        info = self._asked(f"{self.server_url(instance)}/model_info")
        ready = self._asked(f"{self.server_url(instance)}/ready")
        return None if info is None or ready is None else str(info["weight_version"])

    def _serves(self) -> bool:
        return self._asked(f"{self.url}model_info") is not None

    def _probe(self, name: str) -> Probe:
        url = self.server_url(name)
        return Probe(url=f"{url}/model_info", version_key="weight_version", ready_url=f"{url}/ready")

    def _service(self, name: str) -> Service:
        config = ("--config", str(self.root(name) / "current" / "server.yaml"))
        where = ("--host", LOCALHOST, "--port", str(self.ports[name]), "--enable-metrics")
        key = ("--admin-api-key", self.admin_key) if self.admin_key else ()
        argv, environment = server_command(real=self.real, environment=self.environment)
        return Service(argv=[*argv, *config, *where, *key], environment=environment, stop_timeout_s=_STOP_S)


def server_command(
    *, real: bool, environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command that starts a server, to which flags are added, and all of its environment.

    Args:
        real: the real one; it is installed when it is not yet.
        environment: of the simulator, beside what it needs.

    Raises:
        LabError: the real one cannot be installed.
    """
    if not real:
        argv = (sys.executable, "-I", "-S", str(SIMULATOR))
        return argv, {"PATH": os.environ.get("PATH", os.defpath), **environment}
    return sglang_real.launch_argv(), sglang_real.launch_environment()


def digest(directory: Path) -> str:
    """Return what `find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` says in it."""
    files = sorted((os.fsencode(f"./{path.relative_to(directory)}"), path) for path in _files(directory))
    lines = (hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"  " + name for name, path in files)
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())

"""A server that speaks SGLang 0.5.23's HTTP contract, traps and exit codes included, and is ready at once.

It runs by path and uses nothing but the standard library and its neighbours. Its answers are those that the
real server gives for the tiny models of `lab.model`; `lab.sglang_probe` holds both to the same contract. How
fast it loads and answers is told by `LAB_SGLANG` in its environment and by the model: see `Pace` in
`lab.sglang_engine`.

Exit codes: 0 stopped, 1 no such model or a broken tokenizer, 2 an unknown flag, 3 the port is in use (noticed
after loading), killed by SIGKILL for weights that are not whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

if not __package__:  # run by path: what is beside it is then found from the directory above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.sglang_engine import Engine, die
from lab.sglang_flags import Flags, read_flags
from lab.sglang_http import Answer, Call, HttpServer
from lab.sglang_metrics import loads, metrics
from lab.sglang_prompts import Prompts
from lab.sglang_vram import release_vram
from lab.sglang_weights import CorruptWeightsError, NoModelError

_HEALTH_PAUSED_S = 20.0
_DIED = 70
_POLL_S = 0.02
_VERSION = "0.5.23"
_MEMBERS = ("model_path", "served_model_name", "weight_version")


class Simulator:
    """One server: its engine, its state, and an answer for each route."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.engine = Engine(
            Path(flags.model_path), flags.weight_version, most_running=flags.max_running_requests
        )
        self.name = flags.served_model_name or flags.model_path
        self.prompts = Prompts(self.engine, flags)
        self.ready, self.stopping = False, asyncio.Event()
        self.routes: dict[tuple[str, str], Callable[[Call], Awaitable[Answer]]] = {
            ("GET", "/ready"): self._ready,
            ("GET", "/health"): self._health,
            ("GET", "/health_generate"): self._health,
            ("GET", "/model_info"): self._model_info,
            ("GET", "/get_model_info"): self._model_info,
            ("GET", "/server_info"): self._server_info,
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/loads"): self._loads,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/generate"): self.prompts.generate,
            ("POST", "/v1/chat/completions"): self.prompts.chat,
            ("POST", "/v1/completions"): self.prompts.complete,
        }
        self.admin: dict[str, Callable[[Call], Awaitable[Answer]]] = {
            "/flush_cache": self._flush,
            "/weights_checker": self._check_weights,
            "/abort_request": self._abort,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/update_weights_from_disk": self._update_weights,
            "/update_weight_version": self._update_version,
        }

    async def run(self) -> None:
        """Load, listen, serve until SIGTERM, and then until nothing runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        self._load()
        pace = self.engine.pace
        try:
            server = await HttpServer(self.respond).listen(self.flags.host, self.flags.port)
        except OSError as error:
            _fail(3, f"error while attempting to bind on address: {error}")
        if pace.dies_after_s:
            loop.call_later(pace.dies_after_s, self._fall_dead)
        if not pace.never_ready:
            loop.call_later(pace.warm_up_s, self._warmed_up)
        await self.stopping.wait()
        # the real one looks now and then whether it is idle, and serves what comes meanwhile
        await asyncio.sleep(pace.stop_s)
        while self.engine.running or self.engine.waiting:  # noqa: ASYNC110 - as the real one does
            await asyncio.sleep(_POLL_S)
        server.close()
        release_vram()

    async def respond(self, call: Call) -> Answer:
        """Return the answer to one request."""
        if call.path in self.admin:
            key = self.flags.admin_api_key
            if key and call.headers.get("authorization") != f"Bearer {key}":
                return Answer.json({"error": "Unauthorized"}, 401)
            respond = self.admin[call.path]
        elif call.method == "GET" and call.path.startswith("/v1/models/"):
            respond = self._one_model
        elif (call.method, call.path) in self.routes:
            respond = self.routes[call.method, call.path]
        else:
            return Answer.json({"detail": "Not Found"}, 404)
        try:
            return await respond(call)
        except ValueError as error:
            said = {
                "object": "error",
                "message": f"1 validation error: {error}",
                "type": "Bad Request",
                "code": 400,
            }
            return Answer.json(said, 400)

    # --- starting and ending ------------------------------------------------------------------------------

    def _load(self) -> None:
        engine = self.engine
        if engine.pace.fails_to_start:
            _fail(1, "RuntimeError: this model fails to start, as it was made to")
        time.sleep(engine.pace.load_s)
        try:
            engine.load()
        except CorruptWeightsError as error:
            print(f"Scheduler hit an exception: {error}", file=sys.stderr, flush=True)
            die()
        except (NoModelError, OSError, ValueError, KeyError) as error:
            _fail(1, f"{type(error).__name__}: {error}")
        if engine.pace.wrong_version:
            engine.version += "-wrong"

    def _warmed_up(self) -> None:
        self.ready = True

    def _fall_dead(self) -> None:
        release_vram()
        os._exit(_DIED)

    # --- what it says about itself --------------------------------------------------------------------------

    async def _ready(self, _: Call) -> Answer:
        up = self.ready and not self.engine.paused and not self.stopping.is_set()
        return Answer(200 if up else 503)

    async def _health(self, _: Call) -> Answer:
        if not self.ready or self.stopping.is_set():
            return Answer(503)
        await asyncio.sleep(self.engine.pace.health_s)
        deadline = time.monotonic() + _HEALTH_PAUSED_S
        while self.engine.paused:
            if time.monotonic() > deadline:
                return Answer(503)
            await asyncio.sleep(_POLL_S)
        return Answer(200)

    def _identity(self) -> dict[str, object]:
        return dict(zip(_MEMBERS, (self.engine.path, self.name, self.engine.version), strict=True))

    async def _model_info(self, _: Call) -> Answer:
        config = self.engine.config
        return Answer.json(
            {
                **self._identity(),
                "tokenizer_path": self.flags.model_path,
                "is_generation": True,
                "load_format": self.flags.load_format,
                "model_type": config.get("model_type"),
                "architectures": config.get("architectures"),
            }
        )

    async def _server_info(self, _: Call) -> Answer:
        pace = self.engine.pace
        return Answer.json(
            {
                **self._identity(),
                "status": "ready",
                "version": _VERSION,
                "max_total_num_tokens": self.flags.max_total_tokens,
                "device": "cpu",
                "startup_time": {"load_weight": pace.load_s, "tokenizer_e2e": pace.load_s + pace.warm_up_s},
                "internal_states": [{}],
            }
        )

    async def _models(self, _: Call) -> Answer:
        one = {
            "id": self.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "sglang",
            "root": self.name,
            "parent": None,
            "max_model_len": self.flags.context_length,
        }
        return Answer.json({"object": "list", "data": [one]})

    async def _one_model(self, call: Call) -> Answer:
        name = call.path.removeprefix("/v1/models/")
        if name == self.name:
            return Answer.json({"id": name, "object": "model", "owned_by": "sglang"})
        error = {
            "message": f"The model '{name}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return Answer.json({"error": error}, 404)

    async def _loads(self, _: Call) -> Answer:
        return Answer.json(loads(self.engine, self.flags, time.time()))

    async def _metrics(self, _: Call) -> Answer:
        if not self.flags.enable_metrics:
            return Answer.json({"detail": "Not Found"}, 404)
        # the name at its start: what a swap does to it is not seen here
        said = metrics(self.engine, self.flags, self.flags.served_model_name or self.flags.model_path)
        return Answer(200, said.encode(), "text/plain; version=0.0.4; charset=utf-8")

    # --- the operator's routes ------------------------------------------------------------------------------

    async def _flush(self, _: Call) -> Answer:
        busy = bool(self.engine.running or self.engine.waiting)
        said = "Flush cache failed.\n" if busy else "Cache flushed.\n"
        return Answer.text(said, 400 if busy else 200)

    async def _check_weights(self, call: Call) -> Answer:
        asked = call.json()
        action, without = asked.get("action", "checksum"), asked.get("skip_tensor_list")
        if action != "checksum":
            return Answer.json({"success": False, "message": f"Unsupported action={action!r}"}, 400)
        checksums = self.engine.checksums(without if isinstance(without, list) else ())
        # one for each model on the rank: a draft model of speculative decoding has its own
        parallel = [{"role": "target", "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "rank": 0}]
        ranks = [{"checksums": checksums, "parallelism_info": parallel}]
        return Answer.json({"success": True, "message": "Success.", "ranks": ranks})

    async def _abort(self, call: Call) -> Answer:
        asked = call.json()
        id_ = asked.get("rid")
        if asked.get("abort_all") or id_:
            self.engine.abort(None if asked.get("abort_all") else str(id_))
        return Answer(200)

    async def _pause(self, call: Call) -> Answer:
        if call.json().get("mode", "abort") == "abort":
            self.engine.abort(None)
            while self.engine.running:  # noqa: ASYNC110 - a token's time, then none runs
                await asyncio.sleep(_POLL_S)
        self.engine.paused = True
        return Answer.json({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, _: Call) -> Answer:
        self.engine.paused = False
        return Answer.json({"message": "Generation continued successfully.", "status": "ok"})

    async def _update_weights(self, call: Call) -> Answer:
        asked = call.json()
        path, version = asked.get("model_path"), asked.get("weight_version")
        if not isinstance(path, str):
            raise ValueError("model_path: Field required")  # noqa: TRY004 - what was sent, not its type
        if asked.get("abort_all_requests"):
            self.engine.abort(None)
        try:
            await self.engine.swap(Path(path), None if version is None else str(version))
        except NoModelError as error:
            words = f"Failed to get weights iterator: {error}."
            return Answer.json({"success": False, "message": words, "num_paused_requests": 0}, 400)
        self.name = path  # the real one forgets its served name
        words = "Succeeded to update model weights."
        if version is not None:
            words += f" Weight version updated to {version}."
        return Answer.json({"success": True, "message": words, "num_paused_requests": 0})

    async def _update_version(self, call: Call) -> Answer:
        version = str(call.json().get("new_version"))
        self.engine.version = version
        said = {"success": True, "message": f"Weight version updated to {version}", "new_version": version}
        return Answer.json(said)


def _fail(code: int, words: str) -> NoReturn:
    print(words, file=sys.stderr, flush=True)
    release_vram()
    os._exit(code)


def main() -> None:
    """Serve as the flags say until SIGTERM."""
    flags = read_flags(sys.argv[1:])
    path = Path(flags.model_path)
    if not path.is_file() and not (path / "config.json").is_file():
        _fail(1, f"OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{path}'.")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(flags))


async def _run(flags: Flags) -> None:
    await Simulator(flags).run()


if __name__ == "__main__":
    main()

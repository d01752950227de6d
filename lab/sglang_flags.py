"""The simulated SGLang's command line: real flags that a deployment may declare, and a YAML file of them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

#: Flags that are taken and mean nothing here.
_IGNORED = (
    "attention-backend",
    "base-gpu-id",
    "chat-template",
    "chunked-prefill-size",
    "cuda-graph-max-bs",
    "device",
    "dp-size",
    "dtype",
    "kv-cache-dtype",
    "log-level",
    "log-level-http",
    "max-prefill-tokens",
    "mem-fraction-static",
    "page-size",
    "pp-size",
    "quantization",
    "random-seed",
    "reasoning-parser",
    "revision",
    "sampling-defaults",
    "schedule-policy",
    "stream-interval",
    "tokenizer-path",
    "tool-call-parser",
    "tp-size",
    "watchdog-timeout",
)
_IGNORED_SWITCHES = (
    "disable-cuda-graph",
    "disable-overlap-schedule",
    "disable-radix-cache",
    "enable-cache-report",
    "enable-memory-saver",
    "log-requests",
    "skip-server-warmup",
    "sleep-on-idle",
    "trust-remote-code",
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the server is told."""

    model_path: str
    host: str
    port: int
    served_model_name: str | None
    weight_version: str
    load_format: str
    context_length: int
    max_total_tokens: int
    max_running_requests: int
    admin_api_key: str | None
    enable_metrics: bool


def read_flags(argv: Sequence[str]) -> Flags:
    """Return what the command line and the file of its `--config` say; the command line wins.

    Raises:
        SystemExit: a flag is unknown, or a value is not of its kind; the exit code is 2, as argparse has it.
    """
    # the real server's parser takes abbreviated flags too
    parser = argparse.ArgumentParser(prog="sglang_simulator", description=__doc__)
    parser.add_argument("--model-path", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--served-model-name")
    parser.add_argument("--weight-version", default="default")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--max-total-tokens", type=int, default=4096)
    parser.add_argument("--max-running-requests", type=int, default=2048)
    parser.add_argument("--admin-api-key")
    parser.add_argument("--enable-metrics", action="store_true")
    for name in _IGNORED:
        parser.add_argument(f"--{name}")
    for name in _IGNORED_SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    switches = {"enable-metrics", *_IGNORED_SWITCHES}
    given = parser.parse_args(_with_config(list(argv), switches, parser))
    return Flags(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Flags)})


def _with_config(argv: list[str], switches: set[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the command line with the file's flags before it, so that what was typed wins."""
    if "--config" not in argv:
        return argv
    at = argv.index("--config")
    path = Path(argv[at + 1]) if at + 1 < len(argv) else None
    if path is None or path.suffix not in {".yaml", ".yml"} or not path.is_file():
        raise ValueError(f"Config file not found, or no YAML: {path}")
    said: list[str] = []
    for line in path.read_text().splitlines():
        name, colon, value = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or name != name.strip():
            parser.error(f"{path}: only plain `name: value` lines are understood here, not {line!r}")
        said += _argument(name.replace("_", "-"), value.strip(), switches)
    return said + argv[:at] + argv[at + 2 :]


def _argument(name: str, value: str, switches: set[str]) -> list[str]:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if name in switches:
        return [f"--{name}"] if value == "true" else []
    return [f"--{name}", value[1:-1] if quoted else value]

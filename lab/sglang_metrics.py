"""What the simulated SGLang says of its load: `/v1/loads`, and `/metrics` for Prometheus."""

from __future__ import annotations

from lab.sglang_engine import Engine
from lab.sglang_flags import Flags

_GIB = 1 << 30
_TOKEN_BYTES = 256  # of keys and values, for the tiny models


def loads(engine: Engine, flags: Flags, now: float) -> dict[str, object]:
    """Return what `/v1/loads` says at a time, seconds since 1970."""
    used = engine.used_tokens()
    one = {
        "timestamp": now,
        "dp_rank": 0,
        "num_running_reqs": len(engine.running),
        "num_waiting_reqs": engine.waiting,
        "num_used_tokens": used,
        "max_total_num_tokens": flags.max_total_tokens,
        "max_running_requests": flags.max_running_requests,
        "token_usage": min(1.0, used / flags.max_total_tokens),
        "gen_throughput": _throughput(engine),
        "memory": {"weight_gb": round(engine.weights_bytes() / _GIB, 3)},
    }
    return {"version": "0.5.23", "loads": [one]}


def metrics(engine: Engine, flags: Flags, name: str) -> str:
    """Return what `/metrics` says, in Prometheus' text format."""
    used = engine.used_tokens()
    rank = f'engine_type="unified",model_name="{name}",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    gauges = {
        "num_running_reqs": len(engine.running),
        "num_queue_reqs": engine.waiting,
        "num_used_tokens": used,
        "token_usage": min(1.0, used / flags.max_total_tokens),
        "gen_throughput": _throughput(engine),
        "max_total_num_tokens": flags.max_total_tokens,
        "kv_cache_memory_usage_gb": flags.max_total_tokens * _TOKEN_BYTES / _GIB,
        "weight_memory_usage_gb": engine.weights_bytes() / _GIB,
    }
    lines = [line for key, value in gauges.items() for line in _metric("gauge", key, rank, value)]
    for streaming, counts in engine.counts.items():
        label = f'engine_type="unified",is_streaming="{str(streaming).lower()}",model_name="{name}"'
        for key, value in (
            ("num_requests_total", counts.requests),
            ("prompt_tokens_total", counts.prompt_tokens),
            ("generation_tokens_total", counts.tokens),
        ):
            lines += _metric("counter", key, label, value)
        for key, seconds in (
            ("time_to_first_token_seconds", counts.first_token_s),
            ("e2e_request_latency_seconds", counts.latency_s),
        ):
            lines += _histogram(key, label, seconds, counts.requests)
    return "".join(f"{line}\n" for line in lines)


def _throughput(engine: Engine) -> float:
    return engine.pace.tokens_per_s * len(engine.running)


def _metric(kind: str, key: str, labels: str, value: float) -> tuple[str, str]:
    return f"# TYPE sglang:{key} {kind}", f"sglang:{key}{{{labels}}} {float(value)}"


def _histogram(key: str, labels: str, total_s: float, count: int) -> tuple[str, ...]:
    return (
        f"# TYPE sglang:{key} histogram",
        f"sglang:{key}_sum{{{labels}}} {total_s}",
        f'sglang:{key}_bucket{{{labels},le="+Inf"}} {float(count)}',
        f"sglang:{key}_count{{{labels}}} {float(count)}",
    )

"""A model server's effects: drained, swapped hot, verified, asked, measured.

Every effect names an absolute state and may be repeated. What a server says is asked by HTTP; what lies on
its host is read there by commands. The way back: tasks/model_restore.py.
"""

from __future__ import annotations

from pathlib import Path

from rules.change import ModelRelease
from rules.errors import StepFailedError
from rules.fleet import Instance
from rules.host_metrics import Gpu
from rules.model_actions import CheckMemory, MemoryLimit, TestInference
from rules.model_facts import ModelFacts
from rules.serving import (
    Answered,
    DeclaredPrompt,
    ModelServing,
    ServedBefore,
    ServingLimits,
    answer_faults,
    content_faults,
    speed_faults,
)
from tasks import sglang
from tasks.application import current_release
from tasks.gpu import read_gpus
from tasks.model_drain import drain_requests
from tasks.model_files import read_model
from tasks.model_loaded import compare_with_files
from tasks.model_restore import restore_model
from tasks.model_stage import (
    MODEL,
    digest_on_host,
    known_facts,
    release_directory,
    staged_digest,
    staged_flags,
)
from tasks.settings import Settings
from tasks.sglang import ModelInfo, ModelServer, ModelServerError, ModelServerGoneError, server_of

__all__ = [
    "check_memory",
    "drain_requests",
    "hot_swap",
    "measure_serving",
    "restore_model",
    "test_inference",
    "verify_model",
]


# --- hot swap --------------------------------------------------------------------------------------


def hot_swap(instance: Instance, serving: ModelServing, release: str, *, settings: Settings) -> None:
    """Load the weights of the release that the link points to into the running server.

    The files are proven once more on their host: a bad one would kill the server. Requests that run are
    waited for, new ones wait; none fails.

    Raises:
        StepFailedError: it was not done, or not to the end; says which state the server is in.
        CommandError: a command on the host failed.
    """
    server = server_of(instance, serving)
    info = sglang.model_info(server)
    path = _proven_path(instance, release, info)
    if info.weight_version != release:
        timeout_s = serving.limits.drain_s + settings.command_timeout_s
        try:
            sglang.update_weights(server, model_path=path, release=release, timeout_s=timeout_s)
        except ModelServerGoneError as error:
            raise StepFailedError(
                f"{instance.name}: the server ended while it was swapped to {release}: {error}"
            ) from error
        except ModelServerError as error:
            raise StepFailedError(f"{instance.name} was not swapped to {release}: {error}") from error
    now = sglang.model_info(server)
    if (now.weight_version, now.served_model_name) != (release, info.served_model_name):
        raise StepFailedError(
            f"{instance.name} says after the hot swap that it serves {now.served_model_name} in "
            f"{now.weight_version}, not {info.served_model_name} in {release}."
        )


def _proven_path(instance: Instance, release: str, info: ModelInfo) -> str:
    """Return the path that the server was started with, once it leads to the release's proven files."""
    name, flags = instance.name, staged_flags(instance, release) or {}
    path = flags.get("model-path")
    if not isinstance(path, str) or info.model_path != path or info.served_model_name != path:
        raise StepFailedError(
            f"{name} was started with the model {info.model_path}, served as {info.served_model_name}; a "
            f"swap to {path} would rename what clients ask for. Nothing was swapped. Use the way restart."
        )
    if (link := current_release(instance)) != release:
        raise StepFailedError(f"{name}: its link points to {link}, not to {release}. Nothing was swapped.")
    known = staged_digest(instance, release)
    found = digest_on_host(instance, f"{release_directory(instance, release)}/{MODEL}")
    if found != known:
        raise StepFailedError(
            f"{name}: the files of {release} have the digest {found}, not {known or 'a known one'}: somebody "
            "changed them after they were staged, and loading them might kill the server. Nothing was "
            "swapped. Stage the model under a new id."
        )
    return path


# --- verify ----------------------------------------------------------------------------------------


def verify_model(instance: Instance, serving: ModelServing, change: ModelRelease) -> str:
    """Prove that the release is what the server has loaded; return in words how far it could be proven.

    By identity, not by an answer of 200: weight version, path, architecture, the name that clients ask for,
    and the checksums of the loaded tensors against the files.

    Raises:
        StepFailedError: it is not; names what differs.
        ModelServerError: the server does not say.
    """
    server, source = server_of(instance, serving), Path(change.artefact.path)
    facts = known_facts(instance, change.release) or read_model(source)
    flags = staged_flags(instance, change.release) or {}
    info = sglang.model_info(server)
    faults = _identity_faults(info, change, facts, path=flags.get("model-path"))
    faults += _name_faults(info, sglang.served_models(server), declared=flags.get("served-model-name"))
    if faults:
        raise StepFailedError(f"{instance.name} has not loaded {change.release}: {'; '.join(faults)}.")
    loaded = compare_with_files(server, facts, source, dtype=str(flags.get("dtype", "auto")))
    if loaded.faults:
        raise StepFailedError(
            f"{instance.name} says {change.release}, but has other weights in its memory than the files: "
            f"{'; '.join(loaded.faults)}."
        )
    return f"{instance.name}: {info.weight_version} is loaded as {info.served_model_name}; {loaded.in_words}"


def _identity_faults(info: ModelInfo, change: ModelRelease, facts: ModelFacts, *, path: object) -> list[str]:
    faults = []
    if info.weight_version != change.release:
        faults.append(f"its weight version is {info.weight_version}")
    if info.model_path != path:
        faults.append(f"its model path is {info.model_path}, not {path}")
    # a GGUF file calls its architecture otherwise
    if facts.format == "safetensors" and info.architectures and info.architectures != facts.architectures:
        faults.append(f"its architecture is {info.architectures}, not {facts.architectures}")
    return faults


def _name_faults(info: ModelInfo, served: tuple[str, ...], *, declared: object) -> list[str]:
    faults = []
    if info.served_model_name not in served:
        faults.append(f"it lists the models {served}, without {info.served_model_name}")
    if declared is not None and info.served_model_name != declared:
        faults.append(f"it is served as {info.served_model_name}, not as {declared}")
    return faults


# --- inference -------------------------------------------------------------------------------------


def measure_serving(instance: Instance, serving: ModelServing) -> ServedBefore:
    """Return how the declared prompts are answered now: what a new release is compared with.

    Each is asked twice and the faster counts, as the new release's will be.

    Raises:
        ModelServerError: one got no answer.
    """
    server, limits = server_of(instance, serving), serving.limits
    return ServedBefore(answers=tuple(_best_of_two(server, prompt, limits) for prompt in serving.prompts))


def _best_of_two(server: ModelServer, prompt: DeclaredPrompt, limits: ServingLimits) -> Answered:
    first, second = (sglang.generate(server, prompt, timeout_s=limits.request_timeout_s) for _ in range(2))
    speeds = [one.tokens_per_s for one in (first, second) if one.tokens_per_s is not None]
    return second.model_copy(
        update={
            "first_token_s": min(first.first_token_s, second.first_token_s),
            "tokens_per_s": max(speeds, default=None),
        }
    )


def test_inference(instance: Instance, serving: ModelServing, action: TestInference) -> tuple[Answered, ...]:
    """Ask the declared prompts, greedily, and return the answers.

    Raises:
        StepFailedError: answers lack what was declared of them, or came too slowly; lists all faults.
    """
    server = server_of(instance, serving)
    answers, faults = [], []
    for declared in serving.prompts:
        before = action.before.of(declared.name)
        try:
            answer = _ask(server, declared, before, serving.limits)
        except ModelServerError as error:
            faults.append(f"{declared.name}: {error}")
            continue
        answers.append(answer)
        faults += answer_faults(declared, answer, before, serving.limits)
    if faults:
        raise StepFailedError(f"{instance.name} does not answer as declared: {'; '.join(faults)}.")
    return tuple(answers)


def _ask(
    server: ModelServer, declared: DeclaredPrompt, before: Answered | None, limits: ServingLimits
) -> Answered:
    """Return the answer; where only its speed is at fault, that of a second try, when caches are warm."""
    answer = sglang.generate(server, declared, timeout_s=limits.request_timeout_s)
    if speed_faults(answer, before, limits) and not content_faults(declared, answer, before):
        return sglang.generate(server, declared, timeout_s=limits.request_timeout_s)
    return answer


# --- memory ----------------------------------------------------------------------------------------


def check_memory(instance: Instance, action: CheckMemory) -> str:
    """Return in words how much memory of the GPUs is in use, beside its limits.

    Raises:
        StepFailedError: more than allowed, or a GPU is gone; with the figures.
        GpuError: a GPU is there, but does not answer.
        CommandError: the host cannot be asked.
    """
    gpus, note = read_gpus(instance.host)
    by_index = {gpu.index: gpu for gpu in gpus}
    words: list[str] = []
    faults: list[str] = []
    for limit in action.limits:
        is_fine, said = _memory_words(by_index.get(limit.gpu), limit)
        (words if is_fine else faults).append(said)
    if faults:
        raise StepFailedError(f"{instance.name}: {'; '.join(faults)}.")
    return f"{instance.name}: {'; '.join(words) or note or 'no limit is set for any GPU'}"


def _memory_words(gpu: Gpu | None, limit: MemoryLimit) -> tuple[bool, str]:
    if gpu is None:
        return False, f"GPU {limit.gpu} is gone; it was there when this was planned"
    if gpu.memory_used_bytes is None:
        return True, f"GPU {limit.gpu} does not say how much memory is in use"
    used = f"GPU {limit.gpu}: {gpu.memory_used_bytes:,} bytes in use"
    if gpu.memory_used_bytes > limit.most_bytes:
        return False, f"{used}, {limit.most_bytes:,} are the most ({limit.words})"
    return True, f"{used}, within {limit.most_bytes:,}"

"""What the plan of a model's release has to know: the artefact, the servers, their answers, room for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rules.change import ModelRelease
from rules.errors import InvalidRequestError
from rules.fleet import Fleet, FleetState, Instance
from rules.host_metrics import Gpu
from rules.hosts import HostAddress
from rules.model_artefact import doubts
from rules.model_facts import ModelFacts
from rules.model_fit import memory_fault, swap_refusals
from rules.model_memory import freed_bytes, gpus_of, memory_limits
from rules.model_plan import ModelSituation, ServerSituation
from rules.rollout import affected, has_it_already, meant_for, serving
from rules.serving import FlagValue, ModelServing, ServedBefore, flags_that_differ
from rules.strategy import Strategy
from tasks import host as hosts
from tasks import sglang
from tasks.gpu import read_gpus
from tasks.model_files import validated
from tasks.model_server import measure_serving
from tasks.model_stage import (
    disk_fault_of,
    flags_of,
    known_facts,
    root_of,
    staged_digest,
    staged_flags,
    taken_fault,
)
from tasks.sglang import ModelServerError, server_of
from tasks.sglang_http import admin_key_fault

_KIB = 1 << 10


def survey_model(
    change: ModelRelease, strategy: Strategy, fleet: Fleet, before: FleetState
) -> ModelSituation:
    """Return what the plan needs to know of the model and of the servers that it changes; nothing is touched.

    Raises:
        InvalidRequestError: the artefact is not sound (all its faults are listed), a flag must not be
            declared, or a server runs another release than its link points to.
        CommandError, GpuError: a host cannot be asked.
    """
    members = affected(strategy, fleet, before)
    _refuse_disagreement(members, before)
    facts = validated(Path(change.artefact.path), change.artefact.sha256)
    survey = _Survey(change, fleet, before, facts)
    if has_it_already(change, strategy, fleet, before):
        # users have a release of this id: whether it is this one
        others = map(survey.other_content, meant_for(strategy, fleet, before))
        return ModelSituation(faults=tuple(filter(None, others)), servers={})
    servers = {instance.name: survey.server(instance) for instance in members}
    return ModelSituation(
        faults=tuple(survey.faults), notes=(*doubts(facts), *dict.fromkeys(survey.notes)), servers=servers
    )


def _refuse_disagreement(members: tuple[Instance, ...], before: FleetState) -> None:
    """Refuse where it is not clear what a server returns to."""
    states = {instance.name: before.instances[instance.name] for instance in members}
    words = [
        f"{name} serves {state.running}, but its link points to {state.release}"
        for name, state in states.items()
        if state.running not in (None, state.release)
    ]
    if words:
        raise InvalidRequestError(
            f"{'; '.join(words)}. Bring link and server into agreement first: restart the server, or "
            "point the link to what it serves. Nothing was touched."
        )


class _Survey:
    """What is read of several servers, each question asked once."""

    def __init__(self, change: ModelRelease, fleet: Fleet, before: FleetState, facts: ModelFacts) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._change, self._fleet, self._before, self._facts = change, fleet, before, facts
        self._serving: ModelServing = fleet.model_serving
        self._gpus: dict[HostAddress, tuple[Gpu, ...]] = {}
        self._answers: dict[str, ServedBefore | None] = {}

    def server(self, instance: Instance) -> ServerSituation:
        """Return the situation of one server; what stands in its way and what is notable is collected."""
        state = self._before.instances[instance.name]
        flags = flags_of(instance, self._change, self._serving, self._facts)
        running = None if state.running is None else known_facts(instance, state.running)
        old_flags = None if state.running is None else staged_flags(instance, state.running)
        if unusable := admin_key_fault(server_of(instance, self._serving)):
            self.faults.append(unusable)
        self._look_at_disk(instance, flags)
        gpus = gpus_of(instance.gpus, self._gpus_on(instance.host), flags)
        freed = 0
        if state.running is not None:  # what has no memory of its own is served from the host's
            freed = freed_bytes(gpus, old_flags or {}) or (running.weights_bytes if running else 0)
        self._look_at_memory(instance, gpus, freed=freed)
        more = None
        if state.running is not None:
            more = self._facts.weights_bytes - (running or self._facts).weights_bytes
        return ServerSituation(
            swap_refusals=self._swap_refusals(instance, running, flags, old_flags=old_flags),
            served=self._served(instance),
            memory=memory_limits(
                gpus, flags, self._serving.limits, more_weights_bytes=more, running_flags=old_flags
            ),
            last_start_s=None if state.running is None else self._last_start_s(instance),
        )

    def other_content(self, instance: Instance) -> str | None:
        """Say why what a server has under this id is not what is asked for; None: it is, or nobody knows."""
        if staged_digest(instance, self._change.release) is None:
            return None
        flags = flags_of(instance, self._change, self._serving, self._facts)
        return taken_fault(instance, self._change, flags)

    def _look_at_disk(self, instance: Instance, flags: Mapping[str, FlagValue]) -> None:
        if taken := taken_fault(instance, self._change, flags):
            self.faults.append(taken)
            return
        if self._change.release in self._before.instances[instance.name].releases:
            return
        if full := disk_fault_of(instance, self._facts, directory=root_of(instance)):
            self.faults.append(full)

    def _look_at_memory(self, instance: Instance, gpus: tuple[Gpu, ...], *, freed: int) -> None:
        """Compare what the weights need with what is free once the running server has given back its own."""
        fault = memory_fault(
            self._facts.weights_bytes,
            gpus,
            freed_bytes=freed,
            reserve_ratio=self._serving.limits.memory_reserve_ratio,
            ram_bytes=_available_bytes(instance.host),
        )
        if fault:
            self.faults.append(f"{instance.name}: {fault}")

    def _gpus_on(self, host: HostAddress) -> tuple[Gpu, ...]:
        if host not in self._gpus:
            self._gpus[host], note = read_gpus(host)
            if not self._gpus[host]:
                self.notes.append(f"Host {host.name} has no GPU ({note}): its memory is what counts.")
        return self._gpus[host]

    def _swap_refusals(
        self,
        instance: Instance,
        running: ModelFacts | None,
        flags: Mapping[str, FlagValue],
        *,
        old_flags: Mapping[str, FlagValue] | None,
    ) -> tuple[str, ...]:
        release = self._before.instances[instance.name].running
        if release is None:
            return ("no server runs that weights could be loaded into",)
        if running is None or old_flags is None:
            return (f"what {release} holds and was started with is not known on its host",)
        try:
            info = sglang.model_info(server_of(instance, self._serving))
        except ModelServerError as error:
            return (str(error),)
        if how := flags.get("quantization"):
            return (f"the server packs weights by {how} when it starts, and loads no others over them",)
        if info.model_path != flags["model-path"]:
            return (f"it was started with the model {info.model_path}, not with {flags['model-path']}",)
        return swap_refusals(
            self._facts,
            running,
            flags_differ=flags_that_differ(old_flags, flags),
            served_name=info.served_model_name,
            model_path=info.model_path,
        )

    def _served(self, instance: Instance) -> ServedBefore:
        """Return how the declared prompts are answered now: the times of this very server, the users' texts.

        The idle side may still run the release before the one that users have. Where one of both does not
        answer, the other's word is all there is.
        """
        if not self._serving.prompts:
            self.notes.append("No prompts are declared: whether answers make sense is not tested.")
            return ServedBefore()
        own, users = self._measured(instance), serving(self._fleet, self._before)
        if own and instance in users:
            return own
        for candidate in users:
            if theirs := self._measured(candidate):
                return theirs.at_the_pace_of(own) if own else theirs
        if own:
            return own
        self.notes.append(
            f"{instance.name}: no server answers the declared prompts now: no times to compare with."
        )
        return ServedBefore()

    def _measured(self, instance: Instance) -> ServedBefore | None:
        if instance.name in self._answers:
            return self._answers[instance.name]
        answers = None
        if self._before.instances[instance.name].running is not None:
            try:
                answers = measure_serving(instance, self._serving)
            except ModelServerError as error:
                self.notes.append(f"{instance.name} does not answer a declared prompt now: {error}")
        self._answers[instance.name] = answers
        return answers

    def _last_start_s(self, instance: Instance) -> float | None:
        try:
            return sglang.server_info(server_of(instance, self._serving)).start_s
        except ModelServerError:
            return None


def _available_bytes(host: HostAddress) -> int:
    """Return how much of a host's memory can be had without swapping."""
    lines = hosts.run(host, ("cat", "/proc/meminfo")).stdout.splitlines()
    return next(_KIB * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))

"""Make a lab's applications known to Prefect: the blocks that deployments read, and the deployments.

As a program, `python -m lab.register FILE.json …` saves the blocks of fleets and environments written as
JSON: in a process of its own, because Prefect reads its settings once, when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter

from lab.processes import LabError
from rules.database import Database
from rules.environment import Environment
from rules.fleet import Fleet, Instance, ReleaseDirectory
from rules.frozen import Frozen, Name
from rules.ipfs import IpfsContent
from rules.ray_cluster import RayCluster
from rules.serving import ModelServing

_PROJECT = Path(__file__).parents[1]
_TIMEOUT_S = 180


class DescribedContent(Frozen):
    """Content, and the name of the block of the database that refers to it."""

    content: IpfsContent
    database: Name


Described = Fleet | Environment | Database | DescribedContent
_DESCRIBED: TypeAdapter[Described] = TypeAdapter(Described)


def register_all(
    fleets: Sequence[Fleet],
    environment: Mapping[str, str],
    *,
    environments: Sequence[Environment] = (),
    databases: Sequence[Database] = (),
    contents: Sequence[DescribedContent] = (),
) -> None:
    """Save the fleets' blocks and register deployments, block types and automation, as a new user would.

    Args:
        fleets: the applications.
        environment: of a client of the Prefect server.
        environments: that deployments may name.
        databases: that deployments may change.
        contents: the same of content in IPFS.

    Raises:
        LabError: a command failed; carries what it said.
    """
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as both:
        paths = []
        for number, described in enumerate((*fleets, *environments, *databases, *contents)):
            paths.append(Path(directory) / f"{number}.json")
            paths[-1].write_text(described.model_dump_json())
        blocks = both.submit(_run, ["lab.register", *map(str, paths)], environment)
        deployments = both.submit(register_deployments, environment)
        blocks.result()
        deployments.result()


def register_deployments(environment: Mapping[str, str]) -> None:
    """Register the deployments of prefect.yaml, then the block types and the automation.

    Raises:
        LabError: a command failed; carries what it said.
    """
    _run(["prefect", "--no-prompt", "deploy", "--all"], environment)
    _run(["triggers.register"], environment)


def save_blocks(fleet: Fleet) -> None:
    """Save the blocks that describe `fleet`, under its application's name; saved already is replaced."""
    if fleet.serving:
        _save_model(fleet, fleet.serving)
    elif fleet.ray:
        _save_ray_cluster(fleet, fleet.ray)
    elif any(instance.nixos for instance in fleet.instances):
        _save_nixos_hosts(fleet)
    else:
        _save_application(fleet)


def _save_balancer(fleet: Fleet) -> str:
    """Save the block of a fleet's balancer; return its name, or nothing where there is none."""
    # Prefect reads its settings when it is imported: not before somebody asks for it
    from lab.balancers import save_balancer  # noqa: PLC0415

    if fleet.route is None:
        return ""
    # of one name there may be one kind only
    name = f"{fleet.application}-{fleet.route.balancer.balancer.replace('_', '-')}"
    save_balancer(name, fleet.route.balancer)
    return name


def _save_model(fleet: Fleet, serving: ModelServing) -> None:
    from blocks.sglang import ModelServer, SovereignModel  # noqa: PLC0415 - see _save_balancer

    kept = {"name", "service", "gpus", "backend", "server", "start_timeout_s"}
    servers = [
        ModelServer.model_validate(
            {
                **instance.model_dump(include=kept),
                "root": _root(instance),
                "url": instance.probe.url.removesuffix("/model_info"),
            }
        )
        for instance in fleet.instances
    ]
    SovereignModel(
        servers=servers,
        balancer=_save_balancer(fleet),
        route=fleet.route.key if fleet.route else "",
        flags=serving.flags,
        prompts=list(serving.prompts),
        limits=serving.limits,
        admin_key_file=serving.admin_key_file or "",
        smoke_tests=list(fleet.smoke_tests),
    ).save(fleet.application, overwrite=True)


def _save_ray_cluster(fleet: Fleet, cluster: RayCluster) -> None:
    from blocks.ray_cluster import RayWorker, SovereignRayCluster  # noqa: PLC0415 - see _save_balancer

    kept = {"name", "service", "start_timeout_s"}
    nodes = [
        RayWorker.model_validate({**instance.model_dump(include=kept), "root": _root(instance)})
        for instance in fleet.instances
    ]
    fields = cluster.model_dump(exclude={"name", "token_file"})
    SovereignRayCluster(nodes=nodes, token_file=cluster.token_file or "", **fields).save(
        fleet.application, overwrite=True
    )


def _save_nixos_hosts(fleet: Fleet) -> None:
    from blocks.nixos import NixosMember, SovereignNixosHosts  # noqa: PLC0415 - see _save_balancer

    hosts = [
        NixosMember.model_validate(
            {**instance.nixos_host.model_dump(), **instance.model_dump(include={"name", "backend", "server"})}
        )
        for instance in fleet.instances
    ]
    SovereignNixosHosts(
        hosts=hosts,
        balancer=_save_balancer(fleet),
        route=fleet.route.key if fleet.route else "",
        smoke_script=fleet.smoke_script,
    ).save(fleet.application, overwrite=True)


def _root(instance: Instance) -> str:
    if not isinstance(instance.layout, ReleaseDirectory):
        raise LabError(f"{instance.name} has no release directory")
    return instance.layout.root


def _save_application(fleet: Fleet) -> None:
    from blocks.application import Application, Member  # noqa: PLC0415 - see _save_balancer

    others = {"host", "gpus", "nixos"}
    Application(
        members=[Member.model_validate(i.model_dump(exclude=others)) for i in fleet.instances],
        balancer=_save_balancer(fleet),
        route=fleet.route.key if fleet.route else "",
        smoke_tests=list(fleet.smoke_tests),
        smoke_script=fleet.smoke_script,
    ).save(fleet.application, overwrite=True)


def save_environment(environment: Environment) -> None:
    """Save the block of an environment, under its name; saved already is replaced."""
    from blocks.environment import Environment as EnvironmentBlock  # noqa: PLC0415 - see save_blocks

    fields = environment.model_dump(exclude={"name"})
    EnvironmentBlock.model_validate(fields).save(environment.name, overwrite=True)


def save_database(database: Database) -> None:
    """Save the block that describes a database on this host, under its name; saved already is replaced."""
    from blocks.database import Server, SovereignDatabase  # noqa: PLC0415 - see save_blocks

    server = database.server
    SovereignDatabase(
        address=database.address,
        server=Server(**server.model_dump(exclude={"host", "dataset"}), dataset=server.dataset or "")
        if server
        else None,
        programs=database.programs or "",
        rehearsal=database.rehearsal,
        tables=list(database.tables),
        queries=list(database.queries),
        check_corruption=database.check_corruption,
        lock=database.lock,
        statement_timeout_s=database.statement_timeout_s,
    ).save(database.name, overwrite=True)


def save_content(content: IpfsContent, *, database: str) -> None:
    """Save the block that describes content, under its name; saved already is replaced."""
    from blocks.ipfs import KuboNode, SovereignIpfsContent  # noqa: PLC0415 - see save_blocks

    said = content.references
    SovereignIpfsContent(
        nodes=[KuboNode(**node.model_dump(exclude_none=True)) for node in content.nodes],
        database=database,
        table=said.table,
        key_column=said.key,
        cid_column=said.cid,
        **content.model_dump(exclude={"name", "nodes", "references"}),
    ).save(content.name, overwrite=True)


def _save(text: str) -> None:
    described = _DESCRIBED.validate_json(text)
    match described:
        case Fleet():
            save_blocks(described)
        case Environment():
            save_environment(described)
        case Database():
            save_database(described)
        case DescribedContent():
            save_content(described.content, database=described.database)


def _run(module: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *module],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=_PROJECT,
        env=dict(environment),
        timeout=_TIMEOUT_S,
    )
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]} {done.stderr[-2000:]}"
        raise LabError(f"python -m {' '.join(module)} exited {done.returncode}: {said}")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        _save(Path(argument).read_text())

"""Each day: let old backups go, and keep the books in step with the journals."""

from __future__ import annotations

from prefect import flow, get_client, get_run_logger

from blocks.environment import Environment, load_environment
from rules.errors import DeployError
from tasks.aftermath import keep_books
from tasks.backup_round import prune
from tasks.finish import finish_due, prune_ways_back
from tasks.services import load_services
from tasks.settings import Settings


@flow(name="housekeeping")
def housekeeping() -> dict[str, list[str]]:
    """Let the backups of every environment go that are older than it wants them kept.

    Returns:
        Environment -> names of the backups that are gone; `schema changes` -> snapshots they need no more.
    """
    settings, logger = Settings(), get_run_logger()
    gone: dict[str, list[str]] = {}
    for name in _environments():
        try:
            environment = load_environment(name)
            services = load_services(environment)
            pruned = prune(services, keep_s=environment.backup_keep_s, settings=settings)
        except (DeployError, ValueError) as error:
            logger.warning("environment %s is left as it is: %s", name, error)
            continue
        gone[name] = list(pruned)
        logger.info("%s: %d old backups are gone", name, len(pruned))
    finish_due(settings, again=True)
    ways_back = prune_ways_back(settings)
    if ways_back:
        gone["schema changes"] = list(ways_back)
    keep_books(settings)
    return gone


def _environments() -> list[str]:
    with get_client(sync_client=True) as client:
        documents = client.read_block_documents_by_type(block_type_slug=Environment.get_block_type_slug())
    return [document.name for document in documents if document.name]

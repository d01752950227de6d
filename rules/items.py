"""The guide's checklist as data: each question, from which stage on it blocks, how to supply the answer."""

from __future__ import annotations

from rules.checklist import Item
from rules.environment import Stage

DEV, STAGING, CANARY, PRODUCTION = Stage

#: Always asked: without these nothing can be deployed anywhere.
RELEASE = (
    Item(
        id="release-present",
        title="Release is present and its checksum is right",
        section="release",
        blocks_from=DEV,
        attestable=False,
        remedy="Put the archive there, or correct the path or sha256 of the request.",
    ),
    Item(
        id="instances-healthy",
        title="Instances that serve users are healthy",
        section="release",
        blocks_from=DEV,
        attestable=False,
        remedy="Bring them up first.",
    ),
    Item(
        id="staging-record",
        title="The same change was completed in staging",
        section="release",
        blocks_from=PRODUCTION,
        attestable=False,
        remedy="Deploy this release to staging, and let its monitoring end.",
    ),
)

CODE = (
    Item(
        id="code-reviewed",
        title="Code is reviewed and approved",
        section="code",
        blocks_from=CANARY,
        remedy="Have the pull request approved on this commit, or attest who reviewed what.",
    ),
    Item(
        id="tests-passing",
        title="Tests are passing",
        section="code",
        blocks_from=STAGING,
        remedy="Give `evidence.tests`: JUnit XML of the test run of this commit.",
    ),
    Item(
        id="diagnostics-clean",
        title="Diagnostics are clean",
        section="code",
        blocks_from=STAGING,
        remedy="Give `evidence.diagnostics`: SARIF, or the JSON of ruff or pyright.",
    ),
    Item(
        id="coverage",
        title="Test coverage is sufficient",
        section="code",
        blocks_from=CANARY,
        remedy="Give `evidence.coverage`: coverage XML or JSON.",
    ),
    Item(
        id="benchmarks-met",
        title="Benchmarks are met",
        section="code",
        blocks_from=CANARY,
        remedy="Give `evidence.benchmarks`: pytest-benchmark's JSON, or a list of name, value, limit.",
    ),
    Item(
        id="security-reviewed",
        title="Security is reviewed",
        section="code",
        blocks_from=CANARY,
        remedy="Give `evidence.security`: a scanner's SARIF, or attest the review.",
    ),
    Item(
        id="documentation-updated",
        title="Documentation is updated",
        section="code",
        blocks_from=PRODUCTION,
        remedy="Give `evidence.changed_files`, or attest that the documentation is true.",
    ),
    Item(
        id="changelog-updated",
        title="CHANGELOG is updated",
        section="code",
        blocks_from=PRODUCTION,
        remedy="Give `evidence.changelog` with an entry for this release.",
    ),
)

ENVIRONMENT = (
    Item(
        id="configuration-reviewed",
        title="Configuration is reviewed",
        section="environment",
        blocks_from=CANARY,
        remedy="Give `evidence.configuration` and have it reviewed with the code, or attest the review.",
    ),
    Item(
        id="secrets-encrypted",
        title="Secrets are encrypted with sops",
        section="environment",
        blocks_from=STAGING,
        remedy="Encrypt the file with sops for the required recipients; give `evidence.secrets`.",
    ),
    Item(
        id="dependencies-updated",
        title="Dependencies are updated: the lock agrees with its sources",
        section="environment",
        blocks_from=CANARY,
        remedy="Renew the lock; give `evidence.lock` and `evidence.lock_sources`.",
    ),
    Item(
        id="migrations-prepared",
        title="Migrations are prepared",
        section="environment",
        blocks_from=STAGING,
        remedy="Give `evidence.migrations`, each with its way back, or attest that there are none.",
    ),
    Item(
        id="backup-plan",
        title="Backup plan is ready",
        section="environment",
        blocks_from=CANARY,
        remedy="Name backup blocks in the environment; their dataset and repository must answer.",
    ),
    Item(
        id="rollback-plan",
        title="Rollback plan is ready: its target is present and healthy",
        section="environment",
        blocks_from=DEV,
        attestable=False,
        remedy="A first installation has nothing to return to: bring a release up by hand once.",
    ),
    Item(
        id="dashboards-ready",
        title="Dashboards and alert rules are ready",
        section="environment",
        blocks_from=PRODUCTION,
        remedy="Load the alert rules into Prometheus and the dashboards into Grafana.",
    ),
    Item(
        id="team-notified",
        title="The team is notified",
        section="environment",
        blocks_from=PRODUCTION,
        remedy="Name a Sovereign Notifications block whose service accepts messages, or attest who was told.",
    ),
)

INFRASTRUCTURE = (
    Item(
        id="headroom",
        title="CPU, memory, disk and GPU have headroom",
        section="infrastructure",
        blocks_from=CANARY,
        remedy="Free what is short, or raise the environment's limits.",
    ),
    Item(
        id="network-bandwidth",
        title="Network bandwidth is sufficient",
        section="infrastructure",
        blocks_from=PRODUCTION,
        remedy="Mend the link to that host, or lower min_bandwidth_bytes_per_s.",
    ),
    Item(
        id="backup-storage",
        title="There is storage for the backups",
        section="infrastructure",
        blocks_from=CANARY,
        remedy="Free space in the pool or repository, or let older backups go.",
    ),
    Item(
        id="offsite-backup",
        title="Offsite backup is accessible",
        section="infrastructure",
        blocks_from=PRODUCTION,
        remedy="Name a Restic repository on another machine in the environment's backups.",
    ),
    Item(
        id="balancer-ready",
        title="Balancer answers and sends traffic to the instances",
        section="infrastructure",
        blocks_from=DEV,
        attestable=False,
        remedy="Bring the instances that are taken out back to ready.",
    ),
    Item(
        id="ci-ready",
        title="CI has succeeded for this commit",
        section="infrastructure",
        blocks_from=CANARY,
        remedy="Give `evidence.commit`, and let CI succeed for it.",
    ),
)

#: The guide's 22 items.
GUIDE = (*CODE, *ENVIRONMENT, *INFRASTRUCTURE)

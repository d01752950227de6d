"""What surrounds a production: monitoring, a forge, dashboards, a webhook, a backup repository.

Prometheus, Alertmanager, node-exporter and Restic are real; Forgejo and Grafana are stand-ins.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.evidence import LabEvidence
from lab.forgejo import LabForgejo
from lab.grafana import LabGrafana
from lab.haproxy import LabHaproxy
from lab.prometheus import LabMonitoring
from lab.webhook import LabWebhook
from rules.baseline import MetricQuery, Tolerance
from rules.checklist import Waiver
from rules.environment import GateLimits, Monitoring, Stage
from rules.request import Papers

COMMIT = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
DASHBOARD = "sovereign-deploy"
CI_CONTEXT = "ci/test"
_PASSWORD = "lab"  # noqa: S105 - of a repository that lives as long as the lab
_NAME = "lab"
_OFFSITE = "The lab is one machine: its repository lies on the same disk."

#: The application's error ratio as HAProxy's exporter tells it, over all sides.
ERROR_RATIO = MetricQuery(
    name="haproxy_error_ratio",
    query=(
        'sum(rate(haproxy_backend_http_responses_total{code="5xx"}[$window]))'
        " / sum(rate(haproxy_backend_http_responses_total[$window]))"
    ),
    tolerance=Tolerance(relative=0.5, floor=0.10),
    unit="ratio",
)


class LabSurroundings:
    """All of it in `directory`, around an application behind `haproxy`.

    Args:
        directory: evidence, metrics and the repository live there.
        haproxy: scraped by Prometheus.
        release: what the evidence is for.
    """

    def __init__(self, directory: Path, haproxy: LabHaproxy, *, release: str) -> None:
        self.directory = directory.absolute()
        self.monitoring = LabMonitoring(self.directory / "monitoring", {"haproxy": haproxy.metrics_port})
        self.forgejo, self.grafana, self.webhook = LabForgejo(), LabGrafana(), LabWebhook()
        self.evidence = LabEvidence(
            self.directory / "evidence", release=release, commit=COMMIT, pull_request=1
        )
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for part in (self.monitoring, self.forgejo, self.grafana, self.webhook):
                starting.enter_context(part)
            self.forgejo.open_pull(COMMIT)
            self.forgejo.add_review("ada")
            self.forgejo.set_status(COMMIT, CI_CONTEXT, "success")
            self.grafana.dashboards[DASHBOARD] = {"uid": DASHBOARD, "title": "Deployments"}
            self.monitoring.prometheus.wait_until_scraped()
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def papers(self) -> Papers:
        """Return the release's evidence, and a person's decision about what one machine cannot have."""
        waiver = Waiver(item="offsite-backup", by="Ada Lovelace", reason=_OFFSITE)
        return Papers(evidence=self.evidence.build(), waivers=(waiver,))

    def save(self, *, staging: Monitoring, production: Monitoring) -> None:
        """Save the blocks of all parts, and the environments that name them.

        Args:
            staging: how the environment `staging` is watched.
            production: how the environment `production` is.
        """
        # Prefect's settings are set by now
        from blocks.environment import Environment  # noqa: PLC0415
        from blocks.grafana import Grafana  # noqa: PLC0415
        from blocks.notifications import Notifications  # noqa: PLC0415
        from blocks.restic import ResticAccess, ResticRepository  # noqa: PLC0415
        from tasks.restic import initialise  # noqa: PLC0415

        repository = {
            "repository": str(self.directory / "restic"),
            "password": _PASSWORD,
            "paths": [str(self.directory / "evidence")],
        }
        if not Path(repository["repository"]).exists():  # type: ignore[arg-type]
            initialise(ResticAccess.model_validate(repository))
        blocks = (
            self.monitoring.prometheus.block,
            self.monitoring.alertmanager.block,
            self.forgejo.block(),
            Grafana(url=self.grafana.url, token=self.grafana.token, dashboard_uid=DASHBOARD),
            Notifications(urls=[self.webhook.apprise_url()]),
            ResticRepository.model_validate(repository),
        )
        for block in blocks:
            block.save(_NAME, overwrite=True)
        limits = GateLimits(
            sops_recipients=(self.evidence.key.recipient,),
            required_contexts=(CI_CONTEXT,),
            required_dashboards=(DASHBOARD,),
            staging_bake_s=0.0,
            # a busy machine is no reason not to show how it is done
            max_cpu_ratio=1.0,
            min_memory_free_ratio=0.01,
            min_disk_free_ratio=0.01,
        )
        for stage, monitoring in ((Stage.STAGING, staging), (Stage.PRODUCTION, production)):
            Environment(
                stage=stage,
                limits=limits,
                monitoring=monitoring,
                metrics=[ERROR_RATIO],
                baseline_s=5.0,
                backups=[f"sovereign-restic-repository/{_NAME}"],
                approval_timeout_s=120.0,
                provider_patience_s=10.0,
                **dict.fromkeys(("prometheus", "alertmanager", "grafana", "forgejo", "notifications"), _NAME),
            ).save(str(stage), overwrite=True)

"""What can go wrong, one class for each reaction. Each says what happened, what is left, what to do."""

from __future__ import annotations


class DeployError(Exception):
    """The root of all our errors."""


class InvalidRequestError(DeployError):
    """The request makes no sense as it stands; nothing was touched."""


class GateBlockedError(DeployError):
    """The checklist does not allow this deployment; nothing was touched."""


class StepFailedError(DeployError):
    """An effect on the live system failed; what was done is taken back."""


class VerdictFailedError(DeployError):
    """The new release was judged bad, or could not be judged; it is taken back."""


class WorldMovedError(DeployError):
    """The system is not in the state the plan was made for; somebody else changed it."""


class LockHeldError(DeployError):
    """Another deployment has the target; nothing was touched."""


class FencedError(DeployError):
    """This deployment was given up for dead and recovered by another process; it must not go on."""


class CutOffError(DeployError):
    """Prefect's API cannot be reached: nothing new may start, what was done is taken back."""


class RevokedError(DeployError):
    """The flow run was cancelled or ended from outside; what was done is taken back."""


class AbortedError(DeployError):
    """A person aborted the deployment, or left it paused for too long; what was done is taken back."""


class RefusedError(DeployError):
    """A person refused to approve the deployment, or nobody did in time; nothing was touched."""


class AlarmError(DeployError):
    """What watches the system beside the rollout raised an alarm; what was done is taken back."""


class ApiUnavailableError(DeployError):
    """Prefect's API did not answer in time."""


class CommandError(DeployError):
    """A command failed: carries its argv, exit code and the end of its output."""

    def __init__(self, argv: tuple[str, ...], host: str, returncode: int | None, output: str) -> None:
        self.argv, self.host, self.returncode, self.output = argv, host, returncode, output
        ended = "did not end in time" if returncode is None else f"exited {returncode}"
        super().__init__(f"{list(argv)} on {host} {ended}: {output[-2000:].strip() or '(no output)'}")


class UndoFailedError(DeployError):
    """A way back did not work: the system is left as it is, a person is needed."""


class BalancerError(DeployError):
    """The balancer refused a command or does not answer."""

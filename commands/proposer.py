"""Opening the policy that proposes chunks to a critic, for the ``score`` and ``evaluate`` commands."""

from typing import Any

from ..core.interfaces import Policy
from ..core.opening import open_component
from ..policies.proposer import PolicyProposer


def open_proposer(path: str, device: str, trust: bool) -> tuple[PolicyProposer, dict[str, Any]]:
    """Open a saved policy as a proposer.

    Args:
        path: Folder of the policy or of its run, or repository ``owner/name``.
        device: Device it runs on; ``"auto"`` takes a GPU where there is one.
        trust: Whether code outside guerdon may run to open the policy.

    Returns:
        The proposer; and path, class path, content hash and arguments of the policy.

    Raises:
        ValueError: If the folder holds no policy, or there is no such device.
        FileNotFoundError: If there is nothing at the path.
    """
    policy, opened = open_component(path, Policy, "a policy", device, trust)
    return PolicyProposer(policy), opened

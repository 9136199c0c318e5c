"""Ends of episodes after which the values of a saved critic mean nothing, from the reward that lies beside it."""

from pathlib import Path

from ..core.hub import SPEC, read_spec
from ..rewards.step_cost import StepCost

ENDS = ("success", "failure")
"""What terminates where no reward says more."""


def reward_beside(model: str | Path) -> Path | None:
    """Find the reward that ``guerdon fit`` left beside a critic.

    Args:
        model: Folder of the critic, or of its run.
    """
    folder = Path(model)
    for reward in (folder / "reward", folder.parent / "reward" if folder.name == "model" else None):
        if reward is not None and (reward / SPEC).is_file():
            return reward
    return None


def priced_ends(model: str | Path) -> tuple[str, ...]:
    """Name the ends after which the values of a saved critic mean nothing.

    These are the success and the failures of the step cost that ``guerdon fit`` left beside it; success and failure
    where another reward lies there, or none.

    Args:
        model: Folder of the critic, or of its run.
    """
    reward = reward_beside(model)
    if reward is None:
        return ENDS
    spec = read_spec(reward)
    package, _, name = str(spec["class_path"]).rpartition(".")
    if name != StepCost.__name__ or package.partition(".")[0] != __name__.partition(".")[0]:
        return ENDS
    return ("success", *spec["init_args"]["failures"])

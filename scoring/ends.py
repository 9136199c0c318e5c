"""Ends of episodes after which a saved critic has no value, from the reward saved with it."""

from pathlib import Path

from ..core.hub import SPEC, read_spec
from ..rewards.step_cost import StepCost

ENDS = ("success", "failure")
"""Terminating ends where no step cost names others."""


def reward_beside(model: str | Path) -> Path | None:
    """Find the reward that ``guerdon fit`` saved with a critic.

    Args:
        model: Folder of the critic, or of its run.
    """
    folder = Path(model)
    for reward in (folder / "reward", folder.parent / "reward" if folder.name == "model" else None):
        if reward is not None and (reward / SPEC).is_file():
            return reward
    return None


def priced_ends(model: str | Path) -> tuple[str, ...]:
    """Name the ends after which a saved critic has no value.

    These are success and the failures of the step cost that ``guerdon fit`` saved with the critic, or success and
    failure where another reward or none was saved.

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

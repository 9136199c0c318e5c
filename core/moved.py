"""Names of classes and functions in files of earlier versions, and where they are now.

Version 0.1 wrote the module a class lay in into components and configurations
(``guerdon.rewards.progress.ProgressReward``). Everything is named by the root now (``guerdon.ProgressReward``), and
this table is the one place that knows the old names.
"""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any, cast

MOVED: Mapping[str, tuple[str, ...]] = {
    "backbones.chat": ("Chat",),
    "backbones.huggingface_text": ("HuggingFaceText",),
    "backbones.language": ("HashedText", "TextEncoder"),
    "backbones.openai_clip": ("ClipEncoder", "ClipText"),
    "backbones.recorded_chat": ("RecordedChat", "RecordingChat"),
    "backbones.remote": ("RemoteChat",),
    "backbones.temporal": ("CausalTransformer",),
    "backbones.vision": ("ConvEncoder", "VisionEncoder"),
    "backbones.vlm": ("VLM",),
    "core.interfaces": (
        *("AdvantageSource", "Component", "Critic", "Objective", "Policy", "RewardModel", "TaskDecomposer"),
    ),
    "core.pretrained": ("pretrained_critic", "pretrained_policy", "pretrained_reward"),
    "critics.action": ("ActionCritic",),
    "critics.best_of": ("BestOfCritic",),
    "critics.chunks": ("ChunkCritic",),
    "critics.conservative": ("CalibratedFloor",),
    "critics.distributional": ("DistributionalValue",),
    "critics.expectile": ("ExpectileCritic",),
    "critics.fit": ("CriticTraining",),
    "critics.monte_carlo": ("MonteCarloCritic",),
    "critics.networks": ("ChunkNetwork", "ChunkPerceptron", "ChunkTransformer"),
    "critics.observations": ("ObservationNetwork", "ObservationReader"),
    "critics.value": ("StateCritic", "ValueCritic"),
    "datasets.labels": ("LabelFactory",),
    "datasets.module": ("EpisodeData",),
    "policies.action_advantage": ("ActionAdvantage", "CriticAdvantage"),
    "policies.advantage": ("RewardToGo", "Uniform"),
    "policies.drift": ("TrainingFeatures",),
    "policies.gaussian": ("GaussianPolicy",),
    "policies.group_score": ("GroupScore",),
    "policies.objectives": ("ClippedSurrogate", "WeightedImitation"),
    "policies.optimizer": ("PolicyOptimizer",),
    "policies.progress_gain": ("ProgressGain",),
    "policies.proposer": ("PolicyProposer",),
    "policies.push_back": ("PushBack",),
    "policies.step_advantage": ("StepAdvantage",),
    "policies.watch": ("HackingWatch",),
    "policies.weights": ("Exponential", "Positive", "RewardAligned", "TopShare", "Weighting"),
    "policies.workers": ("RolloutData",),
    "rewards.calibration": ("Calibrated",),
    "rewards.combine": ("Around", "Clip", "Normalise", "Scale", "Sum"),
    "rewards.decomposer": ("VlmDecomposer",),
    "rewards.decomposer_training": ("DecomposerTraining",),
    "rewards.ensemble": ("EnsembleReward",),
    "rewards.fit": ("RewardTraining",),
    "rewards.frame_order": ("ShuffledFrames",),
    "rewards.image_goal": ("ImageGoalDistance",),
    "rewards.likeness": ("SimilarityReward",),
    "rewards.milestone_labels": ("MilestoneLabels",),
    "rewards.milestone_oracle": ("MilestoneOracle",),
    "rewards.milestone_reward": ("MilestoneReward",),
    "rewards.milestones": ("MilestoneDetector",),
    "rewards.observed": ("ObservedReward",),
    "rewards.progress": ("ProgressReward",),
    "rewards.recorded": ("RecordedReward", "RecordedSuccess"),
    "rewards.recorded_plans": ("RecordedDecomposer",),
    "rewards.rule_decomposer": ("RuleDecomposer",),
    "rewards.shaping": ("Delta", "FirstHit", "Level", "Potential", "Shaped", "Sparse"),
    "rewards.similarity": ("GoalSimilarity",),
    "rewards.step_cost": ("StepCost",),
    "rewards.subgoals": ("StageLabels", "SubgoalLabels", "SubgoalReward"),
    "rewards.success": ("SuccessReward",),
    "rewards.trajectory": ("GrapeScore",),
    "rewards.vlm": ("AnswerReward", "CompletionLikelihood", "ExpectedRating"),
    "rewards.vlm_progress": ("VlmProgressReward",),
}
"""Module of version 0.1 → names that its files may hold; each is reached at the root under the same name."""

_PACKAGE = __name__.partition(".")[0]
_NEW = {f"{_PACKAGE}.{module}.{name}": f"{_PACKAGE}.{name}" for module, names in MOVED.items() for name in names}
_FIRST = {new: old for old, new in _NEW.items()}


def public_path(cls: type) -> str:
    """Return the path a class is imported by: from the root where it is public, else from its module."""
    public = cast(Mapping[str, str], importlib.import_module(_PACKAGE)._PUBLIC)
    module = public.get(cls.__qualname__)
    return f"{_PACKAGE}.{cls.__qualname__}" if cls.__module__ == f"{_PACKAGE}.{module}" else _own_path(cls)


def identity_path(cls: type) -> str:
    """Return the path a class was first published under, which goes into hashes: moving a file changes none."""
    path = public_path(cls)
    return _FIRST.get(path, path)


def _own_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def renew(value: Any) -> tuple[Any, list[str]]:
    """Replace old names in the values of a component or configuration.

    Args:
        value: Nested dictionaries and lists; any text in them that is an old name is taken for one.

    Returns:
        The same values with names of the root, and the old names that were found, each once.
    """
    found: dict[str, None] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: walk(entry) for key, entry in cast(Mapping[str, Any], part).items()}
        if isinstance(part, list | tuple):
            return [walk(entry) for entry in cast(list[Any], part)]
        if isinstance(part, str) and part in _NEW:
            found[part] = None
            return _NEW[part]
        return part

    return walk(value), list(found)


def first_names(value: Any) -> Any:
    """Replace public class paths of a component by those they were first published under; see `identity_path`."""
    if isinstance(value, Mapping):
        entries = cast(Mapping[str, Any], value)
        return {k: _FIRST.get(v, v) if k == "class_path" else first_names(v) for k, v in entries.items()}
    if isinstance(value, list | tuple):
        return [first_names(entry) for entry in cast(list[Any], value)]
    return value


def warn_of_old_names(where: str, names: list[str], remedy: str) -> None:
    """Warn once that a file holds names of an earlier version.

    Args:
        where: Path of the file.
        names: Old names it holds; no warning without any.
        remedy: Sentence that says how to renew the file.
    """
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"{where} names {names[0]}{more} as version 0.1 did; it still opens. {remedy}",
            DeprecationWarning,
            stacklevel=3,
        )


__all__ = ["MOVED", "first_names", "identity_path", "public_path", "renew", "warn_of_old_names"]

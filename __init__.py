"""guerdon: train, judge and use rewards, values and preferences for vision-language-action robot policies.

Everything public is reachable from here by name and imported only when asked for, so ``import guerdon`` costs nothing.
"""

__version__ = "0.1.0"

_PUBLIC = {
    "TrajectoryBatch": "core.batch",
    "RewardEstimates": "core.batch",
    "ValueEstimates": "core.batch",
    "Advantages": "core.batch",
    "PreferencePairs": "core.batch",
    "Observation": "core.batch",
    "Decision": "core.batch",
    "Evaluation": "core.batch",
    "Sampled": "core.batch",
    "Labelled": "core.batch",
    "End": "core.batch",
    "Component": "core.interfaces",
    "RewardModel": "core.interfaces",
    "Critic": "core.interfaces",
    "AdvantageSource": "core.interfaces",
    "Policy": "core.interfaces",
    "Objective": "core.interfaces",
    "save_component": "core.hub",
    "load_component": "core.hub",
    "PolicyOptimizer": "policies.optimizer",
    "RewardToGo": "policies.advantages.reward_to_go",
    "ActionAdvantage": "policies.advantages.action_advantage",
    "StepAdvantage": "policies.advantages.step_advantage",
    "PolicyProposer": "policies.proposer",
    "WeightedImitation": "policies.objectives",
    "ProgressReward": "rewards.progress",
    "SuccessReward": "rewards.success",
    "VlmProgressReward": "rewards.vlm_progress",
    "CompletionLikelihood": "rewards.zero_shot.vlm",
    "ExpectedRating": "rewards.zero_shot.vlm",
    "ShuffledFrames": "rewards.zero_shot.frame_order",
    "MilestoneReward": "rewards.milestones.reward",
    "RecordedReward": "rewards.recorded",
    "StepCost": "rewards.step_cost",
    "SubgoalReward": "rewards.stages.subgoals",
    "RuleDecomposer": "rewards.stages.rule_decomposer",
    "RecordedDecomposer": "rewards.stages.recorded_plans",
    "GoalSimilarity": "rewards.zero_shot.similarity",
    "ImageGoalDistance": "rewards.zero_shot.image_goal",
    "Sum": "rewards.combine",
    "Scale": "rewards.combine",
    "EnsembleReward": "rewards.ensemble",
    "Calibrated": "rewards.calibration",
    "FirstHit": "rewards.shaping",
    "Potential": "rewards.shaping",
    "GrapeScore": "rewards.grape.trajectory",
    "GroupScore": "policies.advantages.group_score",
    "FeatureCache": "datasets.features",
    "RewardTraining": "rewards.fit",
    "VLM": "backbones.vlm",
    "RemoteChat": "backbones.remote",
    "RecordedChat": "backbones.recorded_chat",
    "RecordingChat": "backbones.recorded_chat",
    "ValueCritic": "critics.value",
    "DistributionalValue": "critics.distributional",
    "CriticTraining": "critics.fit",
    "ActionCritic": "critics.action",
    "BestOfCritic": "critics.best_of",
    "ExpectileCritic": "critics.expectile",
    "MonteCarloCritic": "critics.monte_carlo",
    "CalibratedFloor": "critics.conservative",
    "ChunkTransformer": "critics.networks",
    "ChunkPerceptron": "critics.networks",
    "GaussianPolicy": "policies.gaussian",
    "HackingWatch": "evaluation.watch.callback",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import a public name the first time it is used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'guerdon' has no attribute {name!r}; it offers {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted([*globals(), *_PUBLIC])

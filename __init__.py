"""guerdon: train, evaluate and use rewards, values and preferences for vision-language-action robot policies.

Every public name is reached from here and imported when it is first used, so ``import guerdon`` costs nothing. Saved
components and configurations name classes by this path (``guerdon.ProgressReward``), so files may move.
"""

__version__ = "0.1.0"

# Public names by job: module → names. Type checkers read the block below, which tests/test_public_names.py writes.
_JOBS: dict[str, dict[str, tuple[str, ...]]] = {
    "Trajectories and estimates": {
        "core.batch": ("TrajectoryBatch", "End", "RewardEstimates", "ValueEstimates", "Advantages", "PreferencePairs"),
        "core.record": ("Labelled", "Sampled"),
        "core.decisions": ("Observation", "Decision", "Evaluation"),
        "core.sizes": ("DataSizes", "HasSizes"),
    },
    "Interfaces": {
        "core.interfaces": (
            "Component",
            "RewardModel",
            "Critic",
            "Proposer",
            "TaskDecomposer",
            "TaskPlan",
            "TaskStage",
            "AdvantageSource",
            "Policy",
            "Objective",
        ),
    },
    "Saved components": {
        "core.hub": ("load_component", "save_component"),
        "core.pretrained": ("pretrained_reward", "pretrained_critic", "pretrained_policy"),
    },
    "Read and write logged episodes": {
        "datasets.opening": ("open_dataset",),
        "datasets.episodes": (
            "Episode",
            "EpisodeDataset",
            "EpisodeSummary",
            "ArrayFrames",
            "Column",
            "BadEpisodeError",
        ),
        "datasets.formats.lerobot_writer": ("LeRobotWriter",),
        "datasets.formats.video": ("write_video",),
        "datasets.collate": ("Window", "collate"),
        "datasets.features": ("FeatureCache",),
        "datasets.joined": ("JoinedDatasets",),
    },
    "Simulated tasks": {
        "envs.collect": ("collect_dataset", "CollectReport"),
        "envs.naming": ("make_task", "task_names"),
        "envs.vector": ("VectorEnv",),
        "envs.task": ("Context", "Task", "ResumableTask", "ExpertTask"),
        "envs.checking": ("check_task",),
        "envs.promises": ("TaskReport",),
        "envs.libero_tasks.task": ("Libero",),
        "envs.gym_tasks.task": ("GymnasiumTask",),
        "envs.gym_tasks.success": ("InfoKey", "InfoThreshold", "RewardThreshold"),
    },
    "Train reward models and critics on logged episodes": {
        "datasets.module": ("EpisodeData",),
        "datasets.filters": ("EpisodeFilter",),
        "datasets.labels": ("LabelFactory",),
        "rewards.stages.subgoals": ("StageLabels", "SubgoalLabels"),
        "rewards.milestones.labels": ("MilestoneLabels", "MilestoneTracks"),
        "rewards.milestones.detection": ("MilestoneDetector",),
        "rewards.fit": ("RewardTraining",),
        "preference.fit": ("PreferenceTraining",),
        "preference.data": ("PreferenceData", "SegmentFrames"),
        "preference.objectives": ("BradleyTerry", "FlagLoss"),
        "critics.fit": ("CriticTraining",),
        "rewards.stages.decomposer_training": ("DecomposerTraining",),
        "rewards.stages.fine_tuning": ("FineTuning",),
    },
    "Score and evaluate data sets": {
        "scoring.dataset": ("score_dataset", "ScoringReport"),
        "scoring.scores": ("read_scores",),
        "evaluation.dataset": ("evaluate_dataset",),
        "evaluation.metric": ("Metric",),
        "evaluation.metrics": ("METRICS",),
        "evaluation.evaluate": ("evaluate",),
        "evaluation.policies.evaluate": ("evaluate_policy",),
        "evaluation.policies.setting": ("OpenedPolicy", "PlaySetting"),
        "evaluation.aggregate": ("interquartile_mean", "probability_of_improvement"),
        "core.intervals": ("Estimate",),
        "evaluation.calibration.fit": ("calibrate",),
        "pages.report": ("write_report",),
    },
    "Reward models": {
        "rewards.observation_encoder": ("ObservationEncoder",),
        "rewards.observed": ("ObservedReward",),
        "rewards.progress": ("ProgressReward",),
        "rewards.success": ("SuccessReward",),
        "rewards.vlm_progress": ("VlmProgressReward",),
        "rewards.frame_windows": ("FrameWindows",),
        "rewards.heads": ("PredictionSettings",),
        "rewards.recorded": ("RecordedReward", "RecordedSuccess"),
        "rewards.step_cost": ("StepCost",),
        "rewards.staged_grasp": ("StagedGraspReward",),
        "rewards.ensemble": ("EnsembleReward",),
        "rewards.state_action": ("StateActionModel", "StateActionReward"),
        "rewards.preference_transformer": ("PreferenceTransformer",),
        "rewards.calibration": ("Calibrated",),
        "rewards.combine": ("Around", "Scale", "Clip", "Normalise", "Sum"),
        "rewards.shaping": ("Shaped", "Level", "Delta", "FirstHit", "Sparse", "Potential"),
        "rewards.milestones.reward": ("MilestoneReward",),
        "rewards.milestones.payment": ("MilestonePayment",),
        "rewards.milestones.oracle": ("MilestoneOracle",),
        "rewards.grape.trajectory": ("GrapeScore",),
        "rewards.costs": ("Constraint", "external_reward"),
        "rewards.stages.subgoals": ("SubgoalReward",),
        "rewards.zero_shot.likeness": ("SimilarityReward",),
        "rewards.zero_shot.similarity": ("GoalSimilarity",),
        "rewards.zero_shot.image_goal": ("ImageGoalDistance",),
        "rewards.zero_shot.vlm": ("AnswerReward", "CompletionLikelihood", "ExpectedRating"),
        "rewards.zero_shot.frame_order": ("ShuffledFrames",),
    },
    "Task decomposers": {
        "rewards.stages.rule_decomposer": ("RuleDecomposer",),
        "rewards.stages.recorded_plans": ("RecordedDecomposer",),
        "rewards.stages.decomposer": ("VlmDecomposer",),
        "rewards.stages.segmentation": ("StagePath",),
    },
    "Critics": {
        "critics.value": ("ValueFunction", "StateCritic", "ValueCritic"),
        "critics.distributional": ("DistributionalValue",),
        "critics.chunks": ("ChunkCritic",),
        "critics.action": ("ActionCritic",),
        "critics.best_of": ("BestOfCritic",),
        "critics.expectile": ("ExpectileCritic",),
        "critics.monte_carlo": ("MonteCarloCritic",),
        "critics.conservative": ("CalibratedFloor",),
        "critics.networks": ("ChunkNetwork", "ChunkTransformer", "ChunkPerceptron"),
        "critics.observations": ("ObservationReader", "ObservationNetwork", "CriticInputs"),
        "critics.logged": ("LoggedChunks",),
        "critics.ensembles": ("Aggregation",),
        "backbones.optimization": ("ScheduledAdamW",),
    },
    "Preferences": {
        "preference.pairs": ("ScoredPairs", "group_pairs", "reward_pairs"),
        "preference.rules": ("PairRule", "LengthMatchedPairs", "SuccessPairs", "RandomPairs"),
        "preference.paired_episodes": ("PairedEpisodes",),
        "preference.segments": ("Segment", "SegmentPair", "read_segment_pairs", "write_segment_pairs"),
        "preference.answers": ("Answer", "write_answers"),
        "preference.answer_log": ("AnswerLog", "AlreadyAnsweredError", "AnswerNotSavedError", "read_answers"),
        "preference.random_pairs": ("draw_segment_pairs",),
        "preference.preference_arrays": ("read_preference_arrays", "write_preference_arrays"),
        "preference.label_studio_tasks": (
            "label_studio_config",
            "read_label_studio_answers",
            "write_label_studio_tasks",
        ),
        "preference.agreement": ("cohens_kappa", "fleiss_kappa", "merge_answers", "summarise_raters"),
        "preference.raters": ("SimulatedRater",),
        "preference.queries": ("select_queries", "random_queries"),
        "preference.flags": ("Flag", "decision_flags"),
        "preference.rollbacks": ("RollbackPairs", "rollback_pairs"),
        "preference.trl_pairs": ("AnswerPair", "answer_pairs", "answer_dataset"),
        "preference.tpo": ("TrajectoryPreference",),
        "preference.references": ("FrozenReference", "RecordedReference"),
        "preference.adapter_reference": ("AdapterReference",),
        "policies.preference_optimizer": ("PreferenceOptimizer",),
        "policies.unpaired": ("UnpairedPreference",),
        "policies.advantages.flagged": ("FlaggedDecisions",),
    },
    "Policies and their optimisation": {
        "policies.gaussian": ("GaussianPolicy",),
        "policies.vla": ("VLAPolicy",),
        "critics.value_head": ("ValueHead",),
        "critics.value_loss": ("ValueLoss",),
        "policies.advantages.teacher": ("TeacherAdvantage",),
        "policies.tokens": ("TokenPolicy",),
        "policies.action_bins": ("ActionBins",),
        "backbones.decoder": ("Decoder",),
        "backbones.decoder_small": ("SmallDecoder",),
        "backbones.decoder_language": ("LanguageDecoder",),
        "backbones.decoder_vlm": ("VLMDecoder",),
        "backbones.token_learner": ("TokenLearner",),
        "backbones.latent_cache": ("LatentCache",),
        "backbones.encoder_tokens": ("EncoderBackbone",),
        "backbones.vlm_tokens": ("VLMBackbone",),
        "backbones.token_states": ("TokenBackbone",),
        "critics.backbone_value": ("BackboneValue",),
        "policies.laplace": ("LaplacePolicy",),
        "policies.chunks": ("ChunkPolicy", "PerceptronPolicy", "ScaleHead"),
        "policies.optimizer": ("PolicyOptimizer",),
        "policies.adam": ("PolicyAdam",),
        "policies.deterministic": ("Deterministic",),
        "policies.actor": ("PolicyActor", "actor_of"),
        "policies.guards": ("CollapseGuard",),
        "policies.objectives": ("ClippedSurrogate", "WeightedImitation"),
        "policies.advantages.reward_to_go": ("RewardToGo", "Uniform"),
        "policies.advantages.action_advantage": ("CriticAdvantage", "ActionAdvantage"),
        "policies.advantages.step_advantage": ("StepAdvantage",),
        "policies.advantages.group_score": ("GroupScore",),
        "policies.advantages.progress_gain": ("ProgressGain",),
        "policies.weights": ("Weighting", "Exponential", "Positive", "TopShare", "RewardAligned"),
        "policies.proposer": ("PolicyProposer",),
        "policies.rollouts.data": ("RolloutData",),
        "policies.rollouts.frames": ("RolloutFrames",),
        "policies.rollouts.groups": ("GroupRollouts",),
        "policies.rollouts.checkpoint": ("RolloutCheckpoint",),
        "policies.rollouts.pool": ("WorkerPool", "play_episodes"),
        "policies.rollouts.ray_pool": ("RayPool",),
        "policies.rollouts.setting": ("TaskSetting",),
        "policies.loops.curriculum": ("Curriculum", "task_probabilities"),
        "policies.loops.stages": ("TrainingLoop",),
        "policies.loops.ire_vla": ("IReVLA",),
        "policies.loops.ire_vla_stages": ("SupervisedStage", "ConsolidationStage", "ReinforcementStage", "StageEnd"),
        "policies.loops.successes": ("SuccessBuffer",),
        "policies.loops.grape": ("Grape",),
        "policies.loops.grape_stages": ("PairedStage", "PreferenceStage", "CloningStage"),
        "policies.loops.grape_evaluation": ("HeldOutEvaluation", "Violations"),
        "policies.rollouts.played_success": ("PlayedSuccess",),
        "pages.learning_curve": ("LearningCurve",),
    },
    "TRL": {
        "policies.trl_integration.rewards": ("TRLReward", "TRLActionValue"),
        "policies.trl_integration.answers": ("TRLProgressAnswer", "TRLSuccessAnswer", "TRLPlanAnswer"),
        "policies.trl_integration.actions": ("ActionTokens", "ActionNumbers", "LoggedTurns"),
        "policies.trl_integration.environment": ("TRLEnvironment", "TRLEnvironments"),
        "policies.trl_integration.turns": ("TurnPreferenceTrainer", "turn_dataset"),
    },
    "Watch for reward hacking": {
        "evaluation.watch.callback": ("HackingWatch", "HackingWarning"),
        "evaluation.watch.drift": ("TrainingFeatures", "fit_training_features"),
        "evaluation.watch.claim": ("SuccessClaim",),
        "evaluation.watch.window": ("RolloutWindow",),
        "evaluation.watch.limits": ("AlarmLimits",),
        "evaluation.watch.probing": ("Probing",),
        "evaluation.watch.training_drift": ("TrainingDrift",),
        "evaluation.watch.questions": ("SpotChecks",),
        "evaluation.watch.retraining": ("Retraining",),
        "evaluation.watch.push_back": ("PushBack", "Retrain"),
    },
    "Encoders and vision-language models": {
        "backbones.vision": ("VisionEncoder", "ConvEncoder"),
        "backbones.openai_clip": ("ClipEncoder", "ClipText"),
        "backbones.language": ("TextEncoder", "HashedText"),
        "backbones.huggingface_text": ("HuggingFaceText",),
        "backbones.temporal": ("CausalTransformer",),
        "backbones.chat": ("Chat", "Reply"),
        "backbones.vlm": ("VLM",),
        "backbones.lora": ("LoRA",),
        "backbones.remote": ("RemoteChat", "RequestSettings"),
        "backbones.recorded_chat": ("RecordedChat", "RecordingChat"),
    },
}
_PUBLIC = {name: module for modules in _JOBS.values() for module, names in modules.items() for name in names}
_ROOMS = (
    *("backbones", "core", "critics", "datasets", "envs", "evaluation", "pages", "policies", "preference", "rewards"),
    *("scoring", "testing"),
)

TYPE_CHECKING = False  # type checkers take it for True; typing itself would have to be imported
if TYPE_CHECKING:
    # written by `python tests/test_public_names.py`
    from . import backbones as backbones
    from . import core as core
    from . import critics as critics
    from . import datasets as datasets
    from . import envs as envs
    from . import evaluation as evaluation
    from . import pages as pages
    from . import policies as policies
    from . import preference as preference
    from . import rewards as rewards
    from . import scoring as scoring
    from . import testing as testing
    from .backbones.chat import Chat as Chat
    from .backbones.chat import Reply as Reply
    from .backbones.decoder import Decoder as Decoder
    from .backbones.decoder_language import LanguageDecoder as LanguageDecoder
    from .backbones.decoder_small import SmallDecoder as SmallDecoder
    from .backbones.decoder_vlm import VLMDecoder as VLMDecoder
    from .backbones.encoder_tokens import EncoderBackbone as EncoderBackbone
    from .backbones.huggingface_text import HuggingFaceText as HuggingFaceText
    from .backbones.language import HashedText as HashedText
    from .backbones.language import TextEncoder as TextEncoder
    from .backbones.latent_cache import LatentCache as LatentCache
    from .backbones.lora import LoRA as LoRA
    from .backbones.openai_clip import ClipEncoder as ClipEncoder
    from .backbones.openai_clip import ClipText as ClipText
    from .backbones.optimization import ScheduledAdamW as ScheduledAdamW
    from .backbones.recorded_chat import RecordedChat as RecordedChat
    from .backbones.recorded_chat import RecordingChat as RecordingChat
    from .backbones.remote import RemoteChat as RemoteChat
    from .backbones.remote import RequestSettings as RequestSettings
    from .backbones.temporal import CausalTransformer as CausalTransformer
    from .backbones.token_learner import TokenLearner as TokenLearner
    from .backbones.token_states import TokenBackbone as TokenBackbone
    from .backbones.vision import ConvEncoder as ConvEncoder
    from .backbones.vision import VisionEncoder as VisionEncoder
    from .backbones.vlm import VLM as VLM
    from .backbones.vlm_tokens import VLMBackbone as VLMBackbone
    from .core.batch import Advantages as Advantages
    from .core.batch import End as End
    from .core.batch import PreferencePairs as PreferencePairs
    from .core.batch import RewardEstimates as RewardEstimates
    from .core.batch import TrajectoryBatch as TrajectoryBatch
    from .core.batch import ValueEstimates as ValueEstimates
    from .core.decisions import Decision as Decision
    from .core.decisions import Evaluation as Evaluation
    from .core.decisions import Observation as Observation
    from .core.hub import load_component as load_component
    from .core.hub import save_component as save_component
    from .core.interfaces import AdvantageSource as AdvantageSource
    from .core.interfaces import Component as Component
    from .core.interfaces import Critic as Critic
    from .core.interfaces import Objective as Objective
    from .core.interfaces import Policy as Policy
    from .core.interfaces import Proposer as Proposer
    from .core.interfaces import RewardModel as RewardModel
    from .core.interfaces import TaskDecomposer as TaskDecomposer
    from .core.interfaces import TaskPlan as TaskPlan
    from .core.interfaces import TaskStage as TaskStage
    from .core.intervals import Estimate as Estimate
    from .core.pretrained import pretrained_critic as pretrained_critic
    from .core.pretrained import pretrained_policy as pretrained_policy
    from .core.pretrained import pretrained_reward as pretrained_reward
    from .core.record import Labelled as Labelled
    from .core.record import Sampled as Sampled
    from .core.sizes import DataSizes as DataSizes
    from .core.sizes import HasSizes as HasSizes
    from .critics.action import ActionCritic as ActionCritic
    from .critics.backbone_value import BackboneValue as BackboneValue
    from .critics.best_of import BestOfCritic as BestOfCritic
    from .critics.chunks import ChunkCritic as ChunkCritic
    from .critics.conservative import CalibratedFloor as CalibratedFloor
    from .critics.distributional import DistributionalValue as DistributionalValue
    from .critics.ensembles import Aggregation as Aggregation
    from .critics.expectile import ExpectileCritic as ExpectileCritic
    from .critics.fit import CriticTraining as CriticTraining
    from .critics.logged import LoggedChunks as LoggedChunks
    from .critics.monte_carlo import MonteCarloCritic as MonteCarloCritic
    from .critics.networks import ChunkNetwork as ChunkNetwork
    from .critics.networks import ChunkPerceptron as ChunkPerceptron
    from .critics.networks import ChunkTransformer as ChunkTransformer
    from .critics.observations import CriticInputs as CriticInputs
    from .critics.observations import ObservationNetwork as ObservationNetwork
    from .critics.observations import ObservationReader as ObservationReader
    from .critics.value import StateCritic as StateCritic
    from .critics.value import ValueCritic as ValueCritic
    from .critics.value import ValueFunction as ValueFunction
    from .critics.value_head import ValueHead as ValueHead
    from .critics.value_loss import ValueLoss as ValueLoss
    from .datasets.collate import Window as Window
    from .datasets.collate import collate as collate
    from .datasets.episodes import ArrayFrames as ArrayFrames
    from .datasets.episodes import BadEpisodeError as BadEpisodeError
    from .datasets.episodes import Column as Column
    from .datasets.episodes import Episode as Episode
    from .datasets.episodes import EpisodeDataset as EpisodeDataset
    from .datasets.episodes import EpisodeSummary as EpisodeSummary
    from .datasets.features import FeatureCache as FeatureCache
    from .datasets.filters import EpisodeFilter as EpisodeFilter
    from .datasets.formats.lerobot_writer import LeRobotWriter as LeRobotWriter
    from .datasets.formats.video import write_video as write_video
    from .datasets.joined import JoinedDatasets as JoinedDatasets
    from .datasets.labels import LabelFactory as LabelFactory
    from .datasets.module import EpisodeData as EpisodeData
    from .datasets.opening import open_dataset as open_dataset
    from .envs.checking import check_task as check_task
    from .envs.collect import CollectReport as CollectReport
    from .envs.collect import collect_dataset as collect_dataset
    from .envs.gym_tasks.success import InfoKey as InfoKey
    from .envs.gym_tasks.success import InfoThreshold as InfoThreshold
    from .envs.gym_tasks.success import RewardThreshold as RewardThreshold
    from .envs.gym_tasks.task import GymnasiumTask as GymnasiumTask
    from .envs.libero_tasks.task import Libero as Libero
    from .envs.naming import make_task as make_task
    from .envs.naming import task_names as task_names
    from .envs.promises import TaskReport as TaskReport
    from .envs.task import Context as Context
    from .envs.task import ExpertTask as ExpertTask
    from .envs.task import ResumableTask as ResumableTask
    from .envs.task import Task as Task
    from .envs.vector import VectorEnv as VectorEnv
    from .evaluation.aggregate import interquartile_mean as interquartile_mean
    from .evaluation.aggregate import probability_of_improvement as probability_of_improvement
    from .evaluation.calibration.fit import calibrate as calibrate
    from .evaluation.dataset import evaluate_dataset as evaluate_dataset
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.metric import Metric as Metric
    from .evaluation.metrics import METRICS as METRICS
    from .evaluation.policies.evaluate import evaluate_policy as evaluate_policy
    from .evaluation.policies.setting import OpenedPolicy as OpenedPolicy
    from .evaluation.policies.setting import PlaySetting as PlaySetting
    from .evaluation.watch.callback import HackingWarning as HackingWarning
    from .evaluation.watch.callback import HackingWatch as HackingWatch
    from .evaluation.watch.claim import SuccessClaim as SuccessClaim
    from .evaluation.watch.drift import TrainingFeatures as TrainingFeatures
    from .evaluation.watch.drift import fit_training_features as fit_training_features
    from .evaluation.watch.limits import AlarmLimits as AlarmLimits
    from .evaluation.watch.probing import Probing as Probing
    from .evaluation.watch.push_back import PushBack as PushBack
    from .evaluation.watch.push_back import Retrain as Retrain
    from .evaluation.watch.questions import SpotChecks as SpotChecks
    from .evaluation.watch.retraining import Retraining as Retraining
    from .evaluation.watch.training_drift import TrainingDrift as TrainingDrift
    from .evaluation.watch.window import RolloutWindow as RolloutWindow
    from .pages.learning_curve import LearningCurve as LearningCurve
    from .pages.report import write_report as write_report
    from .policies.action_bins import ActionBins as ActionBins
    from .policies.actor import PolicyActor as PolicyActor
    from .policies.actor import actor_of as actor_of
    from .policies.adam import PolicyAdam as PolicyAdam
    from .policies.advantages.action_advantage import ActionAdvantage as ActionAdvantage
    from .policies.advantages.action_advantage import CriticAdvantage as CriticAdvantage
    from .policies.advantages.flagged import FlaggedDecisions as FlaggedDecisions
    from .policies.advantages.group_score import GroupScore as GroupScore
    from .policies.advantages.progress_gain import ProgressGain as ProgressGain
    from .policies.advantages.reward_to_go import RewardToGo as RewardToGo
    from .policies.advantages.reward_to_go import Uniform as Uniform
    from .policies.advantages.step_advantage import StepAdvantage as StepAdvantage
    from .policies.advantages.teacher import TeacherAdvantage as TeacherAdvantage
    from .policies.chunks import ChunkPolicy as ChunkPolicy
    from .policies.chunks import PerceptronPolicy as PerceptronPolicy
    from .policies.chunks import ScaleHead as ScaleHead
    from .policies.deterministic import Deterministic as Deterministic
    from .policies.gaussian import GaussianPolicy as GaussianPolicy
    from .policies.guards import CollapseGuard as CollapseGuard
    from .policies.laplace import LaplacePolicy as LaplacePolicy
    from .policies.loops.curriculum import Curriculum as Curriculum
    from .policies.loops.curriculum import task_probabilities as task_probabilities
    from .policies.loops.grape import Grape as Grape
    from .policies.loops.grape_evaluation import HeldOutEvaluation as HeldOutEvaluation
    from .policies.loops.grape_evaluation import Violations as Violations
    from .policies.loops.grape_stages import CloningStage as CloningStage
    from .policies.loops.grape_stages import PairedStage as PairedStage
    from .policies.loops.grape_stages import PreferenceStage as PreferenceStage
    from .policies.loops.ire_vla import IReVLA as IReVLA
    from .policies.loops.ire_vla_stages import ConsolidationStage as ConsolidationStage
    from .policies.loops.ire_vla_stages import ReinforcementStage as ReinforcementStage
    from .policies.loops.ire_vla_stages import StageEnd as StageEnd
    from .policies.loops.ire_vla_stages import SupervisedStage as SupervisedStage
    from .policies.loops.stages import TrainingLoop as TrainingLoop
    from .policies.loops.successes import SuccessBuffer as SuccessBuffer
    from .policies.objectives import ClippedSurrogate as ClippedSurrogate
    from .policies.objectives import WeightedImitation as WeightedImitation
    from .policies.optimizer import PolicyOptimizer as PolicyOptimizer
    from .policies.preference_optimizer import PreferenceOptimizer as PreferenceOptimizer
    from .policies.proposer import PolicyProposer as PolicyProposer
    from .policies.rollouts.checkpoint import RolloutCheckpoint as RolloutCheckpoint
    from .policies.rollouts.data import RolloutData as RolloutData
    from .policies.rollouts.frames import RolloutFrames as RolloutFrames
    from .policies.rollouts.groups import GroupRollouts as GroupRollouts
    from .policies.rollouts.played_success import PlayedSuccess as PlayedSuccess
    from .policies.rollouts.pool import WorkerPool as WorkerPool
    from .policies.rollouts.pool import play_episodes as play_episodes
    from .policies.rollouts.ray_pool import RayPool as RayPool
    from .policies.rollouts.setting import TaskSetting as TaskSetting
    from .policies.tokens import TokenPolicy as TokenPolicy
    from .policies.trl_integration.actions import ActionNumbers as ActionNumbers
    from .policies.trl_integration.actions import ActionTokens as ActionTokens
    from .policies.trl_integration.actions import LoggedTurns as LoggedTurns
    from .policies.trl_integration.answers import TRLPlanAnswer as TRLPlanAnswer
    from .policies.trl_integration.answers import TRLProgressAnswer as TRLProgressAnswer
    from .policies.trl_integration.answers import TRLSuccessAnswer as TRLSuccessAnswer
    from .policies.trl_integration.environment import TRLEnvironment as TRLEnvironment
    from .policies.trl_integration.environment import TRLEnvironments as TRLEnvironments
    from .policies.trl_integration.rewards import TRLActionValue as TRLActionValue
    from .policies.trl_integration.rewards import TRLReward as TRLReward
    from .policies.trl_integration.turns import TurnPreferenceTrainer as TurnPreferenceTrainer
    from .policies.trl_integration.turns import turn_dataset as turn_dataset
    from .policies.unpaired import UnpairedPreference as UnpairedPreference
    from .policies.vla import VLAPolicy as VLAPolicy
    from .policies.weights import Exponential as Exponential
    from .policies.weights import Positive as Positive
    from .policies.weights import RewardAligned as RewardAligned
    from .policies.weights import TopShare as TopShare
    from .policies.weights import Weighting as Weighting
    from .preference.adapter_reference import AdapterReference as AdapterReference
    from .preference.agreement import cohens_kappa as cohens_kappa
    from .preference.agreement import fleiss_kappa as fleiss_kappa
    from .preference.agreement import merge_answers as merge_answers
    from .preference.agreement import summarise_raters as summarise_raters
    from .preference.answer_log import AlreadyAnsweredError as AlreadyAnsweredError
    from .preference.answer_log import AnswerLog as AnswerLog
    from .preference.answer_log import AnswerNotSavedError as AnswerNotSavedError
    from .preference.answer_log import read_answers as read_answers
    from .preference.answers import Answer as Answer
    from .preference.answers import write_answers as write_answers
    from .preference.data import PreferenceData as PreferenceData
    from .preference.data import SegmentFrames as SegmentFrames
    from .preference.fit import PreferenceTraining as PreferenceTraining
    from .preference.flags import Flag as Flag
    from .preference.flags import decision_flags as decision_flags
    from .preference.label_studio_tasks import label_studio_config as label_studio_config
    from .preference.label_studio_tasks import read_label_studio_answers as read_label_studio_answers
    from .preference.label_studio_tasks import write_label_studio_tasks as write_label_studio_tasks
    from .preference.objectives import BradleyTerry as BradleyTerry
    from .preference.objectives import FlagLoss as FlagLoss
    from .preference.paired_episodes import PairedEpisodes as PairedEpisodes
    from .preference.pairs import ScoredPairs as ScoredPairs
    from .preference.pairs import group_pairs as group_pairs
    from .preference.pairs import reward_pairs as reward_pairs
    from .preference.preference_arrays import read_preference_arrays as read_preference_arrays
    from .preference.preference_arrays import write_preference_arrays as write_preference_arrays
    from .preference.queries import random_queries as random_queries
    from .preference.queries import select_queries as select_queries
    from .preference.random_pairs import draw_segment_pairs as draw_segment_pairs
    from .preference.raters import SimulatedRater as SimulatedRater
    from .preference.references import FrozenReference as FrozenReference
    from .preference.references import RecordedReference as RecordedReference
    from .preference.rollbacks import RollbackPairs as RollbackPairs
    from .preference.rollbacks import rollback_pairs as rollback_pairs
    from .preference.rules import LengthMatchedPairs as LengthMatchedPairs
    from .preference.rules import PairRule as PairRule
    from .preference.rules import RandomPairs as RandomPairs
    from .preference.rules import SuccessPairs as SuccessPairs
    from .preference.segments import Segment as Segment
    from .preference.segments import SegmentPair as SegmentPair
    from .preference.segments import read_segment_pairs as read_segment_pairs
    from .preference.segments import write_segment_pairs as write_segment_pairs
    from .preference.tpo import TrajectoryPreference as TrajectoryPreference
    from .preference.trl_pairs import AnswerPair as AnswerPair
    from .preference.trl_pairs import answer_dataset as answer_dataset
    from .preference.trl_pairs import answer_pairs as answer_pairs
    from .rewards.calibration import Calibrated as Calibrated
    from .rewards.combine import Around as Around
    from .rewards.combine import Clip as Clip
    from .rewards.combine import Normalise as Normalise
    from .rewards.combine import Scale as Scale
    from .rewards.combine import Sum as Sum
    from .rewards.costs import Constraint as Constraint
    from .rewards.costs import external_reward as external_reward
    from .rewards.ensemble import EnsembleReward as EnsembleReward
    from .rewards.fit import RewardTraining as RewardTraining
    from .rewards.frame_windows import FrameWindows as FrameWindows
    from .rewards.grape.trajectory import GrapeScore as GrapeScore
    from .rewards.heads import PredictionSettings as PredictionSettings
    from .rewards.milestones.detection import MilestoneDetector as MilestoneDetector
    from .rewards.milestones.labels import MilestoneLabels as MilestoneLabels
    from .rewards.milestones.labels import MilestoneTracks as MilestoneTracks
    from .rewards.milestones.oracle import MilestoneOracle as MilestoneOracle
    from .rewards.milestones.payment import MilestonePayment as MilestonePayment
    from .rewards.milestones.reward import MilestoneReward as MilestoneReward
    from .rewards.observation_encoder import ObservationEncoder as ObservationEncoder
    from .rewards.observed import ObservedReward as ObservedReward
    from .rewards.preference_transformer import PreferenceTransformer as PreferenceTransformer
    from .rewards.progress import ProgressReward as ProgressReward
    from .rewards.recorded import RecordedReward as RecordedReward
    from .rewards.recorded import RecordedSuccess as RecordedSuccess
    from .rewards.shaping import Delta as Delta
    from .rewards.shaping import FirstHit as FirstHit
    from .rewards.shaping import Level as Level
    from .rewards.shaping import Potential as Potential
    from .rewards.shaping import Shaped as Shaped
    from .rewards.shaping import Sparse as Sparse
    from .rewards.staged_grasp import StagedGraspReward as StagedGraspReward
    from .rewards.stages.decomposer import VlmDecomposer as VlmDecomposer
    from .rewards.stages.decomposer_training import DecomposerTraining as DecomposerTraining
    from .rewards.stages.fine_tuning import FineTuning as FineTuning
    from .rewards.stages.recorded_plans import RecordedDecomposer as RecordedDecomposer
    from .rewards.stages.rule_decomposer import RuleDecomposer as RuleDecomposer
    from .rewards.stages.segmentation import StagePath as StagePath
    from .rewards.stages.subgoals import StageLabels as StageLabels
    from .rewards.stages.subgoals import SubgoalLabels as SubgoalLabels
    from .rewards.stages.subgoals import SubgoalReward as SubgoalReward
    from .rewards.state_action import StateActionModel as StateActionModel
    from .rewards.state_action import StateActionReward as StateActionReward
    from .rewards.step_cost import StepCost as StepCost
    from .rewards.success import SuccessReward as SuccessReward
    from .rewards.vlm_progress import VlmProgressReward as VlmProgressReward
    from .rewards.zero_shot.frame_order import ShuffledFrames as ShuffledFrames
    from .rewards.zero_shot.image_goal import ImageGoalDistance as ImageGoalDistance
    from .rewards.zero_shot.likeness import SimilarityReward as SimilarityReward
    from .rewards.zero_shot.similarity import GoalSimilarity as GoalSimilarity
    from .rewards.zero_shot.vlm import AnswerReward as AnswerReward
    from .rewards.zero_shot.vlm import CompletionLikelihood as CompletionLikelihood
    from .rewards.zero_shot.vlm import ExpectedRating as ExpectedRating
    from .scoring.dataset import ScoringReport as ScoringReport
    from .scoring.dataset import score_dataset as score_dataset
    from .scoring.scores import read_scores as read_scores

__all__ = ["__version__", *sorted(_PUBLIC)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import a public name or a sub-package the first time it is used (PEP 562)."""
    import importlib

    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name)}", name=name)
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def nearest(name: str) -> str:
    """Return a hint with the public names nearest to one that does not exist."""
    import difflib

    near = difflib.get_close_matches(name, _PUBLIC, n=3, cutoff=0.6)
    lower = {known.lower(): known for known in _PUBLIC}
    near = near or [lower[known] for known in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else "; dir(guerdon) lists the public names"


def names_by_job() -> dict[str, list[str]]:
    """List the public names by the job they serve."""
    return {job: sorted(name for names in modules.values() for name in names) for job, modules in _JOBS.items()}


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted([*globals(), *_PUBLIC, *_ROOMS])

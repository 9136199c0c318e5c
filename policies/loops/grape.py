"""GRAPE: rollouts from one initial state are scored and paired, and the policy learns from the pairs, in iterations."""

import copy
from pathlib import Path
from typing import Any

import lightning
import torch

from ...core.files import read_json, sha256_file, without_nan, write_json
from ...core.hub import component_hash, hash_component, save_component
from ...core.interfaces import Policy, RewardModel
from ...core.sizes import take_sizes, unknown_sizes
from ...datasets.module import EpisodeData
from ..rollouts.data import RolloutData
from ..rollouts.decisions import hash_seed
from .grape_evaluation import EVALUATION, HeldOutEvaluation, evaluate_iteration
from .grape_pairs import BY_SELF, PAIRS, pair_iteration, read_pairs
from .grape_rollouts import ROLLOUTS, Tasks, play_iteration, tasks_of
from .grape_scores import SCORES, score_iteration
from .grape_stages import PairData, PairedStage, PreferenceStage
from .implicit_reward import learning_summary, pair_log_probs
from .ire_vla_stages import SupervisedStage
from .stages import (
    CHECKPOINTS,
    MODEL,
    STAGE,
    EpochCheckpoint,
    StageFolder,
    TrainingLoop,
    load_policy,
    stage_seed,
    tell,
)
from .supervised import clone_episodes

ITERATIONS = "iterations.json"
"""File of a run with the metrics of every iteration."""

SOURCE = "source.json"
"""File of a stage that learns, with the hash of the pairs that its checkpoint was made from."""

_NO_DRAWS: dict[str, Any] = {"draws": 0, "skips": {}, "curriculum": {}}


class Grape(TrainingLoop):
    """GRAPE (Zhang et al. 2024, arXiv 2411.19309): align a policy with trajectory-wise preferences, in iterations.

    The policy first clones expert data. Then, in each iteration, it plays several rollouts from each of many initial
    states; a reward model such as `guerdon.GrapeScore` splits them into stages and scores them; the best and the worst
    of one initial state make a pair; and the policy learns from the pairs. It is evaluated on held-out initial states
    before the first iteration and after each.

    Each stage is a folder: ``0_sft``, ``0_evaluation``, ``1_rollouts``, ``1_scores``, ``1_pairs``, ``1_tpo``,
    ``1_evaluation``, ``2_rollouts`` and so on; ``iterations.json`` holds the metrics of all iterations. A stage whose
    last file is there is complete and is skipped. A run that was killed at any moment goes on with the same call, and
    ends with the weights of the uninterrupted run.

    Args:
        policy: Policy that is trained, or that training goes on from. It must sample.
        rollouts: Rollouts with ``groups``: ``rollouts`` × ``groups.contexts`` groups of ``groups.size`` episodes make
            an iteration.
        reward: Reward model that scores whole rollouts; it is frozen.
        tpo: Settings of learning from pairs; None takes those of `guerdon.PreferenceStage`.
        expert: Expert data of the first stage; None without it.
        sft: Settings of the first stage, supervised learning on the expert data; None leaves it out.
        evaluation: Settings of the evaluation; None leaves it out.
        iterations: Number of iterations.
        seed: Random seed of initial weights, initial states and minibatches.
        accelerator: Accelerator of Lightning, such as ``"cpu"``.

    Raises:
        ValueError: If rollouts have no groups, the first stage lacks its data, or there is no iteration.
    """

    def __init__(
        self,
        policy: Policy,
        rollouts: RolloutData,
        reward: RewardModel,
        tpo: PairedStage | None = None,
        expert: EpisodeData | None = None,
        sft: SupervisedStage | None = None,
        evaluation: HeldOutEvaluation | None = None,
        iterations: int = 3,
        seed: int = 0,
        accelerator: str = "auto",
    ) -> None:
        if iterations < 1:
            raise ValueError(f"iterations {iterations}: expected at least one")
        if rollouts.groups is None:
            raise ValueError(
                "rollouts has no groups: preferences compare rollouts from one initial state; set groups.size and "
                "groups.contexts of rollouts"
            )
        if sft is not None and expert is None:
            raise ValueError("sft learns from expert data: name it with expert, or leave sft out (null)")
        self.policy, self.expert, self.rollouts = policy, expert, rollouts
        self.reward = reward.requires_grad_(False).eval()
        self.tpo = PreferenceStage() if tpo is None else tpo
        self.sft, self.evaluation = sft, evaluation
        self.iterations, self.seed, self.accelerator = iterations, seed, accelerator

    def run(self, folder: Path) -> Path:
        """Run all stages that are not complete, and save the policy that the last one left.

        Args:
            folder: Folder of the run.

        Returns:
            Folder of the policy.

        Raises:
            ValueError: If data and tasks differ in size, all rollouts of a group are alike, no pair can be made, or a
                stage was made from another one than is there.
            KeyboardInterrupt: If the run was interrupted.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tasks = self._tasks()
        start = self._start(folder)
        self._evaluate(folder, tasks, 0, start)
        latest = start
        for iteration in range(1, self.iterations + 1):
            latest = self._iterate(folder, tasks, iteration, start, latest)
            self._evaluate(folder, tasks, iteration, latest)
        policy = load_policy(latest.model, self.policy)
        target = folder / MODEL
        if not StageFolder(folder).finished or component_hash(target) != hash_component(policy):
            save_component(policy, target)
        return target

    def _tasks(self) -> Tasks:
        """Build each task once, and compare its sizes with those of the expert data before hours of training."""
        evaluation = self.evaluation
        split, episodes = ("eval", 0) if evaluation is None else (evaluation.split, evaluation.episodes)
        tasks = tasks_of(self.rollouts, split, episodes)
        expert = None if self.expert is None or self.sft is None else self.expert.sizes
        for task in tasks.sizes:
            if expert is not None and (task.state_size, task.action_size) != (expert.state_size, expert.action_size):
                raise ValueError(
                    f"{task.name} has states of {task.state_size} and actions of {task.action_size} numbers, and "
                    f"{expert.name} of {expert.state_size} and {expert.action_size}: choose tasks of one robot"
                )
        return tasks

    def _start(self, folder: Path) -> StageFolder:
        """Run the first stage, or save the policy that the run begins with."""
        stage = StageFolder(folder / ("0_start" if self.sft is None else "0_sft"))
        if stage.finished:
            return stage
        policy = copy.deepcopy(self.policy)
        if self.sft is None:
            if unknown_sizes(policy):
                torch.manual_seed(stage_seed(self.seed, 0))
                take_sizes(policy, self.rollouts.sizes)
            stage.path.mkdir(parents=True, exist_ok=True)
            stage.finish(policy)
            return stage
        assert self.expert is not None
        if self.expert.val_fraction > 0:
            tell(
                f"the expert data hold out {self.expert.val_fraction:.0%} of their initial states (val_fraction), and "
                "no stage uses them; set val_fraction to 0 to learn from all"
            )
        tell(f"supervised learning on {', '.join(self.expert.paths)}")
        data = self.expert.with_added([], self.expert.balance_tasks)
        clone_episodes(stage, self.sft, policy, data, stage_seed(self.seed, 0), self.accelerator)
        return stage

    def _iterate(
        self, folder: Path, tasks: Tasks, iteration: int, start: StageFolder, before: StageFolder
    ) -> StageFolder:
        """Run the stages of an iteration; return that of the policy it trained."""
        rollouts, scores, pairs = (folder / f"{iteration}_{name}" for name in ("rollouts", "scores", "pairs"))
        learned = StageFolder(folder / f"{iteration}_tpo")
        self._play(folder, rollouts, tasks, iteration, before)
        if not _complete(scores / SCORES, "made_from", sha256_file(rollouts / ROLLOUTS)):
            score_iteration(scores, rollouts, self.reward.to(self._device))
            told = read_json(scores / SCORES, "the scores of an iteration")
            shares = ", ".join(f"{name} {share:.0%}" for name, share in told["shares"]["within_groups"].items())
            tell(
                f"iteration {iteration}: {told['scored']} of {len(told['rows'])} rollouts scored; shares of the "
                f"variance within groups: {shares or 'none'}"
            )
        if not _complete(pairs / PAIRS, "made_from", sha256_file(scores / SCORES)):
            seed = hash_seed(self.seed, iteration, 2)
            pair_iteration(pairs, rollouts, scores, self.tpo.pairs, self.tpo.held_out, seed)
            told = read_json(pairs / PAIRS, "the pairs of an iteration")
            tell(
                f"iteration {iteration}: {len(told['pairs'])} pairs from {told['groups_with_a_pair']} of "
                f"{told['groups']} groups: "
                + ", ".join(f"{count} {reason}" for reason, count in told["reasons"].items())
            )
            decided = told["reasons"].get(BY_SELF, 0)
            if decided:
                tell(
                    f"warning: {decided} of {len(told['pairs'])} pairs are of two failures that only their likelihood "
                    "tells apart, which is mostly noise: set margin or require_success_gap of tpo.pairs, or the "
                    "first of the weights of the reward to 0"
                )
        self._learn(learned, iteration, rollouts, pairs, before, start)
        return learned

    def _play(self, folder: Path, rollouts: Path, tasks: Tasks, iteration: int, before: StageFolder) -> None:
        """Play the rollouts of an iteration."""
        policy = component_hash(before.model)
        if _complete(rollouts / ROLLOUTS, "policy", policy):
            return
        draws = _NO_DRAWS
        if iteration > 1:
            draws = read_json(folder / f"{iteration - 1}_rollouts" / ROLLOUTS, "the rollouts of an iteration")["draws"]
        play_iteration(
            rollouts,
            self.rollouts,
            tasks,
            self._acting(before),
            self.reward,
            {"policy": policy, "draws": draws},
            hash_seed(self.seed, self.rollouts.seed, iteration, 1),
        )
        told = read_json(rollouts / ROLLOUTS, "the rollouts of an iteration")
        rate = "success unknown" if told["success"] is None else f"success {told['success']:.2f}"
        tell(f"iteration {iteration}: {told['episodes']} rollouts of {told['groups']} initial states, {rate}")

    def _acting(self, stage: StageFolder) -> Policy:
        """Open the policy that a stage left, for acting: on the accelerator where it stays in this process."""
        policy = load_policy(stage.model, self.policy)
        return policy.to(self._device) if self.rollouts.policy_stays else policy

    def _learn(
        self,
        stage: StageFolder,
        iteration: int,
        rollouts: Path,
        pairs: Path,
        before: StageFolder,
        start: StageFolder,
    ) -> None:
        """Learn from the pairs of an iteration."""
        source = sha256_file(pairs / PAIRS)
        if stage.finished and _complete(stage.path / STAGE, "made_from", source):
            return
        _forget_other(stage, source)
        device = self._device
        policy = load_policy(before.model, self.policy).to(device)
        found = read_pairs(pairs, rollouts)
        parts = {"train": found.train.to(device), "held_out": found.held_out.to(device)}
        compared = start if self.tpo.compared == "initial" else before
        reference = policy if compared == before else load_policy(compared.model, self.policy).to(device)
        base = {name: pair_log_probs(reference, part) for name, part in parts.items()}
        first = base if compared == before else {name: pair_log_probs(policy, part) for name, part in parts.items()}
        seed = stage_seed(self.seed, iteration, 3)
        torch.manual_seed(seed)
        module = self.tpo.module(policy, load_policy(compared.model, self.policy), seed)
        data = PairData(self.tpo.batch(found.train), self.rollouts.sizes)
        stage.fit(module, data, [EpochCheckpoint(stage.path / CHECKPOINTS)], 1, self.accelerator)
        updates = int(module.trainer.global_step)
        policy.to(device)
        told = {
            name: learning_summary(first[name], pair_log_probs(policy, part), base[name])
            for name, part in parts.items()
        }
        summary = {
            "made_from": source,
            "updates": updates,
            "pairs": len(found.train),
            "held_out_pairs": len(found.held_out),
            **told,
        }
        write_json(stage.path / STAGE, without_nan(summary))
        stage.finish(policy)
        accuracy = told["held_out"]["accuracy"]["after"]
        shown = f", accuracy on {len(found.held_out)} held-out pairs {accuracy:.2f}" if len(found.held_out) else ""
        tell(f"iteration {iteration}: {updates} updates on {len(found.train)} pairs{shown}")

    @property
    def _device(self) -> torch.device:
        """Device of the accelerator."""
        return lightning.Fabric(accelerator=self.accelerator, devices=1).device

    def _evaluate(self, folder: Path, tasks: Tasks, iteration: int, stage: StageFolder) -> None:
        """Evaluate the policy of an iteration, and renew the table of all iterations."""
        if self.evaluation is not None:
            place, policy = folder / f"{iteration}_evaluation", component_hash(stage.model)
            if not _complete(place / EVALUATION, "policy", policy):
                acting = self._acting(stage)
                found = evaluate_iteration(place, self.rollouts, tasks, acting, self.evaluation, policy)["all"]
                violated = found["violations"]["value"]
                tell(
                    f"iteration {iteration}: success {_percent(found['success'])}, {found['steps']['value']:.1f} steps"
                    + ("" if violated is None else f", violations {_percent(found['violations'])}")
                    + f" in {found['episodes']} held-out episodes"
                )
        self._gather(folder)

    def _gather(self, folder: Path) -> None:
        """Renew the table of all iterations where a stage added to it."""
        rows = [_row(folder, iteration) for iteration in range(self.iterations + 1)]
        table, path = [row for row in rows if len(row) > 1], folder / ITERATIONS
        if table and (not path.is_file() or read_json(path, "the metrics of iterations") != table):
            write_json(path, table)


def _complete(path: Path, key: str, source: str) -> bool:
    """Return whether the last file of a stage is there, and require that the stage was made from what is there.

    Args:
        path: Last file of the stage.
        key: Key in it that names its source.
        source: Hash of the source.

    Raises:
        ValueError: If the stage was made from something else.
    """
    if not path.is_file():
        return False
    if read_json(path, "the last file of a stage")[key] != source:
        number = path.parent.name.partition("_")[0]
        raise ValueError(
            f"{path.parent} was made from another earlier stage than the one that is there: remove it and the stages "
            f"after it ({number}_… and those with higher numbers), and give the same command again"
        )
    return True


def _forget_other(stage: StageFolder, source: str) -> None:
    """Remove the checkpoint of a stage that was interrupted while it learned from other pairs; keep the source.

    Args:
        stage: Folder of the stage.
        source: Hash of the pairs that are learned from.
    """
    path = stage.path / SOURCE
    if path.is_file() and read_json(path, "the source of a stage")["made_from"] == source:
        return
    stage.checkpoint.unlink(missing_ok=True)
    stage.path.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_from": source})


def _row(folder: Path, iteration: int) -> dict[str, Any]:
    """Gather the metrics of an iteration from the files of its stages."""
    found: dict[str, Any] = {"iteration": iteration}
    evaluation = folder / f"{iteration}_evaluation" / EVALUATION
    if evaluation.is_file():
        every = read_json(evaluation, "an evaluation")["all"]
        found |= {name: every[name] for name in ("success", "violations", "steps")}
    stage = folder / f"{iteration}_tpo" / STAGE
    if stage.is_file():
        told = read_json(stage, "the numbers of a stage")
        found |= {name: told[name] for name in ("pairs", "held_out_pairs", "updates")}
        found |= {f"{name}_accuracy": told[name]["accuracy"] for name in ("train", "held_out")}
        rollouts = read_json(folder / f"{iteration}_rollouts" / ROLLOUTS, "the rollouts of an iteration")
        found |= {"rollouts": rollouts["episodes"], "rollout_success": rollouts["success"]}
    return found


def _percent(found: dict[str, Any]) -> str:
    return "unknown" if found["value"] is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


__all__ = ["ITERATIONS", "Grape"]

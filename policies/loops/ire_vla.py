"""iRe-VLA: supervised learning, then reinforcement learning and supervised learning in turns, task by task."""

import copy
import re
from contextlib import closing
from pathlib import Path

import torch

from ...core.files import write_json
from ...core.hub import hash_component, save_component
from ...core.interfaces import AdvantageSource, Policy
from ...core.sizes import DataSizes, take_sizes, unknown_sizes
from ...datasets.module import EpisodeData
from ...datasets.opening import open_dataset
from ..rollouts.checkpoint import RolloutCheckpoint
from ..rollouts.data import RolloutData
from ..rollouts.decisions import hash_seed
from .ire_vla_stages import ConsolidationStage, ReinforcementStage, StopWhen, SupervisedStage
from .stages import (
    CHECKPOINTS,
    MODEL,
    STAGE,
    StageFolder,
    TrainingLoop,
    changed_tensors,
    load_policy,
    stage_seed,
    tell,
)
from .successes import GatherSuccesses, SuccessBuffer, write_successes
from .supervised import clone_episodes

ONLINE = "online"


class IReVLA(TrainingLoop):
    """iRe-VLA (Guo et al. 2025, arXiv 2501.16664): improve a policy by online reinforcement learning without collapse.

    Stage 0 clones the expert data. Then, for each task, stage 1 is reinforcement learning with the backbone frozen and
    a fresh critic, whose successful trajectories go into the online buffer, and stage 2 is supervised learning of the
    whole policy on the expert data and the online buffer, each task with the same weight.

    Each stage is a fit in a folder of its own: ``0_sft``, ``1_<task>_rl``, ``1_<task>_sl``, ``2_…``. A run that was
    interrupted at any moment goes on from the checkpoint of its unfinished stage, and ends with the weights of the
    uninterrupted run. The buffer of each task is the data set ``online/<task>``.

    Leaving a stage out gives the baselines of the paper: ``rl=None`` is supervised learning alone; ``sft=None`` with
    ``sl=None`` is reinforcement learning from scratch; ``sl=None`` alone is stage 1 alone. ``frozen_parts`` of the
    stages' optimizers make PPO-Replay (nothing frozen) and iRe-VLA-freeze (the backbone frozen in both).

    Args:
        policy: Policy that is trained, or that training goes on from.
        expert: Expert data D_e; None where no stage is supervised.
        rollouts: Rollouts, whose tasks are the tasks of stage 1 in their order; each is played alone. None without
            stage 1.
        sft: Settings of stage 0; None leaves it out.
        rl: Settings of stage 1; None leaves it out.
        sl: Settings of stage 2; None leaves it out.
        buffer: Settings of the online buffer; None takes its defaults.
        passes: Number of passes over the tasks.
        seed: Random seed of initial weights and of the order of minibatches.
        accelerator: Accelerator of Lightning, such as ``"cpu"``.

    Raises:
        ValueError: If no stage is left, or one lacks its data.
    """

    def __init__(
        self,
        policy: Policy,
        expert: EpisodeData | None = None,
        rollouts: RolloutData | None = None,
        sft: SupervisedStage | None = None,
        rl: ReinforcementStage | None = None,
        sl: ConsolidationStage | None = None,
        buffer: SuccessBuffer | None = None,
        passes: int = 1,
        seed: int = 0,
        accelerator: str = "auto",
    ) -> None:
        if passes < 1:
            raise ValueError(f"passes {passes}: expected at least one pass over the tasks")
        if sft is None and rl is None and sl is None:
            raise ValueError("sft, rl and sl are all left out: expected the settings of at least one stage")
        if expert is None and (sft is not None or sl is not None):
            raise ValueError("sft and sl learn from expert data: name it with expert, or leave both out (null)")
        if rl is not None and rollouts is None:
            raise ValueError("rl needs rollouts, which name its tasks: give rollouts, or leave rl out (null)")
        if rl is not None and rollouts is not None and rollouts.hide_outcome:
            raise ValueError("hide_outcome of rollouts: the online buffer holds successes, so it must see outcomes")
        self.policy, self.expert, self.rollouts = policy, expert, rollouts
        self.sft, self.rl, self.sl = sft, rl, sl
        self.buffer = SuccessBuffer() if buffer is None else buffer
        self.passes, self.seed, self.accelerator = passes, seed, accelerator

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of stage 1, in their order."""
        return () if self.rl is None or self.rollouts is None else self.rollouts.task_names

    def run(self, folder: Path) -> Path:
        """Run all stages that are not complete, and save the policy that the last one left.

        Args:
            folder: Folder of the run.

        Returns:
            Folder of the policy.

        Raises:
            ValueError: If data and tasks differ in size, or stage 2 has no success to learn from.
            KeyboardInterrupt: If the run was interrupted.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._check()
        start = self._sft(StageFolder(folder / "0_sft")) if self.sft is not None else None
        latest, before = start, None
        turns = [(turn, task) for turn in range(self.passes) for task in (self.tasks or ("",))]
        for number, (_, task) in enumerate(turns, 1):
            stem = f"{number}_{slug(task)}" if task else str(number)
            found = latest
            if self.rl is not None:
                stage = StageFolder(folder / f"{stem}_rl")
                self._rl(stage, self.rl, task, number, latest, before)
                before, found = stage, stage
            if self.sl is not None:
                found = self._sl(StageFolder(folder / f"{stem}_sl"), self.sl, task, number, (start, latest, found))
            latest = found
        policy = self._policy(latest)
        target = folder / MODEL
        if not StageFolder(folder).finished or hash_component(load_policy(target, policy)) != hash_component(policy):
            save_component(policy, target)
        return target

    def _check(self) -> None:
        """Compare the sizes of the tasks and of the expert data before hours of training.

        Raises:
            ValueError: If they differ, or there is no such task.
            FileNotFoundError: If there is no expert data.
        """
        expert = None if self.expert is None else self.expert.sizes
        if self.expert is not None and self.expert.val_fraction > 0:
            tell(
                f"the expert data hold out {self.expert.val_fraction:.0%} of their initial states (val_fraction), and "
                "no stage uses them; set val_fraction to 0 to learn from all"
            )
        self._check_frozen_parts(expert)
        if self.rl is None or self.rollouts is None:
            return
        frames = self.rollouts.setting.frames
        if frames is not None and frames.encoder is not None:
            raise ValueError(
                "rollouts.frames has an encoder, and the online buffer stores frames, not features: leave the encoder "
                "out of the rollouts, and put it into the policy"
            )
        for task in self.rollouts.setting.sizes():
            if expert is not None and (task.state_size, task.action_size) != (expert.state_size, expert.action_size):
                raise ValueError(
                    f"{task.name} has states of {task.state_size} and actions of {task.action_size} numbers, and "
                    f"{expert.name} of {expert.state_size} and {expert.action_size}: choose tasks of one robot"
                )

    def _check_frozen_parts(self, expert: DataSizes | None) -> None:
        """Find the parts that each stage freezes in the policy.

        Raises:
            ValueError: If there is no such part.
        """
        policy = copy.deepcopy(self.policy)
        sizes = self.rollouts.sizes if expert is None and self.rollouts is not None else expert
        if sizes is not None:
            take_sizes(policy, sizes)
        for stage in (self.sft, self.rl, self.sl):
            if stage is not None:
                for parameter in stage.optimizer.freeze(policy):
                    parameter.requires_grad_(True)

    def _policy(self, stage: StageFolder | None) -> Policy:
        """Open the policy that a stage left; None makes a copy of the one that the run begins with."""
        return copy.deepcopy(self.policy) if stage is None else load_policy(stage.model, self.policy)

    def _sft(self, stage: StageFolder) -> StageFolder:
        """Run stage 0."""
        assert self.sft is not None and self.expert is not None
        if not stage.finished:
            tell(f"stage 0: supervised learning on {', '.join(self.expert.paths)}")
            data = self.expert.with_added([], self.expert.balance_tasks)
            self._supervise(stage, self.sft, self._policy(None), data, 0)
        return stage

    def _supervise(
        self, stage: StageFolder, settings: SupervisedStage, policy: Policy, data: EpisodeData, number: int
    ) -> None:
        """Train a policy on logged episodes, and complete the stage."""
        clone_episodes(stage, settings, policy, data, stage_seed(self.seed, number, 0), self.accelerator)

    def _rl(
        self,
        stage: StageFolder,
        settings: ReinforcementStage,
        task: str,
        number: int,
        start: StageFolder | None,
        before: StageFolder | None,
    ) -> None:
        """Run stage 1 of a task: reinforcement learning, and the data set of its successes."""
        if stage.finished:
            return
        assert self.rollouts is not None
        tell(f"stage 1, {task}: reinforcement learning")
        seed = stage_seed(self.seed, number, 1)
        torch.manual_seed(seed)
        policy = self._policy(start)
        data = self.rollouts.for_task(task, hash_seed(self.rollouts.seed, number))
        module = settings.module(policy, seed)
        if settings.carry_critic or unknown_sizes(policy):
            take_sizes(module, data.sizes)
        if settings.carry_critic and before is not None:
            _load_advantage(module.advantage, before.checkpoint)
        frozen = {name: value.detach().clone() for name, value in settings.frozen(policy)}
        gather, stop = GatherSuccesses(self.buffer), StopWhen(settings.until)
        keep = RolloutCheckpoint(stage.path / CHECKPOINTS)
        stage.fit(module, data, [gather, stop, keep], 1, self.accelerator)
        changed = changed_tensors(frozen, dict(module.policy.named_parameters()))
        if changed:
            raise RuntimeError(
                f"stage 1 of {task} changed {changed[0]!r}, which is frozen: something other than its optimizer writes "
                "to it"
            )
        if gather.kept:
            with closing(data.setting.make(0)) as simulator:
                write_successes(gather.kept, simulator, self._online(stage, task), data.groups is not None)
        summary = {
            "task": task,
            "env_steps": data.env_steps,
            "rollouts": data.rollouts_made,
            "episodes": gather.episodes,
            "successes": gather.found,
            "kept": len(gather.kept),
            "initial_states": len({one.group for one in gather.kept}),
            "latest_success": stop.success,
            "ended_by": stop.reason,
        }
        write_json(stage.path / STAGE, summary)
        stage.finish(module.policy)
        rate = "no episode ended" if stop.success is None else f"success {stop.success:.2f} in the latest episodes"
        tell(f"stage 1, {task}: {data.env_steps} environment steps, {rate}, {len(gather.kept)} successes kept")

    def _sl(
        self,
        stage: StageFolder,
        settings: ConsolidationStage,
        task: str,
        number: int,
        policies: tuple[StageFolder | None, StageFolder | None, StageFolder | None],
    ) -> StageFolder | None:
        """Run stage 2 of a task; return the stage whose policy goes on.

        Args:
            stage: Folder of the stage.
            settings: Settings of the stage.
            task: Name of the task; empty without stage 1.
            number: Number of the turn.
            policies: Stages of the policy after stage 0, of that before stage 1, and of that after it.
        """
        first, earlier, latest = policies
        if stage.finished:
            return stage
        assert self.expert is not None
        online = [self._online(stage, name) for name in self.tasks] if settings.online else []
        online = [folder for folder in online if folder.is_dir()]
        if settings.online and task and self._online(stage, task) not in online:
            if settings.without_success == "error":
                raise ValueError(
                    f"stage 2 of {task} has no success to learn from: stage 1 found none, see {STAGE} in its folder. "
                    "Give it more rollouts or an easier task in another run, or set without_success of sl to expert "
                    "(learn from the other data alone) or skip (go on with the policy before stage 1), and give the "
                    "same command again"
                )
            if settings.without_success == "skip":
                tell(f"stage 2, {task}: skipped without a success; the policy before stage 1 goes on")
                return earlier
            tell(f"stage 2, {task}: no success of this task, so the other data alone are learned from")
        for path in online:
            require_successes(path)
        what = f"stage 2, {task}" if task else "stage 2"
        tell(f"{what}: supervised learning on the expert data and {len(online)} online data sets")
        data = self.expert.with_added([str(path) for path in online], settings.balance_tasks)
        self._supervise(stage, settings, self._policy(first if settings.restart else latest), data, number)
        return stage

    @staticmethod
    def _online(stage: StageFolder, task: str) -> Path:
        """Return the folder of the data set of a task's successes."""
        return stage.path.parent / ONLINE / slug(task)


def slug(task: str) -> str:
    """Turn the name of a task into the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", task).strip("-.")


def require_successes(folder: Path) -> None:
    """Require that a data set holds successful episodes only.

    Raises:
        ValueError: If an episode is no success.
    """
    dataset = open_dataset(folder)
    for place in range(len(dataset)):
        summary = dataset.summary(place)
        if summary.success != 1:
            raise ValueError(
                f"{folder}: episode {summary.index} has success {summary.success}, and the online buffer holds "
                "successes only: remove the folder and its stage, and give the same command again"
            )


def _load_advantage(advantage: AdvantageSource, checkpoint: Path) -> None:
    """Load the weights that an advantage source had at the end of an earlier stage."""
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "advantage."
    advantage.load_state_dict({name[len(prefix) :]: v for name, v in stored.items() if name.startswith(prefix)})


__all__ = ["IReVLA", "require_successes", "slug"]

"""Published claims about reinforcement learning from few demonstrations, at equal environment steps.

    python benchmarks/recipe_claims.py --runs runs/recipe_claims --minutes 60
    python benchmarks/recipe_claims_table.py --runs runs/recipe_claims

Each arm clones a policy from a few scripted demonstrations and improves it until it has used up its environment steps,
those of rejected groups included. All policies play the same held-out initial states, deterministically and sampled.
One line per finished run goes to ``runs.jsonl``, and a second call goes on from there: seed 0 of all arms first, then
seed 1, and so on. `docs/recipe_measurements.md` holds the results.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from rich.console import Console

from common import command_line, silent_trainer
from guerdon import (
    AdvantageSource,
    ClippedSurrogate,
    EpisodeData,
    GaussianPolicy,
    GroupRollouts,
    GroupScore,
    LabelFactory,
    Objective,
    Policy,
    PolicyAdam,
    PolicyOptimizer,
    Positive,
    RecordedSuccess,
    RewardToGo,
    RolloutData,
    TaskSetting,
    Uniform,
    ValueCritic,
    WeightedImitation,
    play_episodes,
)
from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.core.hub import load_component
from guerdon.envs.collect import collect_dataset
from guerdon.envs.vector import make_task
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.tokens import TokenPolicy

PUSH, REACH, WINDOW = "metaworld/push-v3", "metaworld/reach-v3", "metaworld/window-open-v3"
BUTTON = "metaworld/button-press-topdown-v3"
WATCHED = ("explained_variance", "clipped", "ratio_ess", "kl", "accepted_share", "updates")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Settings of one arm; the defaults are those of the arm that the others are compared with."""

    name: str
    task: str = PUSH
    demonstrations: int = 5
    learner: Literal["groups", "filtered", "critic"] = "groups"
    contexts: int = 25
    """Number of initial states that are trained on."""
    rejection: Literal["none", "resample"] = "none"
    unit: Literal["action", "trajectory"] = "action"
    minibatch_episodes: int | None = None
    """Number of whole episodes in a minibatch; None makes minibatches of decisions."""
    warmup: int = 0
    """Number of first rollouts on which only the critic learns."""
    match: str | None = None
    """Arm whose number of rollouts is reached too, after the environment steps are used up."""
    horizon: int = 100
    steps: int = 60_000
    learning_rate: float = 1e-4
    log_std: float = -1.5
    """Logarithm of the initial standard deviation of an action."""
    temperature: float | None = None
    """Temperature of a policy whose actions are tokens; None takes a Gaussian policy."""
    size: int = 8
    """Number of episodes of a group."""
    groups: int = 8
    """Number of groups in a rollout."""
    minibatch_size: int = 1024
    envs: int = 16
    episodes: int = 60
    """Number of held-out initial states that are played deterministically."""
    sampled: int = 40
    """Number of the first of them that are played once more with noise."""


BASE = Arm(name="leave one out")
ARMS: tuple[Arm, ...] = (
    BASE,
    replace(BASE, name="filtered cloning", learner="filtered"),
    replace(BASE, name="0 demonstrations", demonstrations=0),
    replace(BASE, name="1 demonstration", demonstrations=1),
    replace(BASE, name="2 demonstrations", demonstrations=2),
    replace(BASE, name="20 demonstrations", demonstrations=20),
    replace(BASE, name="1 context", contexts=1),
    replace(BASE, name="5 contexts", contexts=5),
    replace(BASE, name="10 contexts", contexts=10),
    replace(BASE, name="critic, no warm-up", learner="critic"),
    replace(BASE, name="critic, warm-up of 5", learner="critic", warmup=5),
    replace(BASE, name="action ratio, whole episodes", minibatch_episodes=8),
    replace(BASE, name="trajectory ratio, whole episodes", minibatch_episodes=8, unit="trajectory"),
    replace(BASE, name="rejection", rejection="resample", match=BASE.name),
    replace(BASE, name="reach, 2 demonstrations", task=REACH, demonstrations=2),
    replace(BASE, name="window, 1 demonstration", task=WINDOW, demonstrations=1, horizon=150),
)
TOKENS: tuple[Arm, ...] = tuple(
    Arm(name=f"tokens, temperature {temperature}", task=BUTTON, demonstrations=2, temperature=temperature, steps=30_000)
    for temperature in (1.0, 1.3, 1.6, 2.0)
)
DRAWER = Arm(
    name="LIBERO, leave one out",
    task="libero/libero_goal/0",
    demonstrations=12,
    contexts=20,
    horizon=120,
    steps=5_000,
    log_std=-2.5,
    size=4,
    groups=3,
    minibatch_size=256,
    envs=4,
    episodes=20,
    sampled=8,
)
LIBERO: tuple[Arm, ...] = (
    DRAWER,
    replace(DRAWER, name="LIBERO, critic, warm-up of 2", learner="critic", warmup=2),
    replace(DRAWER, name="LIBERO, critic, no warm-up", learner="critic"),
    replace(DRAWER, name="LIBERO, trajectory ratio, whole episodes", minibatch_episodes=4, unit="trajectory"),
    replace(DRAWER, name="LIBERO, action ratio, whole episodes", minibatch_episodes=4),
    replace(DRAWER, name="LIBERO, rejection", rejection="resample"),
    replace(DRAWER, name="LIBERO, 1 context", contexts=1),
    replace(DRAWER, name="LIBERO, 3 demonstrations", demonstrations=3),
    replace(DRAWER, name="LIBERO, filtered cloning", learner="filtered"),
)


class Watch(lightning.Callback):
    """Curve of a run, its end, and the weights at the end of its environment steps.

    Args:
        steps: Environment steps after which the weights are kept.
        rollouts: Number of rollouts that are made at least.
    """

    def __init__(self, steps: int, rollouts: int = 0) -> None:
        self.steps, self.rollouts = steps, rollouts
        self.curve: list[dict[str, float]] = []
        self.kept: dict[str, torch.Tensor] | None = None
        self.used = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Note the metrics of a rollout, and stop."""
        data = trainer.datamodule
        point = {name: float(trainer.callback_metrics[name]) for name in WATCHED if name in trainer.callback_metrics}
        ended = np.array([outcome for outcome in data.outcomes if not np.isnan(outcome)])
        success = data.metrics.get("group_success", ended.mean() if len(ended) else float("nan"))
        self.curve.append({"env_steps": data.env_steps, "success": float(success), **point})
        if data.env_steps >= self.steps and self.kept is None:
            self.kept = {name: value.clone() for name, value in module.policy.state_dict().items()}
            self.used = len(self.curve)
        if self.kept is not None and len(self.curve) >= self.rollouts:
            trainer.should_stop = True


def cloned(arm: Arm, seed: int, runs: Path) -> Policy:
    """Clone a policy, or open the one that was cloned for another arm."""
    kind = "" if arm.temperature is None else "-tokens"
    folder = runs / "clones" / f"{arm.task.replace('/', '-')}-{arm.demonstrations}-{seed}{kind}"
    if not folder.exists():
        clone(arm, seed).save_pretrained(folder)
    policy = load_component(folder)
    assert isinstance(policy, Policy)
    if isinstance(policy, TokenPolicy) and arm.temperature is not None:
        policy.temperature = arm.temperature  # of sampling and of the ratio; cloning does not read it
    return policy.eval()


def clone(arm: Arm, seed: int) -> Policy:
    """Clone a policy from scripted demonstrations; no demonstration leaves it as it begins."""
    torch.manual_seed(seed)
    if arm.demonstrations == 0:
        with closing(make_task(arm.task)) as task:
            return GaussianPolicy(task.state_size, task.action_size, log_std=arm.log_std)
    policy = GaussianPolicy(log_std=arm.log_std)
    epochs = 15 if arm.demonstrations > 1 else 30
    if arm.temperature is not None:
        policy, epochs = TokenPolicy(SmallDecoder(32, layers=1, buckets=0), bins=ActionBins(32)), 20
    with tempfile.TemporaryDirectory() as folder:
        demos = Path(folder) / "demos"
        quiet = Console(quiet=True)
        # the seed is that of the initial states, too: no demonstration begins in a state that is played later
        collect_dataset(arm.task, demos, arm.demonstrations, seed + 1, "expert", frames=False, console=quiet)
        labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
        data = EpisodeData(str(demos), val_fraction=0.0, batch_size=16, labels=labels)
        optimizer = PolicyAdam(learning_rate=1e-3)
        module = PolicyOptimizer(
            policy, Uniform(), WeightedImitation(), passes=20, minibatch_size=128, optimizer=optimizer, seed=seed
        )
        silent_trainer(epochs).fit(module, datamodule=data)
    return policy


def parts(arm: Arm) -> tuple[AdvantageSource, Objective]:
    """Make the advantage source and the objective of an arm."""
    reward = RecordedSuccess()
    match arm.learner:
        case "groups":
            return GroupScore(reward), surrogate(arm)
        case "filtered":
            return GroupScore(reward, normalise="none"), WeightedImitation(Positive())
        case "critic":
            return RewardToGo(reward, ValueCritic()), surrogate(arm)


def surrogate(arm: Arm) -> ClippedSurrogate:
    """Make the clipped surrogate of an arm; with minibatches of whole episodes each episode weighs the same."""
    return ClippedSurrogate(unit=arm.unit, average="step" if arm.minibatch_episodes is None else "trajectory")


def improve(policy: Policy, arm: Arm, seed: int, rollouts: int) -> tuple[Watch, int]:
    """Improve a policy in place.

    Returns:
        The curve, and the environment steps that were used in all.
    """
    advantage, objective = parts(arm)
    module = PolicyOptimizer(
        policy,
        advantage,
        objective,
        passes=8,
        minibatch_size=arm.minibatch_size,
        optimizer=PolicyAdam(learning_rate=arm.learning_rate, critic_learning_rate=1e-3),
        freeze_policy_batches=arm.warmup,
        seed=seed,
        minibatch_episodes=arm.minibatch_episodes,
    )
    groups = GroupRollouts(size=arm.size, contexts=arm.groups, rejection=arm.rejection, max_tried=8)
    data = RolloutData(
        arm.task,
        steps=arm.size * arm.groups * arm.horizon * 3 // 4,
        rollouts=1_000,
        envs=arm.envs,
        horizon=arm.horizon,
        contexts=arm.contexts,
        eval_contexts=0,
        seed=seed,
        groups=None if arm.learner == "critic" else groups,
    )
    watch = Watch(arm.steps, rollouts)
    silent_trainer(1, callbacks=[watch]).fit(module, datamodule=data)
    policy.eval()
    return watch, data.env_steps


def played(policy: Policy, arm: Arm) -> dict[str, Any]:
    """Play the held-out initial states; return each outcome, and the mean length of the successes."""
    with closing(make_task(arm.task)) as task:
        contexts = task.contexts("eval", arm.episodes)
    setting = TaskSetting(task=arm.task, horizon=arm.horizon)
    batch = play_episodes(setting, policy, contexts, envs=arm.envs)
    sampled = play_episodes(setting, policy, contexts[: arm.sampled], envs=arm.envs, deterministic=False)
    won = batch.success == 1
    return {
        "success": batch.success.int().tolist(),
        "sampled": sampled.success.int().tolist(),
        "steps_to_success": float(batch.steps[won].float().mean()) if bool(won.any()) else None,
    }


SAME_START = ("task", "demonstrations", "horizon", "temperature")


def run(arm: Arm, seed: int, done: Sequence[Mapping[str, Any]], runs: Path) -> dict[str, Any]:
    """Run one arm with one seed."""
    started = time.process_time()
    policy = cloned(arm, seed, runs)
    same = [
        line
        for line in done
        if line["seed"] == seed
        and all(
            line["arm"].get(key) == getattr(arm, key) for key in ("task", "demonstrations", "horizon", "temperature")
        )
    ]
    start = same[0]["start"] if same else played(policy, arm)
    matched = [line for line in done if line["seed"] == seed and line["arm"]["name"] == arm.match]
    watch, env_steps = improve(policy, arm, seed, matched[0]["rollouts"] if matched else 0)
    record: dict[str, Any] = {"arm": asdict(arm), "seed": seed, "start": start}
    if len(watch.curve) > watch.used:
        record["matched"] = {**played(policy, arm), "rollouts": len(watch.curve), "env_steps": env_steps}
    assert watch.kept is not None
    policy.load_state_dict(watch.kept)
    record |= {"end": played(policy, arm), "rollouts": watch.used}
    record["env_steps"] = int(watch.curve[watch.used - 1]["env_steps"])
    record |= {"curve": watch.curve, "seconds": time.process_time() - started}
    return record


def read(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run what is missing."""
    parser = command_line(__doc__, "recipe_claims")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe_claims"))
    parser.add_argument("--minutes", type=float, default=60.0, help="no run begins after so many minutes")
    parser.add_argument("--seed", type=int, action="append", help="may be repeated; default 0 1 2")
    parser.add_argument("--arm", action="append", help="beginning of a name; may be repeated; default all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    path = options.runs / "runs.jsonl"
    begun = time.perf_counter()
    for seed in options.seed or range(3):
        for arm in (*ARMS, *TOKENS, *LIBERO):
            if options.arm and not any(arm.name.startswith(name) for name in options.arm):
                continue
            done = read(path)
            if any(line["arm"]["name"] == arm.name and line["seed"] == seed for line in done):
                continue
            if time.perf_counter() - begun > 60 * options.minutes:
                return
            record = run(arm, seed, done, options.runs)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            ends = [np.mean(record[when]["success"]) for when in ("start", "end")]
            print(
                f"{arm.name}, seed {seed}: {ends[0]:.2f} → {ends[1]:.2f}, {record['env_steps']} steps, "
                f"{record['rollouts']} rollouts, {record['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

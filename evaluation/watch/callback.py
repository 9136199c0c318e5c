"""Watches for reward hacking while a policy learns: a Lightning callback."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.batch import TrajectoryBatch
from ...core.hub import save_component
from ...core.interfaces import RewardModel
from .drift import Kind, TrainingFeatures, learn_training_features
from .metrics import EpisodeRecord, Score, compare
from .probes import PROBES, probe, probe_figures
from .push_back import Retrain
from .rollouts import Seen, finished_rows, gather, records_of, reward_of, undisturbed
from .spot_labels import (
    EPISODES,
    LABELS,
    QUESTIONS,
    load_episode,
    read_labels,
    read_lines,
    save_episode,
    stack_rows,
    write_lines,
    write_questions,
)

FIGURES, FOLDER = "watch.jsonl", "watch"
_LEAST_CLIPS = 10  # below this many clips a probe raises no alarm
_ASKED = 200  # episodes a person was asked about that are remembered


class HackingWarning(UserWarning):
    """A learned reward may be paying for something else than success."""


class HackingWatch(lightning.Callback):
    """Holds the learned reward of a policy optimizer against what really happens, rollout by rollout.

    It counts over the last ``window`` watched rollouts how many failed episodes the reward takes for successes, how far
    the policy's observations lie from the reward's training data, and what the reward says of clips that should earn
    nothing. It draws no number that training draws, and changes nothing but what it is asked to: a watched run is the
    same run. Figures go to the logger as ``watch_…`` and ``probe_…``, and to ``watch.jsonl`` in the run directory.

    The outcome of an episode is what ``outcome`` says, else the batch's success, else what a `RolloutData` with
    ``hide_outcome`` withheld from training. Where a person was asked, it is the person's label.

    Args:
        threshold: Score from which on the reward claims a success.
        score: What the score is: the success probability, the progress, or the return so far; None takes the first of
            them that the reward has.
        judged: By the best score of an episode (an episode counts as a success if it ever was one, as the simulated
            tasks count), or by the last.
        window: Watched rollouts that figures are taken over.
        every: Watch every how many rollouts.
        max_false_positive_rate: Alarm when the lower bound of the rate is above; None never.
        min_failures: Failed episodes it takes for that alarm.
        max_drift: Alarm when a larger share of observations lies beyond the familiar 99 %; None never.
        max_probe: Alarm when the lower bound of the share of successful clips that a probe leaves successful is above;
            None never. ``"blank"`` raises it only where the reward has a camera: a mean state may well be a success.
        on_alarm: ``"warn"`` goes on, ``"stop"`` ends training after the rollout.
        retrain: Makes new weights of the reward when false positives raise the alarm.
        max_retrains: How often; after that ``on_alarm`` rules again.
        training: The reward's training data, or their features; without, drift is not measured.
        features: What of them; None takes hidden features where the reward has such.
        probes: Names out of `PROBES`; empty asks none.
        probe_rows: Clips per rollout.
        clips: Clips to probe with instead of the rollouts; the first batch of its training loader.
        instructions: Of other tasks, for the probe ``"other_task"``.
        ask_random: Episodes per rollout a person is asked about, drawn at random: these make the false-positive rate.
        ask_doubtful: Episodes per rollout whose score is nearest to the threshold: these serve retraining only, unless
            their outcome is known without a person.
        labels: File with the labels; None looks for ``watch/labels.jsonl`` in the run directory.
        outcome: Says success (B,) of a batch: 1, 0, or NaN where it does not know.
        level: Of the intervals.
        keep: False positives kept in memory for retraining.
        folder: Run directory; None takes the trainer's.
        seed: Of what is drawn to ask about.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        score: Score | None = None,
        judged: Literal["best", "last"] = "best",
        window: int = 10,
        every: int = 1,
        max_false_positive_rate: float | None = 0.2,
        min_failures: int = 20,
        max_drift: float | None = 0.5,
        max_probe: float | None = 0.5,
        on_alarm: Literal["warn", "stop"] = "warn",
        retrain: Retrain | None = None,
        max_retrains: int = 3,
        training: lightning.LightningDataModule | TrainingFeatures | None = None,
        features: Kind | None = None,
        probes: Sequence[str] = PROBES,
        probe_rows: int = 16,
        clips: lightning.LightningDataModule | None = None,
        instructions: Sequence[str] = (),
        ask_random: int = 0,
        ask_doubtful: int = 0,
        labels: str | None = None,
        outcome: Callable[[TrajectoryBatch], Tensor] | None = None,
        level: float = 0.95,
        keep: int = 64,
        folder: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.score: Score | None
        self.features: Kind | None
        self.judged: Literal["best", "last"]
        if min(window, every, min_failures, probe_rows, keep) < 1 or min(ask_random, ask_doubtful, max_retrains) < 0:
            raise ValueError(
                f"window {window}, every {every}, min_failures {min_failures}, probe_rows {probe_rows}, keep {keep}, "
                f"ask_random {ask_random}, ask_doubtful {ask_doubtful}, max_retrains {max_retrains}: expected at least "
                "1 of the first five, at least 0 of the others"
            )
        limits = {"max_false_positive_rate": max_false_positive_rate, "max_drift": max_drift, "max_probe": max_probe}
        for name, limit in limits.items():
            if limit is not None and not 0 <= limit <= 1:
                raise ValueError(f"{name} is {limit}: expected a share in [0, 1], or None")
        if unknown := [name for name in probes if name not in PROBES]:
            raise ValueError(f"no probe {unknown[0]!r}: expected some of {', '.join(PROBES)}")
        if on_alarm not in ("warn", "stop") or judged not in ("best", "last"):
            raise ValueError(f'on_alarm {on_alarm!r}, judged {judged!r}: expected "warn" or "stop", "best" or "last"')
        self.threshold, self.score, self.judged = threshold, score, judged
        self.window, self.every, self.level = window, every, level
        self.max_false_positive_rate, self.min_failures = max_false_positive_rate, min_failures
        self.max_drift, self.max_probe, self.on_alarm = max_drift, max_probe, on_alarm
        self.retrain, self.max_retrains = retrain, max_retrains
        self.training, self.features, self.clips = training, features, clips
        self.probes, self.probe_rows, self.instructions = tuple(probes), probe_rows, tuple(instructions)
        self.ask_random, self.ask_doubtful, self.labels, self.outcome = ask_random, ask_doubtful, labels, outcome
        self.folder, self.seed = folder, seed
        self.rollouts, self.retrained = 0, 0
        self.alarms: tuple[str, ...] = ()
        self._seen: deque[Seen] = deque(maxlen=window)
        self._asked: dict[str, EpisodeRecord] = {}
        self._fooled: deque[tuple[str, TrajectoryBatch]] = deque(maxlen=keep)
        self._familiar: TrainingFeatures | None = None
        self._clips: TrajectoryBatch | None = None
        self._told_unknown = False
        self._last = 0.0

    # --- the run ---------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the reward, see that figures of another run are not overwritten, and learn what is familiar.

        Raises:
            TypeError: If the module has no advantage source with a reward model.
            FileExistsError: If the folder holds the figures of a run that is not being resumed.
        """
        reward = reward_of(pl_module)
        self._run = Path(self.folder or trainer.default_root_dir)
        file = self._run / FIGURES
        if trainer.is_global_zero and file.is_file():
            if not self.rollouts:
                raise FileExistsError(f"{file} holds the figures of an earlier run: choose another folder, or resume")
            write_lines(file, [line for line in read_lines(file) if int(line["rollout"]) < self.rollouts])
        with undisturbed(reward):
            self._familiar = self._learn_familiar(reward, trainer.is_global_zero)
            if self.clips is not None:
                self.clips.setup("fit")
                self._clips = cast(TrajectoryBatch, next(iter(self.clips.train_dataloader())))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock that says what the watch costs."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at a rollout, say what was seen, and act on it."""
        number, self.rollouts = self.rollouts, self.rollouts + 1
        if number % self.every:
            return
        with isolate_rng():
            self._watch(trainer, pl_module, cast(TrajectoryBatch, batch), number)

    def _watch(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: TrajectoryBatch, number: int
    ) -> None:
        begun = time.perf_counter()
        reward = reward_of(pl_module)
        with undisturbed(reward):
            seen, labels = self._look(trainer, reward, batch, number)
        self._seen.append(seen)
        self._remember(seen, labels)
        figures = self._figures(labels)
        raised = self._judge(figures, reward)
        renewed = "false_positives" in raised and self.retrain is not None and self.retrained < self.max_retrains
        if renewed:
            renewed = self._renew(trainer, reward, labels)
        ended = time.perf_counter()
        figures |= {"seconds": ended - begun, "share": (ended - begun) / max(ended - self._last, 1e-9)}
        self._last = ended
        self._write(trainer, pl_module, number, figures, raised, renewed)
        self._alarm(trainer, figures, raised, renewed)

    def state_dict(self) -> dict[str, Any]:
        """The window, what a person was asked, and counters; false positives kept for retraining are not in it."""
        return {
            "rollouts": self.rollouts,
            "retrained": self.retrained,
            "alarms": list(self.alarms),
            "seen": [seen.to_state() for seen in self._seen],
            "asked": [asdict(record) for record in self._asked.values()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rollouts, self.retrained = state_dict["rollouts"], state_dict["retrained"]
        self.alarms = tuple(state_dict["alarms"])
        self._seen = deque((Seen.from_state(s) for s in state_dict["seen"]), maxlen=self.window)
        self._asked = {r["name"]: EpisodeRecord(**r) for r in state_dict["asked"]}

    # --- looking ---------------------------------------------------------------------------------------------------

    def _look(
        self, trainer: lightning.Trainer, reward: RewardModel, batch: TrajectoryBatch, number: int
    ) -> tuple[Seen, dict[str, int]]:
        """What all processes saw of a rollout, and the labels there are."""
        chosen = finished_rows(batch)
        rows = batch[chosen]
        names = [f"{number:06d}-{trainer.global_rank}-{row}" for row in chosen.tolist()]
        seen = Seen()
        if names:
            outcome = self._outcome(trainer, batch).to(chosen.device)[chosen]
            records = records_of(reward, rows, outcome, names, self.score, self.judged)
            if self.retrain is not None:
                fooled = [i for i, r in enumerate(records) if r.success == 0 and r.claimed(self.threshold)]
                self._fooled.extend((names[i], stack_rows([rows[i]])) for i in fooled)
            seen.episodes = self._ask(records, rows, number, trainer.global_rank)
        if self._familiar is not None:
            seen.beyond, seen.observations = self._familiar.beyond(reward, batch)
        if self.probes and (self._clips is None or trainer.is_global_zero):
            shown = batch[batch.offset == 0] if self._clips is None else self._clips
            shown = shown.to(batch.mask.device)
            found = probe(reward, shown, self.threshold, self.score, self.instructions, self.probe_rows)
            seen.probes = {name: p for name, p in found.items() if name in (*self.probes, "honest")}
        labels = read_labels(self._labels()) if trainer.is_global_zero else {}
        gathered = gather(trainer, (seen, labels))
        return sum((part[0] for part in gathered), Seen()), gathered[0][1]

    def _labels(self) -> Path:
        return Path(self.labels) if self.labels is not None else self._run / FOLDER / LABELS

    def _outcome(self, trainer: lightning.Trainer, batch: TrajectoryBatch) -> Tensor:
        """Success (B,) of every row, NaN where nobody knows."""
        if self.outcome is not None:
            said = self.outcome(batch).float().cpu()
            if said.shape != (len(batch),):
                raise ValueError(f"outcome: expected {len(batch)} numbers, one a row, got {tuple(said.shape)}")
        else:
            said = torch.where(batch.success_known, batch.success.float(), torch.nan).cpu()
            withheld = getattr(cast(Any, trainer).datamodule, "outcomes", None)
            # a list, one entry a row: other data keep other things under this name
            if isinstance(withheld, list) and len(withheld) == len(batch) and bool(said.isnan().all()):
                said = torch.tensor(withheld)
        return torch.where(said.isnan(), said, (said >= 0.5).float())

    def _ask(self, records: list[EpisodeRecord], rows: TrajectoryBatch, number: int, rank: int) -> list[EpisodeRecord]:
        """Write down what a person should judge: some drawn at random, some because the reward is least decided."""
        if not self.ask_random + self.ask_doubtful:
            return records
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number * 1_009 + rank)
        drawn = dict.fromkeys(torch.randperm(len(records), generator=generator)[: self.ask_random].tolist(), "random")
        undecided = [i for i in range(len(records)) if i not in drawn and not math.isnan(records[i].score)]
        undecided.sort(key=lambda i: abs(records[i].score - self.threshold))
        drawn |= dict.fromkeys(undecided[: self.ask_doubtful], "doubtful")
        for i, why in drawn.items():
            save_episode(rows[i], self._run / FOLDER / EPISODES, records[i].name)
            records[i] = replace(records[i], drawn=why)
        return records

    # --- counting --------------------------------------------------------------------------------------------------

    def _remember(self, seen: Seen, labels: dict[str, int]) -> None:
        """Keep what a person was asked about, for labels that come later; the oldest go, those with a label last."""
        self._asked |= {r.name: r for r in seen.episodes if r.drawn}
        spare = sorted(self._asked, key=lambda name: (name in labels, name))
        for name in spare[: max(0, len(self._asked) - _ASKED)]:
            del self._asked[name]

    def _figures(self, labels: dict[str, int]) -> dict[str, float]:
        records = {r.name: r for seen in self._seen for r in seen.episodes}
        # where the environment says how an episode ended it counts as any other, whoever was asked about it besides
        records = {n: r if math.isnan(r.success) else replace(r, drawn="") for n, r in records.items()}
        records |= {n: r for n, r in self._asked.items() if n in labels and n not in records}
        told = [replace(r, success=float(labels[n])) if n in labels else r for n, r in records.items()]
        figures = compare(told, self.threshold, self.level)
        figures["labels"] = float(sum(n in self._asked for n in labels))
        figures["labels_unmatched"] = float(len(labels)) - figures["labels"]
        total = sum(self._seen, Seen())
        figures["drift"] = total.beyond / total.observations if total.observations else math.nan
        # the same clips asked again and again are no more evidence than once
        probed = total.probes if self.clips is None or not self._seen else self._seen[-1].probes
        return figures | (probe_figures(probed, self.probes, self.level) if self.probes else {})

    def _judge(self, figures: dict[str, float], reward: RewardModel) -> tuple[str, ...]:
        """Names of what is beyond its limit; a figure that is not defined raises no alarm."""
        raised: list[str] = []
        limit = self.max_false_positive_rate
        if limit is not None and figures["failures"] >= self.min_failures:
            raised += ["false_positives"] * (figures["false_positive_rate_low"] > limit)
        if self.max_drift is not None:
            raised += ["drift"] * (figures["drift"] > self.max_drift)
        if self.max_probe is not None and figures.get("probe_clips", 0) >= _LEAST_CLIPS:
            telling = [p for p in self.probes if p != "blank" or inputs_of(reward).cameras]
            raised += [f"probe_{p}" for p in telling if figures[f"probe_{p}_low"] > self.max_probe]
        return tuple(raised)

    def _write(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        number: int,
        figures: dict[str, float],
        raised: tuple[str, ...],
        renewed: bool,
    ) -> None:
        undefined = [name for name, value in figures.items() if math.isnan(value)]
        figures["undefined"] = float(len(undefined))
        for name, value in figures.items():
            shown = name if name.startswith("probe_") else f"watch_{name}"
            pl_module.log(shown, value, on_step=True, on_epoch=False, batch_size=1)
        pl_module.log("watch_alarms", float(len(raised)), on_step=True, on_epoch=False, batch_size=1)
        if not trainer.is_global_zero:
            return
        said = {k: None if math.isnan(v) else v for k, v in figures.items() if k != "undefined"}
        line = {"rollout": number, **said, "undefined": undefined, "alarms": list(raised), "retrained": renewed}
        file = self._run / FIGURES
        write_lines(file, [*(read_lines(file) if file.is_file() else []), line])
        questions = (
            [
                {
                    "episode": r.name,
                    "drawn": r.drawn,
                    "score": None if math.isnan(r.score) else r.score,
                    "look_at": f"{EPISODES}/{r.name}.png",
                }
                for r in self._seen[-1].episodes
                if r.drawn
            ]
            if self._seen
            else []
        )
        if questions:
            write_questions(self._run / FOLDER / QUESTIONS, questions)

    # --- acting ----------------------------------------------------------------------------------------------------

    def _alarm(
        self, trainer: lightning.Trainer, figures: dict[str, float], raised: tuple[str, ...], renewed: bool
    ) -> None:
        if figures["episodes"] and not figures["outcome_known"] and not self._told_unknown:
            self._told_unknown = True
            how = (
                f"label the episodes of {self._run / FOLDER / QUESTIONS} in {self._labels()}"
                if self.ask_random
                else "give HackingWatch an outcome, or ask a person: ask_random"
            )
            self._warn(trainer, f"no outcome is known: false positives cannot be counted; {how}")
        if fresh := [name for name in raised if name not in self.alarms]:
            failures = int(figures["failures"])
            shown = {
                "false_positives": f"the reward takes {figures['false_positive_rate']:.0%} of {failures} failures for "
                f"successes (at least {figures['false_positive_rate_low']:.0%})",
                "drift": f"{figures['drift']:.0%} of the observations lie beyond what 99 % of the training data hold",
            }
            told = [shown.get(n, f"{n}: {figures.get(f'{n}_claimed', math.nan):.0%} still succeed") for n in fresh]
            then = "; the reward was retrained" if renewed else "; training stops" if self.on_alarm == "stop" else ""
            self._warn(trainer, f"after {self.rollouts} rollouts: {'; '.join(told)}{then}; see {self._run / FIGURES}")
        self.alarms = () if renewed else raised
        if self.on_alarm == "stop" and any(not renewed or name != "false_positives" for name in raised):
            trainer.should_stop = True

    @staticmethod
    def _warn(trainer: lightning.Trainer, message: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(message, HackingWarning, stacklevel=2)

    def _renew(self, trainer: lightning.Trainer, reward: RewardModel, labels: dict[str, int]) -> bool:
        """Retrain on the first process, give the weights to all, and forget what the old reward said."""
        gathered = gather(trainer, list(self._fooled))
        state: dict[str, Tensor] | None = None
        if trainer.is_global_zero:
            fooled = {name: row for part in gathered for name, row in part if labels.get(name, 0) == 0}
            for name, record in self._asked.items():
                if labels.get(name) == 0 and record.claimed(self.threshold) and name not in fooled:
                    fooled[name] = load_episode(self._run / FOLDER / EPISODES, name)
            if fooled:
                assert self.retrain is not None
                state = self.retrain(reward, stack_rows(list(fooled.values())))
        state = trainer.strategy.broadcast(state)
        if state is None:  # a resumed run has the count of false positives, but not the episodes
            return False
        reward.load_state_dict(state)
        self.retrained += 1
        self._seen.clear()
        self._asked.clear()
        self._fooled.clear()
        if trainer.is_global_zero:
            save_component(reward, self._run / FOLDER / f"reward_{self.retrained}")
        with undisturbed(reward):
            self._familiar = self._learn_familiar(reward, trainer.is_global_zero)
        return True

    def _learn_familiar(self, reward: RewardModel, writes: bool) -> TrainingFeatures | None:
        if self.training is None:
            return None
        file = self._run / FOLDER / "training_features.safetensors"
        return learn_training_features(reward, self.training, file, self.features, writes)


__all__ = ["HackingWarning", "HackingWatch"]

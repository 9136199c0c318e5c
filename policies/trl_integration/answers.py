"""Answers of a vision-language model as completions, scored against what a reward model or decomposer estimates."""

import re
from collections.abc import Sequence

from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import RewardModel, TaskDecomposer, TaskPlan
from ...rewards.stages.plans import MAX_STAGES, parse_plan
from .actions import find_observation
from .completions import Completion
from .rewards import TRLRewardFunction, device_of, evaluated

_FRACTION = re.compile(r"(?:Progress:\s*)?([01]|0?\.\d+|[01]\.\d+|\d{1,3}(?:\.\d+)?\s*%)\s*\.?")
_VERDICT = {"yes": True, "true": True, "no": False, "false": False}


class _LoggedAnswers(TRLRewardFunction):
    """Base of scores of answers about logged observations, which the columns ``episode`` and ``step`` name."""

    def __init__(self, labels: Labelled, batch: TrajectoryBatch, name: str) -> None:
        super().__init__(name)
        self._labels, self._batch = Labelled(values=labels.values.cpu(), valid=labels.valid.cpu()), batch

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Score answers; None where the answer cannot be read, or the observation has no estimate."""
        return [self._score(completion) for completion in completions]

    def _score(self, completion: Completion) -> float | None:
        at = find_observation(self._batch, completion)
        answer = self.answer(completion.text)
        if answer is None or not bool(self._labels.valid[at]):
            return None
        return 1.0 - abs(answer - float(self._labels.values[at]))

    def answer(self, text: str) -> float | None:
        """Read an answer as a number in [0, 1]; None where it is none."""
        raise NotImplementedError(f"{type(self).__name__} reads no answers: write answer(text)")


class TRLProgressAnswer(_LoggedAnswers):
    """Score 1 − ``|answer − progress|`` of answers about progress, with the progress that a reward model estimates.

    An answer is one number from 0 to 1, or a percentage, perhaps behind ``Progress:``. The data set's row names the
    observation in the columns ``episode`` and ``step``. The trajectories are scored once, here.

    Args:
        reward: Reward model that estimates progress.
        batch: Logged trajectories; they are pickled with the function.
        name: Name in the trainer's logs.

    Raises:
        ValueError: If the reward model estimates no progress.
    """

    def __init__(self, reward: RewardModel, batch: TrajectoryBatch, name: str = "progress_answer") -> None:
        with evaluated(reward):
            labels = reward(batch.to(device_of(reward))).progress
        super().__init__(_estimated(labels, reward, "progress"), batch, name)

    def answer(self, text: str) -> float | None:
        """Read a number from 0 to 1, or a percentage."""
        found = _FRACTION.fullmatch(text.strip())
        if found is None:
            return None
        number = found[1]
        value = float(number.rstrip("% \t")) / 100 if number.endswith("%") else float(number)
        return value if 0 <= value <= 1 else None


class TRLSuccessAnswer(_LoggedAnswers):
    """Score of answers about success: the probability that the answer is right, as a reward model estimates it.

    An answer is yes, no, true or false. The data set's row names the observation in the columns ``episode`` and
    ``step``. The trajectories are scored once, here.

    Args:
        reward: Reward model that estimates success.
        batch: Logged trajectories; they are pickled with the function.
        name: Name in the trainer's logs.

    Raises:
        ValueError: If the reward model estimates no success.
    """

    def __init__(self, reward: RewardModel, batch: TrajectoryBatch, name: str = "success_answer") -> None:
        with evaluated(reward):
            labels = reward(batch.to(device_of(reward))).success
        super().__init__(_estimated(labels, reward, "success"), batch, name)

    def answer(self, text: str) -> float | None:
        """Read a verdict: 1 for yes or true, 0 for no or false."""
        verdict = _VERDICT.get(text.strip().rstrip(".!").casefold())
        return None if verdict is None else float(verdict)


class TRLPlanAnswer(TRLRewardFunction):
    """Score of task decompositions: how far the names of their stages agree with the plan of a decomposer.

    The score is 2·c/(n + m) in [0, 1], with n and m the numbers of stages and c the length of the longest common
    subsequence of their names, without regard to case. An answer is the JSON of `guerdon.PlanSchema`. The data set's
    row holds the ``instruction``.

    Args:
        decomposer: Teacher, such as a `RuleDecomposer`; it abstains where it has no plan.
        max_stages: Largest number of stages in an answer.
        name: Name in the trainer's logs.
    """

    def __init__(self, decomposer: TaskDecomposer, max_stages: int = MAX_STAGES, name: str = "plan_answer") -> None:
        super().__init__(name)
        self.decomposer, self.max_stages = decomposer, max_stages
        self._plans: dict[str, TaskPlan | None] = {}

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Score plans; None where an answer is refused (`guerdon.rewards.stages.plans`), or the teacher has no plan."""
        return [self._score(completion) for completion in completions]

    def _score(self, completion: Completion) -> float | None:
        instruction = str(completion.column("instruction"))
        teacher = self._plan(instruction)
        try:
            plan = parse_plan(completion.text, instruction, self.max_stages)
        except ValueError:  # a refused answer: see parse_plan
            return None
        if teacher is None:
            return None
        ours, theirs = ([stage.name.casefold() for stage in one.stages] for one in (plan, teacher))
        return 2 * _common(ours, theirs) / (len(ours) + len(theirs))

    def _plan(self, instruction: str) -> TaskPlan | None:
        if instruction not in self._plans:
            try:
                plan = self.decomposer.plan([instruction], None)[0]
            except ValueError:  # a decomposer without a plan for an instruction raises it
                plan = None
            self._plans[instruction] = plan if plan is not None and plan.stages else None
        return self._plans[instruction]


def _estimated(labels: Labelled | None, reward: RewardModel, what: str) -> Labelled:
    if labels is None:
        raise ValueError(f"{type(reward).__name__} estimates no {what}: expected a reward model that does")
    return labels


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(theirs) + 1)
    for name in ours:
        before = row
        row = [0]
        for place, other in enumerate(theirs, 1):
            row.append(before[place - 1] + 1 if name == other else max(before[place], row[-1]))
    return row[-1]


__all__ = ["TRLPlanAnswer", "TRLProgressAnswer", "TRLSuccessAnswer"]

"""A vision-language model as task decomposer: it plans a task, and estimates the complete stages after every frame."""

import string
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.chat import Chat, Prompt, harmless
from ...backbones.model_inputs import ModelInputs
from ...core.arguments import folds
from ...core.batch import Labelled, TrajectoryBatch
from ...core.interfaces import TaskDecomposer, TaskPlan
from ..moments import Moment, each_once, likely, moments
from .plans import MAX_STAGES, parse_plan
from .segmentation import StagePath

LETTERS = string.ascii_uppercase
"""Answers to how many stages are complete: A for none, B for the first, …"""
_PLAN = (
    "A robot is told: {instruction}. The picture shows the scene before it begins. Write down the stages of the task, "
    "in the order in which they are done, as one JSON object and nothing else. Its form is "
    '{"stages": [{"name": "a few plain words", "description": "what is done", "completion": "what can be seen once the '
    'stage is complete", "keypoints": ["objects that matter"]}]}.'
)
_AGAIN = " Your last answer was refused: {problem}. Write the JSON object alone."
_BEGIN, _NOW = "The beginning:", "Now:"


class VlmDecomposer(TaskDecomposer):
    """Task decomposer that plans and segments with a vision-language model, published or fine-tuned.

    A plan is strict JSON; see `plans.py`. After an invalid answer the model is asked again, with the reason. After
    ``attempts`` invalid answers the plan has no stages. Incomplete answers are never repaired.

    To segment, the model is shown at each evaluated frame the plan, the row's first frame and the present one, and
    asked how many stages are complete, as one letter. The probabilities of the letters give the probability that each
    stage is complete, Σ_{k>i} P(k complete). From these one monotone path is computed, over the whole episode by
    dynamic programming, or from the past alone; see `segmentation.py`. An evaluated frame without a clear answer
    (letters together less likely than ``min_mass``, or no answer) carries no evidence. Rows without a plan, a frame or
    any evidence have no stage. Windows that begin inside an episode have none either, because their first frame is not
    its beginning.

    Args:
        chat: A `guerdon.VLM`, or another model behind the same protocol.
        cameras: Names of the cameras to read; at a moment when one of them has a frame each shows its last one.
        max_stages: Largest number of stages in a plan, in 1 … 25.
        attempts: Number of times an answer is asked for, at least 1.
        max_new_tokens: Longest plan, in tokens.
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.
        path: How probabilities become one path of stages; None takes the defaults. Its arguments may also be given here
            one by one, such as ``hold=1``.
        min_mass: Smallest probability of all letters together, in [0, 1], with which an answer is clear.
        plan_prompt: Prompt that asks for a plan; holds ``{instruction}`` once.

    Raises:
        ValueError: If an argument is out of its range.
    """

    @folds(path=StagePath)
    def __init__(
        self,
        chat: Chat,
        cameras: tuple[str, ...] | list[str],
        max_stages: int = MAX_STAGES,
        attempts: int = 3,
        max_new_tokens: int = 768,
        frame_size: int | None = None,
        frames_every: int = 1,
        path: StagePath | None = None,
        min_mass: float = 0.01,
        plan_prompt: str = _PLAN,
    ) -> None:
        super().__init__()
        self.cameras = each_once("cameras", cameras)
        if not 1 <= max_stages < len(LETTERS):
            raise ValueError(f"max_stages is {max_stages}: expected 1 … {len(LETTERS) - 1}, a letter for each")
        if min(attempts, max_new_tokens, frames_every) < 1:
            raise ValueError(
                f"attempts {attempts}, max_new_tokens {max_new_tokens}, frames_every {frames_every}: expected positive "
                "numbers"
            )
        if not 0 <= min_mass <= 1:
            raise ValueError(f"min_mass is {min_mass}: expected 0 … 1")
        if plan_prompt.count("{instruction}") != 1:
            raise ValueError(f"plan_prompt {plan_prompt!r}: expected {{instruction}} once")
        self.chat, self.max_stages, self.attempts = chat, max_stages, attempts
        self.max_new_tokens, self.frame_size, self.frames_every = max_new_tokens, frame_size, frames_every
        self.path = StagePath() if path is None else path
        self.min_mass, self.plan_prompt = min_mass, plan_prompt
        self.abstained: Counter[str] = Counter()
        """Reason why there was no plan or no stage → how often, since construction."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return ModelInputs(
            cameras=self.cameras, frame_size=self.frame_size, frames_every=self.frames_every, instruction=True
        )

    def plan(self, instructions: Sequence[str], first_frames: Sequence[Tensor] | None = None) -> list[TaskPlan]:
        """Ask for the plan of every instruction; a plan has no stages where no attempt gave one.

        Args:
            instructions: M instructions.
            first_frames: M pictures of the scene before the task begins, uint8 (3, H, W).

        Raises:
            ValueError: If there is not one picture for every instruction.
        """
        if first_frames is None or len(first_frames) != len(instructions):
            got = "none" if first_frames is None else len(first_frames)
            raise ValueError(f"expected a first frame for each of {len(instructions)} instructions, got {got}")
        plans = [TaskPlan(instruction=text, stages=()) for text in instructions]
        problems: dict[int, str] = dict.fromkeys(range(len(plans)), "")
        refused: dict[int, str] = {}
        for _ in range(self.attempts):
            asked = [self.plan_question(instructions[n], first_frames[n], refused.get(n, "")) for n in problems]
            for number, reply in zip(list(problems), self.chat.reply(asked, self.max_new_tokens), strict=True):
                if reply.text is None:  # there is no answer to give a reason for
                    problems[number] = reply.problem
                    continue
                try:
                    plans[number] = parse_plan(reply.text, instructions[number], self.max_stages)
                    del problems[number]
                except ValueError as error:
                    refused[number] = f"{error}{', ' if reply.problem else ''}{reply.problem}"
                    problems[number] = refused[number]
            if not problems:
                break
        for problem in problems.values():
            self.abstained[f"no plan: {problem}"] += 1
        return plans

    def plan_question(self, instruction: str, first_frame: Tensor, problem: str = "") -> Prompt:
        """Write the prompt that asks for a plan.

        Args:
            instruction: Instruction of the task.
            first_frame: Picture of the scene before the task begins, uint8 (3, H, W).
            problem: Reason why the last answer was refused; empty for a first attempt.
        """
        text = self.plan_prompt.replace("{instruction}", harmless(instruction.strip()) or "do the task")
        again = _AGAIN.replace("{problem}", harmless(problem.strip())) if problem else ""
        return [text + again, first_frame]

    def stage_question(self, plan: TaskPlan, first: Moment, now: Moment) -> Prompt:
        """Write the prompt that asks how many stages of a plan are complete.

        Args:
            plan: Plan with at least one stage.
            first: First moment of the episode.
            now: Moment the question is about.
        """
        names = [harmless(stage.name.strip()) for stage in plan.stages]
        done = [harmless(stage.completion.strip()) for stage in plan.stages]
        listed = [
            f"{n}. {name}{f': {end}' if end else ''}" for n, (name, end) in enumerate(zip(names, done, strict=True), 1)
        ]
        task = harmless(plan.instruction.strip()) or "do the task"
        opening = f"A robot was told: {task}. Its plan is:\n" + "\n".join(listed)
        choices = [f"{LETTERS[n]}: {name}" for n, name in enumerate(["no stage", *names])]
        question = "\nWhich stage is the last that is complete now? Answer with one letter.\n" + "\n".join(choices)
        return [f"{opening}\n{_BEGIN}", *first.parts, _NOW, *now.parts, question]

    def segment(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Return the stage of every observation (B, T+1), 0 … S − 1: the first incomplete one, the last after all.

        Raises:
            ValueError: If there is not one plan for every row, a plan has more stages than there are letters, or the
                batch holds no camera of the model.
        """
        done = self.completed(batch, plans, causal)
        last = torch.tensor([max(len(plan.stages) - 1, 0) for plan in plans], device=done.values.device)
        return Labelled(values=torch.minimum(done.values.long(), last[:, None]), valid=done.valid)

    def completed(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Count the complete stages at every observation (B, T+1), 0 … S; see `segment`."""
        if len(plans) != len(batch):
            raise ValueError(f"expected a plan for each of {len(batch)} rows, got {len(plans)}")
        longest = max((len(plan.stages) for plan in plans), default=0)
        if longest >= len(LETTERS):
            raise ValueError(f"a plan has {longest} stages: expected at most {len(LETTERS) - 1}, a letter for each")
        rows = moments(batch, self.cameras)
        values = torch.zeros(len(rows), batch.mask.shape[1] + 1)
        valid = torch.zeros_like(values, dtype=torch.bool)
        made = batch.made.cpu()
        for number, (row, plan) in enumerate(zip(rows, plans, strict=True)):
            if not row or not plan.stages or int(batch.offset[number]):
                continue
            steps = torch.tensor([moment.step for moment in row])
            shares = self.shares(plan, row)
            known = shares.isfinite().all(1)
            self.abstained["no clear answer to how far a plan is"] += int((~known).sum())
            length = int(made[number].sum())
            done = torch.zeros(length, len(plan.stages))
            evidence = torch.zeros(length, dtype=torch.bool)
            # Σ over more complete stages than i, from the right
            done[steps[known]] = shares[known].flip(1).cumsum(1).flip(1)[:, 1:].clamp(0, 1)
            evidence[steps[known]] = True
            values[number, :length] = self.path.completed(done, evidence, causal).float()
            first = int(steps[known][0]) if bool(known.any()) else length
            valid[number, first:length] = True
        return Labelled(values=torch.where(valid, values, 0.0), valid=valid)

    @torch.no_grad()
    def shares(self, plan: TaskPlan, row: Sequence[Moment]) -> Float[Tensor, "F S1"]:
        """Estimate the probability that 0, 1, … S stages are complete at each of F moments; NaN without a clear answer.

        Args:
            plan: Plan with S stages.
            row: Moments of one episode.
        """
        answers = LETTERS[: len(plan.stages) + 1]
        questions = [self.stage_question(plan, row[0], moment) for moment in row]
        log_probs = self.chat.answer_log_probs(questions, list(answers)).cpu()
        clear = likely(log_probs, self.min_mass)
        return torch.where(clear[:, None], log_probs.softmax(1), torch.nan)


__all__ = ["LETTERS", "VlmDecomposer"]

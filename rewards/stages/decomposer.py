"""A vision-language model as task decomposer: it plans a task, and says after every frame how far the plan is."""

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
"""Answers to how far a plan is: A where no stage is complete, B where the first one is, …"""
_PLAN = (
    "A robot is told: {instruction}. The picture shows the scene before it begins. Write down the stages of the task, "
    "in the order in which they are done, as one JSON object and nothing else. Its form is "
    '{"stages": [{"name": "a few plain words", "description": "what is done", "completion": "what can be seen once the '
    'stage is complete", "keypoints": ["objects that matter"]}]}.'
)
_AGAIN = " Your last answer was refused: {problem}. Write the JSON object alone."
_BEGIN, _NOW = "The beginning:", "Now:"


class VlmDecomposer(TaskDecomposer):
    """Plans and segments with a vision-language model, published or fine-tuned (`DecomposerTraining`).

    A plan is strict JSON (see `plans.py`). An answer that is not is asked for again, with the reason, and
    after ``attempts`` there is no plan: one without stages. Nothing is ever made of half an answer.

    To segment, the model sees at each evaluated frame the plan, the row's first frame and the present one, and is asked
    how many stages are complete, as one letter. Its probabilities of the letters give the probability that each stage
    is complete, Σ_{k>i} P(k complete), and these one monotone path: over the whole episode by dynamic programming, or
    from the past alone (see `segmentation.py`). An evaluated frame without a clear answer (letters together
    less likely than ``min_mass``, or no answer) carries no evidence. Rows without a plan, a frame or any evidence have
    no stage, nor have windows that begin inside an episode: their first frame is not its beginning.

    Args:
        chat: A `guerdon.backbones.vlm.VLM`, or another model behind the same protocol.
        cameras: Cameras to look through; at a moment when one of them has a frame each shows its last one.
        max_stages: Most stages of a plan, at most 25.
        attempts: How often an answer is asked for, at least 1.
        max_new_tokens: Longest plan.
        frame_size: Shorter side of the frames, in pixels; None as recorded.
        frames_every: Every how many recorded frames one is evaluated when scoring; the last one always is.
        path: How probabilities become one path of stages; None takes the defaults. Its arguments may also be given here
            one by one, such as ``hold=1``.
        min_mass: Least probability of all letters together, in [0, 1].
        plan_prompt: What asks for a plan; holds ``{instruction}`` once.

    Raises:
        ValueError: If an argument makes no sense.
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
        """Why there was no plan or no stage, and how often, since the decomposer was made."""

    @property
    def inputs(self) -> ModelInputs:
        """What the model reads."""
        return ModelInputs(
            cameras=self.cameras, frame_size=self.frame_size, frames_every=self.frames_every, instruction=True
        )

    def plan(self, instructions: Sequence[str], first_frames: Sequence[Tensor] | None = None) -> list[TaskPlan]:
        """Ask for the plan of every instruction; one without stages where no attempt gave one.

        Args:
            instructions: M of them.
            first_frames: M pictures of the scene before it begins, uint8 (3, H, W).

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
                if reply.text is None:  # nobody answered: there is nothing to say about an answer
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
        """What asks for a plan, once more if the last answer had a problem."""
        text = self.plan_prompt.replace("{instruction}", harmless(instruction.strip()) or "do the task")
        told = _AGAIN.replace("{problem}", harmless(problem.strip())) if problem else ""
        return [text + told, first_frame]

    def stage_question(self, plan: TaskPlan, first: Moment, now: Moment) -> Prompt:
        """What asks how far a plan is at one moment."""
        names = [harmless(stage.name.strip()) for stage in plan.stages]
        done = [harmless(stage.completion.strip()) for stage in plan.stages]
        told = [
            f"{n}. {name}{f': {end}' if end else ''}" for n, (name, end) in enumerate(zip(names, done, strict=True), 1)
        ]
        opening = (
            f"A robot was told: {harmless(plan.instruction.strip()) or 'do the task'}. Its plan is:\n" + "\n".join(told)
        )
        choices = [f"{LETTERS[n]}: {name}" for n, name in enumerate(["no stage", *names])]
        question = "\nWhich stage is the last that is complete now? Answer with one letter.\n" + "\n".join(choices)
        return [f"{opening}\n{_BEGIN}", *first.parts, _NOW, *now.parts, question]

    def segment(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Stage of every observation (B, T+1), 0 … S − 1: the first that is not complete, the last once all are.

        Raises:
            ValueError: If there is not one plan for every row, one has more stages than there are letters, or no camera
                of the model is there.
        """
        done = self.completed(batch, plans, causal)
        last = torch.tensor([max(len(plan.stages) - 1, 0) for plan in plans], device=done.values.device)
        return Labelled(values=torch.minimum(done.values.long(), last[:, None]), valid=done.valid)

    def completed(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """How many stages are complete at every observation (B, T+1), 0 … S; see `segment`."""
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
        """Probability that 0, 1, … S stages are complete at each of F moments; NaN where there is no clear answer."""
        answers = LETTERS[: len(plan.stages) + 1]
        questions = [self.stage_question(plan, row[0], moment) for moment in row]
        log_probs = self.chat.answer_log_probs(questions, list(answers)).cpu()
        clear = likely(log_probs, self.min_mass)
        return torch.where(clear[:, None], log_probs.softmax(1), torch.nan)


__all__ = ["LETTERS", "VlmDecomposer"]

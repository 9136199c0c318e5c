"""Zero-shot rewards from a vision-language model: probability of completion, or a rating, after every frame."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import permutations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...backbones.chat import Chat, Prompt
from ...backbones.model_inputs import ModelInputs
from ...backbones.vlm import VLM
from ...core.arguments import folds
from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel
from ..frame_windows import FrameWindows
from ..moments import Moment, each_once, held_progress, likely, moments, steps_of

_PROMPT = "A robot was told: {instruction}. This is what it did, in order of time."
_DONE = "Is the task done by the last of these pictures? Answer True or False."
_RATING = (
    "How far is the task by the last of these pictures? Answer with one number from 1 (nothing is done) to 5 (all is "
    "done)."
)
_WINDOWS = {"max_frames": 32, "context_frames": 8}


class AnswerReward(RewardModel):
    """Base of rewards that ask the same question after every frame and use the probability of each answer.

    The prompt states the task, then shows the frames so far, then asks. No later frame is shown, so the reward is
    causal. A `VLM` reads the frames of a row once and keeps their keys and values (`VLM.answer_log_probs_along`), so F
    frames cost F. Any other model is asked anew for every prefix, which costs F (F + 1) / 2. A subclass computes
    progress from the answers in ``worth``.

    A row of more than ``frames.max_frames`` frames is read in windows; see `FrameWindows`. Between evaluated frames an
    estimate holds its last value. A row that is a window of an episode (``batch.offset`` > 0) is evaluated by its own
    frames alone.

    An observation has no estimate, and is counted in ``abstained``, where the model gave no answer (an endpoint failed)
    or where all answers together are less likely than ``min_mass``. In the second case the model would answer something
    else, and the ranking of these answers is not informative.

    Args:
        chat: A `VLM`, or another model behind the same protocol.
        cameras: Names of the cameras to read; at a moment when one of them has a frame each shows its last one.
        answers: Texts whose probabilities are read, each once. A probability is that of an answer that begins with the
            text, so none may begin with another: the probability of "1" would include that of "10".
        question: Question behind the last frame.
        prompt: Text in front of the frames; holds ``{instruction}`` once.
        frames: Frames that are read, and how many in one pass; None shows 32 with 8 of them again. Its arguments may
            also be given here one by one, such as ``max_frames=8``.
        min_mass: Smallest probability of all answers together, in [0, 1]; it does not apply to a single answer.
        reuse: Whether a `VLM` keeps keys and values between frames. False asks anew for every prefix, as models whose
            attention is not causal need.

    Raises:
        ValueError: If an argument is out of its range.
    """

    causal = True

    @folds(frames=partial(FrameWindows, **_WINDOWS))
    def __init__(
        self,
        chat: Chat,
        cameras: tuple[str, ...] | list[str],
        answers: tuple[str, ...] | list[str],
        question: str,
        prompt: str = _PROMPT,
        frames: FrameWindows | None = None,
        min_mass: float = 0.01,
        reuse: bool = True,
    ) -> None:
        super().__init__()
        self.cameras, self.answers = each_once("cameras", cameras), each_once("answers", answers)
        if not all(a.strip() for a in self.answers):
            raise ValueError(f"answers {list(answers)}: expected texts, one is blank")
        for one, other in permutations(self.answers, 2):
            if other.strip().startswith(one.strip()):
                raise ValueError(
                    f"answers {list(answers)}: {other!r} begins with {one!r}, so the probability of {one!r} would hold "
                    f"that of {other!r}: choose answers of which none begins with another, such as letters"
                )
        if not 0 <= min_mass <= 1:
            raise ValueError(f"min_mass is {min_mass}: expected 0 … 1")
        if prompt.count("{instruction}") != 1 or not question.strip():
            raise ValueError(f"prompt {prompt!r}, question {question!r}: expected {{instruction}} once, and some text")
        self.chat, self.question, self.prompt = chat, question, prompt
        self.frames = FrameWindows(**_WINDOWS) if frames is None else frames
        self.min_mass, self.reuse = min_mass, reuse
        self.abstained: Counter[str] = Counter()
        """Reason why observations have no estimate → number of observations, since construction."""

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the model reads."""
        return self.frames.inputs(self.cameras)

    def worth(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """Compute progress in [0, 1] of N observations from the log-probabilities of the K answers.

        Args:
            log_probs: Log-probability of each answer at each observation.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no progress: write worth(log_probs)")

    @torch.no_grad()
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate progress at every observation and reward its change; ``terms`` holds the answers' log-probabilities.

        Raises:
            ValueError: If the batch holds no camera of the model, or the model cannot read the prompts.
        """
        rows = moments(batch, self.cameras)
        step = steps_of(rows)
        log_probs = torch.full((*step.shape, len(self.answers)), torch.nan)
        for number, row in enumerate(rows):
            if row:
                log_probs[number, : len(row)] = self._row(row, batch.instructions[number]).cpu()
        known = self._known(log_probs, step >= 0)
        log_probs = torch.where(known[..., None], log_probs, 0.0)
        values = torch.where(known, self.worth(log_probs.flatten(0, 1)).view(step.shape), 0.0)
        terms = {f"log_prob {answer}": log_probs[..., k] for k, answer in enumerate(self.answers)}
        return held_progress(step, values, known, batch.to("cpu"), terms)

    def _row(self, row: Sequence[Moment], instruction: str) -> Float[Tensor, "N K"]:
        opening = self.prompt.replace("{instruction}", instruction.strip() or "do the task")
        found: list[Tensor] = []
        for shown, new in self.frames.split(len(row)):
            parts: list[Prompt] = [row[place].parts for place in shown]
            parts[0] = [opening, *parts[0]]
            if self.reuse and isinstance(self.chat, VLM):
                self.chat.check_causal()
                answered = self.chat.answer_log_probs_along(parts, self.question, self.answers)[-new:]
            else:
                prefixes = [[p for part in parts[: n + 1] for p in part] for n in range(len(parts) - new, len(parts))]
                answered = self.chat.answer_log_probs([[*p, self.question] for p in prefixes], self.answers)
            found.append(answered)
        return torch.cat(found)

    def _known(self, log_probs: Float[Tensor, "B F K"], asked: Bool[Tensor, "B F"]) -> Bool[Tensor, "B F"]:
        answered = log_probs.isfinite().all(-1)
        clear = likely(log_probs, self.min_mass if len(self.answers) > 1 else 0.0)
        self.abstained["no answer"] += int((asked & ~answered).sum())
        self.abstained["the answers asked for are unlikely"] += int((asked & answered & ~clear).sum())
        return asked & clear


class CompletionLikelihood(AnswerReward):
    """Reward for the probability that the task is done, after every frame.

    Token probabilities are the reward, as in TOPReward (Chen et al. 2026): progress is P(yes) among the answers, p_1 /
    Σ_k p_k; with a single answer it is the probability of that answer itself. Values are not rescaled to [0, 1] within
    each episode, as is done elsewhere: that would make the best moment of a failure a success, and needs the future.

    Args:
        chat: See `AnswerReward`.
        cameras: See `AnswerReward`.
        answers: Texts of which the first means that the task is done, the others that it is not.
        question: See `AnswerReward`.
        prompt: See `AnswerReward`.
        frames: See `AnswerReward`.
        min_mass: See `AnswerReward`.
        reuse: See `AnswerReward`.
    """

    @folds(frames=partial(FrameWindows, **_WINDOWS))
    def __init__(
        self,
        chat: Chat,
        cameras: tuple[str, ...] | list[str],
        answers: tuple[str, ...] | list[str] = ("True", "False"),
        question: str = _DONE,
        prompt: str = _PROMPT,
        frames: FrameWindows | None = None,
        min_mass: float = 0.01,
        reuse: bool = True,
    ) -> None:
        super().__init__(
            chat=chat,
            cameras=cameras,
            answers=answers,
            question=question,
            prompt=prompt,
            frames=frames,
            min_mass=min_mass,
            reuse=reuse,
        )

    def worth(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """Compute the probability of the first answer among all."""
        return (log_probs.softmax(-1) if log_probs.shape[1] > 1 else log_probs.exp())[:, 0]


class ExpectedRating(AnswerReward):
    """Reward for the expected rating after every frame, over the probabilities of all ratings.

    Ratings are those of RoboReward (Lee et al. 2026), 1 to 5. The expectation E = Σ_k k p_k / Σ_k p_k distinguishes
    observations that a single written number would tie, and is mapped to [0, 1] as (E − 1) / (K − 1).

    Args:
        chat: See `AnswerReward`.
        cameras: See `AnswerReward`.
        answers: Ratings from worst to best, evenly spaced, at least two, of which none begins with another: 1 … 10 are
            refused.
        question: See `AnswerReward`.
        prompt: See `AnswerReward`.
        frames: See `AnswerReward`.
        min_mass: See `AnswerReward`.
        reuse: See `AnswerReward`.

    Raises:
        ValueError: If there are fewer than two answers; see also `AnswerReward`.
    """

    @folds(frames=partial(FrameWindows, **_WINDOWS))
    def __init__(
        self,
        chat: Chat,
        cameras: tuple[str, ...] | list[str],
        answers: tuple[str, ...] | list[str] = ("1", "2", "3", "4", "5"),
        question: str = _RATING,
        prompt: str = _PROMPT,
        frames: FrameWindows | None = None,
        min_mass: float = 0.01,
        reuse: bool = True,
    ) -> None:
        if len(answers) < 2:
            raise ValueError(f"answers {list(answers)}: expected at least two ratings, from worst to best")
        super().__init__(
            chat=chat,
            cameras=cameras,
            answers=answers,
            question=question,
            prompt=prompt,
            frames=frames,
            min_mass=min_mass,
            reuse=reuse,
        )

    def worth(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """Compute the expected rating on [0, 1]."""
        return log_probs.softmax(-1) @ torch.linspace(0, 1, log_probs.shape[1])


__all__ = ["AnswerReward", "CompletionLikelihood", "ExpectedRating"]

"""Stage costs proposed by a vision-language model, as JSON that is validated and never run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from torch import Tensor

from ...backbones.chat import Chat, Prompt, harmless
from ..costs import Constraint
from ..stages.plans import read_object
from .cost_files import MAX_CONSTRAINTS, MAX_STAGES, TaskCosts, check_name

_FIELDS = tuple(Constraint.model_fields)

PROMPT = """\
A robot arm is to do this: {instruction}
{pictures}Its motion was recorded as points in metres (x, y, z; z is up) and flags that are true or false at each step.
Points: {points}
Flags: {flags}

Say what each stage of a good execution should keep to, as constraints. {stages}
A constraint has these fields:
  "stage": index of its stage, from 0
  "name": a few plain words
  "kind": "path" (where things should be), "collision" (what must not be touched) or "grasp" (what must be held)
  "op": the cost of one step:
    "dist": distance between the points a and b
    "dist_xy": the same, heights left aside
    "above": 1 where a is not higher than b by more than "margin" metres, else 0
    "clearance": how much closer than "margin" metres a and b are, else 0
    "flag": 1 where the flag a is false, else 0
    "steps": 1 for every step; a may be any point
  "a": name of a point, or of a flag for "flag"
  "b": name of the other point; not for "flag" and "steps"
  "margin": metres, for "above" and "clearance"
  "aggregate": "sum", "mean", "last", "min" or "max" over the steps of the stage
  "threshold": up to here it costs nothing, in units of the aggregate
  "weight": how much it counts beyond that, at least 0
"margin", "aggregate", "threshold" and "weight" may be left out: they are then 0, "sum", 0 and 1.

Answer with one JSON object and nothing else: no explanation, no code, no other names than those above. The form is
{{"stages": ["name of stage 0", ...], "constraints": [{{"stage": 0, "name": ..., "kind": ..., "op": ..., ...}}, ...]}}
At most {max_stages} stages and {max_constraints} constraints.\
"""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Result of asking a model for costs."""

    costs: TaskCosts | None
    """Proposed costs; None where no answer could be used."""
    problems: tuple[str, ...] = ()
    """Reason why each refused answer was refused, in order."""
    answers: tuple[str | None, ...] = ()
    """Every answer as it was received; None where none was."""


def proposal_prompt(
    instruction: str, points: Sequence[str], flags: Sequence[str] = (), stages: Sequence[str] = (), pictures: int = 0
) -> str:
    """Write the prompt that asks for costs: the recorded names, the words that may be used, the form of the answer.

    Args:
        instruction: Instruction of the task.
        points: Names of the recorded points.
        flags: Names of the recorded flags.
        stages: Names of the stages, where they are fixed; otherwise the model chooses them.
        pictures: Number of pictures in the prompt.

    Raises:
        ValueError: If there is no point, or a name is one that no cost file may hold.
    """
    if not points:
        raise ValueError("points is empty: name at least one recorded point")
    for what, names in (("points", points), ("flags", flags)):
        for name in names:
            check_name(name, what)
            if name == "stage":
                raise ValueError(f"{what}: 'stage' holds the stages; give what is recorded under it another name")
    wanted = f"The stages are: {json.dumps(list(stages))}; use these." if stages else "You choose the stages, in order."
    return PROMPT.format(
        instruction=instruction,
        pictures={0: "", 1: "The picture shows the scene at the start.\n"}.get(
            pictures, "The pictures show the scene.\n"
        ),
        points=", ".join(points),
        flags=", ".join(flags) or "none",
        stages=wanted,
        max_stages=MAX_STAGES,
        max_constraints=MAX_CONSTRAINTS,
    )


def parse_proposal(
    text: str, instruction: str, points: Sequence[str], flags: Sequence[str] = (), stages: Sequence[str] = ()
) -> TaskCosts:
    """Parse an answer into costs, or refuse it; nothing is guessed, repaired or run.

    Args:
        text: Answer: one JSON object, alone or in one ```json fence, and nothing else.
        instruction: Instruction of the task.
        points: Names of the recorded points.
        flags: Names of the recorded flags.
        stages: Names the stages must have; empty leaves them to the answer.

    Raises:
        ValueError: If the answer is refused; the message is one line that can be shown to the model.
    """
    value = read_object(text, '{"stages": […], "constraints": […]}')
    unknown = sorted(set(value) - {"stages", "constraints"})
    missing = sorted({"stages", "constraints"} - set(value))
    if unknown or missing:
        raise ValueError(f'expected exactly the keys "stages" and "constraints", got {", ".join(map(_short, value))}')
    for name, most in (("stages", MAX_STAGES), ("constraints", MAX_CONSTRAINTS)):
        entries = value[name]
        if not isinstance(entries, list) or not 1 <= len(cast(list[Any], entries)) <= most:
            got = len(cast(list[Any], entries)) if isinstance(entries, list) else type(entries).__name__
            raise ValueError(f'"{name}": expected a list of 1 to {most}, got {got}')
    try:
        costs = TaskCosts.model_validate({"task": "proposed", "instructions": [instruction], **value})
    except ValidationError as error:
        raise ValueError(_first_line(error)) from None
    if stages and costs.stages != tuple(stages):
        raise ValueError(f'"stages": expected {json.dumps(list(stages))}, got {json.dumps(list(costs.stages))}')
    for kind, named, recorded in (("point", costs.read_points, points), ("flag", costs.read_flags, flags)):
        strange = sorted(named - set(recorded))
        if strange:
            raise ValueError(f"no {kind} is called {strange[0]!r}; there are {', '.join(recorded) or 'none'}")
    return costs


def propose_costs(
    chat: Chat,
    instruction: str,
    points: Sequence[str],
    flags: Sequence[str] = (),
    stages: Sequence[str] = (),
    pictures: Sequence[Tensor] = (),
    retries: int = 2,
    max_new_tokens: int = 2048,
) -> Proposal:
    """Ask a model for the costs of a task; after an answer that cannot be used it is asked again, with the reason.

    Args:
        chat: Vision-language model.
        instruction: Instruction of the task.
        points: Names of the recorded points.
        flags: Names of the recorded flags.
        stages: Names of the stages, such as those of a decomposer's plan; empty leaves them to the model.
        pictures: Pictures of the scene at the start, uint8 (3, H, W).
        retries: Number of further attempts after a first answer that cannot be used, at least 0.
        max_new_tokens: Longest answer, in tokens.

    Returns:
        The costs, or None and the problem of each answer. Review them before use: they are well formed, which does not
        make them right.

    Raises:
        ValueError: If there is no point, a recorded name is one that no cost file may hold, the instruction is empty,
            or ``retries`` is negative.
    """
    if retries < 0 or not instruction.strip():
        raise ValueError(f"retries {retries}, instruction {instruction!r}: expected at least 0, and some words")
    question = proposal_prompt(instruction, points, flags, stages, len(pictures))
    problems: list[str] = []
    answers: list[str | None] = []
    for _ in range(retries + 1):
        refused = problems[-1] if answers and answers[-1] is not None else ""
        reply = chat.reply([_again(question, pictures, refused)], max_new_tokens)[0]
        answers.append(reply.text)
        if reply.text is None:
            problems.append(f"no answer came: {reply.problem}")
            continue
        try:
            costs = parse_proposal(reply.text, instruction, points, flags, stages)
        except ValueError as error:
            problems.append(f"{error}; {reply.problem}" if reply.problem else str(error))
            continue
        return Proposal(costs=costs, problems=tuple(problems), answers=tuple(answers))
    return Proposal(costs=None, problems=tuple(problems), answers=tuple(answers))


def _again(question: str, pictures: Sequence[Tensor], problem: str) -> Prompt:
    """Return the question, and after a refused answer the reason for the refusal."""
    if not problem:
        return [*pictures, question]
    # a quotation of an answer must not read like one of the model's own tokens
    reason = harmless(problem)
    return [*pictures, f"{question}\n\nAn earlier answer was refused: {reason}\nAnswer with the JSON object only."]


def _first_line(error: ValidationError) -> str:
    """Return the first error, with its place."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"no such field; there are {', '.join(_FIELDS)}"
    came = (
        "" if "got" in message or first["type"] in ("missing", "extra_forbidden") else f", got {_short(first['input'])}"
    )
    return f"{place}: {message}{came}" if place else f"{message}"


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"


__all__ = ["Proposal", "parse_proposal", "proposal_prompt", "propose_costs"]

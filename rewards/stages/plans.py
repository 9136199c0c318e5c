"""Plans as strict JSON: answers of a language model and files are validated before they become a `TaskPlan`."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ...core.interfaces import TaskPlan, TaskStage

MAX_STAGES = 12
"""Default of the largest number of stages in a plan."""
MAX_NAME, MAX_SENTENCE, MAX_KEYPOINTS, MAX_TEXT = 40, 300, 16, 20_000
"""Largest length of a name and of a sentence in characters, number of keypoints, and length of an answer."""
_NAME = re.compile(r"[^\W_](?:[\w \-]*[^\W_])?")
_FENCED = re.compile(r"```(?:json|JSON)?[ \t\r]*\n(.*)\n[ \t]*```", re.S)
_SHAPE = '{"stages": [{"name": …, "description": …, "completion": …, "keypoints": […]}, …]}'


def _plain(text: str) -> str:
    if len(text) > MAX_NAME or not _NAME.fullmatch(text):
        raise ValueError(
            f"expected a name of 1 to {MAX_NAME} letters, digits, spaces, _ or -, with a letter or digit at both ends"
        )
    return text


def _sentence(text: str) -> str:
    if len(text) > MAX_SENTENCE:
        raise ValueError(f"expected at most {MAX_SENTENCE} characters, got {len(text)}")
    if any(unicodedata.category(letter)[0] == "C" for letter in text):
        raise ValueError("expected text without line breaks and control characters")
    return text


def _distinct(names: list[str]) -> list[str]:
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError("expected distinct names")
    return names


Name = Annotated[str, AfterValidator(_plain)]
Sentence = Annotated[str, AfterValidator(_sentence)]


class StageSchema(BaseModel):
    """JSON form of a stage."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[Name, Field(description="a few plain words, different from those of the other stages")]
    description: Annotated[Sentence, Field(description="what is done in this stage")] = ""
    completion: Annotated[Sentence, Field(description="what can be seen once the stage is complete")] = ""
    keypoints: Annotated[
        list[Name],
        Field(max_length=MAX_KEYPOINTS, description="objects or parts that matter"),
        AfterValidator(_distinct),
    ] = []


class PlanSchema(BaseModel):
    """JSON form of a plan."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stages: Annotated[list[StageSchema], Field(min_length=1, description="in the order in which they are done")]


PLAN_SCHEMA: dict[str, Any] = PlanSchema.model_json_schema()
"""JSON schema of a plan, for prompts and for endpoints that constrain answers; names are checked in addition."""


def parse_plan(text: str, instruction: str, max_stages: int = MAX_STAGES) -> TaskPlan:
    """Parse a plan from an answer: one JSON object, alone or in one ```json fence, and nothing else.

    Args:
        text: Answer of a language model.
        instruction: Instruction of the task.
        max_stages: Largest number of stages, at least 1.

    Raises:
        ValueError: If the answer is refused; the message is one line that can be shown to the model.
    """
    return check_plan(read_object(text, _SHAPE), instruction, max_stages)


def read_object(text: str, shape: str) -> dict[str, Any]:
    """Parse one JSON object, alone or in one ```json fence, and nothing else.

    Args:
        text: Answer of a language model.
        shape: Expected form of the object, for errors.

    Raises:
        ValueError: If there is prose around the object, it is incomplete, a key occurs twice, it holds NaN, is nested
            too deeply, or has more than `MAX_TEXT` characters; the message is one line.
    """
    stripped = text.strip()
    if len(stripped) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT} characters, got {len(stripped)}")
    fenced = _FENCED.fullmatch(stripped)
    body = fenced[1].strip() if fenced else stripped
    if not body.startswith("{"):
        raise ValueError(f"expected one JSON object {shape} and nothing else, got {_short(stripped)}")
    try:
        value = json.loads(body, object_pairs_hook=unique_keys, parse_constant=_no_constant, parse_int=_whole)
    except json.JSONDecodeError as error:
        what = "text after the object" if error.msg == "Extra data" else f"no valid JSON ({error.msg})"
        raise ValueError(
            f"expected one complete JSON object {shape} and nothing else, got {what} at line {error.lineno}, column "
            f"{error.colno}: {_short(body[error.pos :] or 'the end')}"
        ) from None
    except RecursionError:
        raise ValueError(f"expected a JSON object of the form {shape}, got one nested far too deeply") from None
    return cast(dict[str, Any], value)


def check_plan(value: Any, instruction: str, max_stages: int = MAX_STAGES) -> TaskPlan:
    """Validate parsed JSON and convert it into a plan.

    Args:
        value: ``{"stages": [{"name", "description", "completion", "keypoints"}, …]}``; of a stage only the name is
            required.
        instruction: Instruction of the task.
        max_stages: Largest number of stages, at least 1.

    Raises:
        ValueError: If the plan is invalid; the message is one line.
    """
    if max_stages < 1:
        raise ValueError(f"max_stages is {max_stages}: expected at least 1")
    if isinstance(value, dict):
        stages = cast(dict[str, Any], value).get("stages")
        if isinstance(stages, list) and len(cast(list[Any], stages)) > max_stages:
            raise ValueError(f"stages: expected 1 to {max_stages}, got {len(cast(list[Any], stages))}")
    try:
        plan = PlanSchema.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first_line(error)) from None
    names = [stage.name.casefold() for stage in plan.stages]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"stages: expected a different name for each, got {twice!r} twice")
    return TaskPlan(
        instruction=instruction,
        stages=tuple(
            TaskStage(name=s.name, description=s.description, completion=s.completion, keypoints=tuple(s.keypoints))
            for s in plan.stages
        ),
    )


def read_plans(plans: Mapping[str, Any] | str | Path, max_stages: int = MAX_STAGES) -> dict[str, TaskPlan]:
    """Read plans by instruction, from a mapping or a JSON file of the form ``{instruction: {"stages": […]}, …}``.

    Args:
        plans: Mapping of this form, or the path of such a file.
        max_stages: Largest number of stages in a plan.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of that form, naming the instruction whose plan is invalid.
    """
    where, value = "plans", cast(Any, plans)
    if isinstance(plans, str | Path):
        where = str(plans)
        try:
            text = Path(plans).read_text(encoding="utf-8")
            value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_constant)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file of plans at {where}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f'{where}: expected {{instruction: {{"stages": […]}}, …}}, got {_short(value)}')
    read: dict[str, TaskPlan] = {}
    for instruction, entry in cast(Mapping[str, Any], value).items():
        try:
            read[instruction] = check_plan(entry, instruction, max_stages)
        except ValueError as error:
            raise ValueError(f"{where}: the plan for {instruction!r}: {error}") from error
    return read


def plan_to_json(plan: TaskPlan) -> str:
    """Write a plan's stages as JSON on one line that `parse_plan` reads back.

    Args:
        plan: Plan with at least one stage.

    Raises:
        ValueError: If the plan could not be read back, such as one without a stage or with a name of other characters.
    """
    value = plan_to_value(plan)
    check_plan(value, plan.instruction, max(1, len(plan.stages)))
    return json.dumps(value, ensure_ascii=False)


def plan_to_value(plan: TaskPlan) -> dict[str, Any]:
    """Convert a plan's stages into the value that `check_plan` takes."""
    return {
        "stages": [
            {
                "name": stage.name,
                "description": stage.description,
                "completion": stage.completion,
                "keypoints": list(stage.keypoints),
            }
            for stage in plan.stages
        ]
    }


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object for `json.loads` (``object_pairs_hook``) and refuse one with a key given twice.

    Args:
        pairs: Keys and values of the object.

    Raises:
        ValueError: If a key occurs twice.
    """
    value: dict[str, Any] = {}
    for key, entry in pairs:
        if key in value:
            raise ValueError(f"expected every key once in an object, got {_short(key)} twice")
        value[key] = entry
    return value


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) < 20 else float(digits)  # thousands of digits would be an error of another type


def _no_constant(name: str) -> Any:
    raise ValueError(f"expected JSON, which has no number {name}")


def _first_line(error: ValidationError) -> str:
    """Return the first error, as ``place: expected …, got …``."""
    first = error.errors(include_url=False)[0]
    place = ""
    for part in first["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if first["type"] == "extra_forbidden":
        known = "name, description, completion, keypoints" if "." in place else "stages"
        return f"expected no other keys than {known}, got {_short(place)}"
    if first["type"] == "missing":
        return f"{place}: expected this key to be there, got none"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if ", got " in message else f", got {_short(first['input'])}"
    return f"{place or 'plan'}: {message}{came}"


def _short(value: Any, length: int = 80) -> str:
    """Format a value on one line, cut to a length."""
    text = repr(value) if not isinstance(value, str) else repr(value[: length + 1])
    return text if len(text) <= length else f"{text[:length]}…"


__all__ = [
    "MAX_STAGES",
    "PLAN_SCHEMA",
    "PlanSchema",
    "StageSchema",
    "check_plan",
    "parse_plan",
    "plan_to_json",
    "plan_to_value",
    "read_object",
    "read_plans",
    "unique_keys",
]

"""Pairs and answers in the JSON of Label Studio: tasks to import, and annotations that come back."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from xml.sax.saxutils import quoteattr

from pydantic import ValidationError

from ..core.files import read_json, write_json
from .answers import Answer, Choice, check_answers
from .segments import SegmentPair

_SIDES: dict[str, Choice] = {"left": "first", "right": "second"}


def label_studio_config(
    media: Literal["Video", "Image", "Text", "HyperText"] = "Video", question: str = "Which one does the task better?"
) -> str:
    """Write the labelling configuration of a Label Studio project that compares pairs.

    A ``Pairwise`` control chooses the better segment, a ``Choices`` control marks a tie, a ``Number`` takes the
    confidence. A rater who cannot tell presses Label Studio's own button *Skip*.

    Args:
        media: Object tag that shows a segment.
        question: Text above the pair.

    Returns:
        XML for *Settings → Labeling interface*, which fits the tasks of `write_label_studio_tasks`.
    """
    shown = "\n".join(
        f'    <View style="flex: 1"><{media} name="{side}" value="${side}"/></View>' for side in ("first", "second")
    )
    return f"""<View>
  <Header value={quoteattr(question)}/>
  <Pairwise name="better" toName="first,second"/>
  <View style="display: flex; gap: 1em">
{shown}
  </View>
  <Choices name="neither" toName="first" choice="single" showInline="true">
    <Choice value="tie"/>
  </Choices>
  <Number name="confidence" toName="first" min="0" max="1" step="0.1"/>
</View>
"""


def write_label_studio_tasks(
    pairs: Sequence[SegmentPair],
    media: Mapping[str, tuple[str, str]],
    path: Path,
    answers: Sequence[Answer] = (),
) -> None:
    """Write pairs, and answers where there are any, as a task list that Label Studio imports.

    Args:
        pairs: Pairs to compare.
        media: For the name of each pair, what shows its first and its second segment: addresses of videos or images,
            or texts.
        path: File, such as ``tasks.json``, which is written whole or not at all.
        answers: Answers so far, which become annotations of their tasks. A skip becomes a cancelled annotation; a
            rater whose name is a number becomes the user of that number, any other the user with that e-mail address.

    Raises:
        ValueError: If a pair has no media, an answer names none of the pairs, or a rater answers a pair twice.
    """
    check_answers(answers, [pair.id for pair in pairs])
    tasks: list[dict[str, Any]] = []
    for pair in pairs:
        if pair.id not in media:
            raise ValueError(f"media: expected two addresses or texts for pair {pair.id!r}, found none")
        first, second = media[pair.id]
        data = {"pair": pair.id, "first": first, "second": second, "segments": pair.model_dump(mode="json")}
        annotations = [_annotation(answer) for answer in answers if answer.pair == pair.id]
        tasks.append({"data": data, **({"annotations": annotations} if annotations else {})})
    write_json(path, tasks)


def _annotation(answer: Answer) -> dict[str, Any]:
    result: list[dict[str, Any]] = []
    if answer.choice in ("first", "second"):
        selected = "left" if answer.choice == "first" else "right"
        result.append(_result("better", "first,second", "pairwise", {"selected": selected}))
    if answer.choice == "tie":
        result.append(_result("neither", "first", "choices", {"choices": ["tie"]}))
    if answer.confidence is not None:
        result.append(_result("confidence", "first", "number", {"number": answer.confidence}))
    annotation: dict[str, Any] = {"result": result, "was_cancelled": answer.choice == "skip"}
    if answer.rater:
        number = answer.rater.isdecimal() and str(int(answer.rater)) == answer.rater
        annotation["completed_by"] = int(answer.rater) if number else {"email": answer.rater}
    if answer.seconds is not None:
        annotation["lead_time"] = answer.seconds
    if answer.answered is not None:
        annotation["created_at"] = answer.answered
    return annotation


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def read_label_studio_answers(
    path: Path, pairs: Collection[str] | None = None, key: str = "pair", ignore: Collection[str] = ()
) -> list[Answer]:
    """Read the answers of an export in the format *JSON* (not *JSON-MIN*).

    In an annotation, a result of type ``pairwise`` (``value.selected`` is ``"left"`` or ``"right"``) chooses the first
    or the second segment, a result of type ``choices`` with ``tie`` or ``skip`` is one, and a result of type ``number``
    is the confidence. A cancelled annotation (``was_cancelled``) is a skip. ``completed_by`` gives the rater: the
    e-mail address where there is one, else the number of the user. ``lead_time`` gives the seconds, ``created_at`` the
    time. Drafts and predictions are no answers and are passed over, as are tasks without annotations.

    Args:
        path: File that Label Studio exported, or that `write_label_studio_tasks` wrote.
        pairs: Names of the pairs that were asked about; None accepts any.
        key: Entry of a task's ``data`` that holds the name of the pair.
        ignore: Names of further controls of the project, such as a comment field, whose results are passed over.

    Returns:
        Answers in the order of tasks and annotations.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut or has another format, an annotation has no answer or two that disagree, a
            control is unknown, a pair is unknown or unnamed, or a rater answers one twice.
    """
    tasks = read_json(path, "a list of tasks that Label Studio exported as JSON")
    if not isinstance(tasks, list):
        raise ValueError(f"{path}: expected a list of tasks as Label Studio exports it, got {type(tasks).__name__}")
    answers: list[Answer] = []
    for number, task in enumerate(cast(list[Any], tasks), 1):
        where = f"{path}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise ValueError(f'{where}: expected an object with "data": export as JSON, not as JSON-MIN or CSV')
        entry = cast(dict[str, Any], task)
        pair = entry["data"].get(key)
        if not isinstance(pair, str) or not pair:
            raise ValueError(f"{where}: expected the name of the pair in data[{key!r}], got {pair!r}; name it with key")
        annotations = entry.get("annotations", [])
        if not isinstance(annotations, list):
            raise ValueError(f"{where}: annotations: expected a list, got {type(annotations).__name__}")
        for annotation in cast(list[Any], annotations):
            answers.append(_answer(f"{where} (pair {pair!r})", pair, annotation, ignore))
    check_answers(answers, pairs, str(path))
    return answers


def _answer(where: str, pair: str, annotation: Any, ignore: Collection[str]) -> Answer:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise ValueError(f"{where}: expected annotations with a list of results; export as JSON")
    fields = cast(dict[str, Any], annotation)
    choices: list[Choice] = ["skip"] if fields.get("was_cancelled") else []
    confidence: float | None = None
    for result in cast(list[dict[str, Any]], fields["result"]):
        if result.get("from_name") in ignore:
            continue
        kind, value = result.get("type"), cast(dict[str, Any], result.get("value") or {})
        if kind == "number":
            confidence = value.get("number")
        elif not fields.get("was_cancelled"):
            choices.extend(_choices(where, kind, value, result.get("from_name")))
    if len(set(choices)) != 1:
        raise ValueError(
            f"{where}: expected one answer, got {', '.join(choices) or 'none'}; correct the annotation in Label Studio"
        )
    try:
        return Answer(
            pair=pair,
            choice=choices[0],
            rater=_rater(where, fields.get("completed_by")),
            confidence=confidence,
            seconds=fields.get("lead_time"),
            answered=fields.get("created_at"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{where}: {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error


def _choices(where: str, kind: Any, value: Mapping[str, Any], control: Any) -> list[Choice]:
    if kind == "pairwise":
        selected = value.get("selected")
        if selected not in (*_SIDES, "none"):  # older versions write "none" where a click was taken back
            raise ValueError(f'{where}: value.selected: expected "left" or "right", got {selected!r}')
        return [] if selected == "none" else [_SIDES[selected]]
    if kind == "choices":
        chosen = value.get("choices")
        if isinstance(chosen, list) and all(one in ("tie", "skip") for one in cast(list[Any], chosen)):
            return cast(list[Choice], chosen)
        raise ValueError(f'{where}: value.choices of {control!r}: expected ["tie"] or ["skip"], got {chosen!r}')
    raise ValueError(
        f"{where}: a result of type {kind!r} from control {control!r}: expected pairwise, choices or number; pass over "
        f"other controls with ignore=[{control!r}]"
    )


def _rater(where: str, user: Any) -> str:
    if isinstance(user, dict):
        person = cast(dict[str, Any], user)
        user = person.get("email") or person.get("id")
    if user is None:
        return ""
    if isinstance(user, bool) or not isinstance(user, int | str):
        raise ValueError(f"{where}: completed_by: expected a user's number, or email or id of one, got {user!r}")
    return str(user)


__all__ = ["label_studio_config", "read_label_studio_answers", "write_label_studio_tasks"]

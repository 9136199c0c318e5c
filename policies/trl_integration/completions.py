"""Completions as TRL's trainers hand them to reward functions, read one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Completion of one prompt, with the columns of the data set's row that the prompt came from."""

    text: str
    """Text of the completion; of a conversation, what the assistant wrote, without the answers of tools."""
    tokens: tuple[int, ...] = ()
    """Token numbers of the completion; empty where the trainer gives none."""
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Column of the data set → its value in this row."""

    def column(self, name: str) -> Any:
        """Return the value of a column.

        Args:
            name: Name of the column.

        Raises:
            ValueError: If the data set has no such column, or it is empty in this row.
        """
        value = self.columns.get(name)
        if value is None:
            held = ", ".join(sorted(self.columns)) or "none"
            raise ValueError(
                f"the data set has no column {name!r}, or it is empty in a row; it has the columns {held}: add it to "
                "the rows that are passed to the trainer"
            )
        return value

    def number(self, name: str) -> int:
        """Return the whole number in a column.

        Args:
            name: Name of the column.

        Raises:
            ValueError: If it is not there, or is no whole number.
        """
        value = self.column(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"column {name!r}: expected a whole number, got {value!r}")
        return value


def completions_of(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None, columns: Mapping[str, Any]
) -> list[Completion]:
    """Read the arguments that TRL's trainers pass to a reward function.

    Args:
        completions: Completion of each prompt: a text, or a list of messages.
        completion_ids: Token numbers of each completion; None where the trainer gives none.
        columns: Other arguments; lists with one value per completion are columns, the rest is ignored.

    Raises:
        ValueError: If a completion is neither a text nor a list of messages, or the numbers of tokens and completions
            differ.
    """
    count = len(completions)
    if completion_ids is not None and len(completion_ids) != count:
        raise ValueError(f"expected the tokens of {count} completions, got those of {len(completion_ids)}")
    kept = {name: value for name, value in columns.items() if isinstance(value, list | tuple) and len(value) == count}
    return [
        Completion(
            text=_text(completion),
            tokens=() if completion_ids is None else tuple(int(token) for token in completion_ids[place]),
            columns={name: value[place] for name, value in kept.items()},
        )
        for place, completion in enumerate(completions)
    ]


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        raise ValueError(f"expected a completion as a text or a list of messages, got a {type(completion).__name__}")
    messages = cast(list[Mapping[str, Any]], completion)
    return "".join(_content(message.get("content")) for message in messages if message.get("role") == "assistant")


def _content(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    parts = cast(Sequence[Mapping[str, Any]], content)
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


__all__ = ["Completion", "completions_of"]

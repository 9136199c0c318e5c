"""Named numbers of several environments, stacked in one array and split by name when a name is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .task import Task


@dataclass(frozen=True)
class Layout:
    """Names and widths of the values of one environment, in the order of its task."""

    names: tuple[str, ...]
    """Names."""
    widths: tuple[int, ...] | None
    """Number of values under each name; None if all are plain numbers."""

    @property
    def size(self) -> int:
        """Number of values in all."""
        return len(self.names) if self.widths is None else sum(self.widths)

    @cached_property
    def places(self) -> dict[str, int | slice]:
        """Place of each name in a row: an index for a plain number, a slice for an array."""
        if self.widths is None:
            return {name: i for i, name in enumerate(self.names)}
        ends = np.cumsum(self.widths).tolist()
        return {n: slice(end - w, end) for n, w, end in zip(self.names, self.widths, ends, strict=True)}


class Stacked(Mapping[str, np.ndarray]):
    """Named numbers of n environments, name → (n,) or (n, w) float32.

    They are held as rows, and split when the first name is asked for: in a loop of rollouts, `rows` costs a fraction of
    what the names cost. Values are NaN where an environment does not have the name, or was not stepped.

    Args:
        rows: Rows (n, W) float32, NaN after the last value of each environment.
        layouts: Layout of each row; None where the environment was not stepped.
    """

    def __init__(self, rows: np.ndarray, layouts: Sequence[Layout | None]) -> None:
        self.rows = rows
        """All values of environment i side by side in row i, in the order of its task, (n, W) float32."""
        self._layouts = layouts
        self._named: dict[str, np.ndarray] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._split()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._split())

    def __len__(self) -> int:
        return len(self._split())

    def __repr__(self) -> str:
        return f"Stacked({self._split()!r})"

    def _split(self) -> dict[str, np.ndarray]:
        if self._named is None:
            layouts = dict.fromkeys(layout for layout in self._layouts if layout is not None)
            if len(layouts) == 1:  # one task, as in most rollouts
                self._named = {name: self.rows[:, place].copy() for name, place in next(iter(layouts)).places.items()}
            else:
                self._named = self._split_rows()
        return self._named

    def _split_rows(self) -> dict[str, np.ndarray]:
        named: dict[str, np.ndarray] = {}
        for i, layout in enumerate(self._layouts):
            for name, place in ({} if layout is None else layout.places).items():
                values = self.rows[i, place]
                if name not in named:
                    named[name] = np.full((len(self.rows), *values.shape), np.nan, np.float32)
                named[name][i] = values
        return named


class Stacker:
    """Stacks named values of several environments, step by step; what stays the same between steps is kept.

    Args:
        tasks: Tasks of the environments, for errors; the list may change.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        self._layouts: list[Layout | None] = [None] * len(tasks)
        self._size = 0

    def numbers(self, indices: Sequence[int], given: Sequence[Mapping[str, float | int]]) -> Stacked:
        """Stack plain numbers.

        Args:
            indices: Numbers of the environments that were stepped.
            given: Named numbers of each of them.
        """
        for i, named in zip(indices, given, strict=True):
            held, names = self._layouts[i], tuple(named)
            if held is None or held.names != names:
                self._adopt(i, Layout(names, None))
        rows = np.full((len(self._layouts), self._size), np.nan, np.float32)
        for i, named in zip(indices, given, strict=True):
            rows[i, : len(named)] = tuple(named.values())
        return self._stacked(rows, indices)

    def arrays(self, indices: Sequence[int], given: Sequence[Mapping[str, np.ndarray]]) -> Stacked:
        """Stack arrays (w,).

        Args:
            indices: Numbers of the environments that were stepped.
            given: Named arrays of each of them.

        Raises:
            ValueError: If two environments have different widths under one name.
        """
        for i, named in zip(indices, given, strict=True):
            held, names, widths = self._layouts[i], tuple(named), tuple(map(len, named.values()))
            if held is None or held.names != names or held.widths != widths:
                self._adopt(i, Layout(names, widths))
        rows = np.full((len(self._layouts), self._size), np.nan, np.float32)
        for i, named in zip(indices, given, strict=True):
            first = 0
            for values in named.values():
                rows[i, first : first + len(values)] = values
                first += len(values)
        return self._stacked(rows, indices)

    def _adopt(self, index: int, layout: Layout) -> None:
        """Take the layout of an environment, whose first step this is or whose task gives other names now."""
        for other in self._layouts[:index] + self._layouts[index + 1 :]:
            if other is None or other.widths is None or layout.widths is None:
                continue
            widths = dict(zip(other.names, other.widths, strict=True))
            for name, width in zip(layout.names, layout.widths, strict=True):
                if widths.get(name, width) != width:
                    raise ValueError(
                        f"{self._tasks[index].name}: track {name!r} has {width} numbers, and {widths[name]} in another "
                        "task of this run; name it differently, or run the tasks apart"
                    )
        self._layouts[index] = layout
        self._size = max(held.size for held in self._layouts if held is not None)

    def _stacked(self, rows: np.ndarray, indices: Sequence[int]) -> Stacked:
        if len(indices) == len(self._layouts):
            return Stacked(rows, self._layouts.copy())
        layouts: list[Layout | None] = [None] * len(self._layouts)
        for i in indices:
            layouts[i] = self._layouts[i]
        return Stacked(rows, layouts)

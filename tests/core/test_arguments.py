"""Constructor arguments are remembered, and those of an object argument may be given one by one."""

import functools

import pytest

from guerdon.core.arguments import folds
from guerdon.core.interfaces import Component


class Eye(Component):
    def __init__(self, width: int = 4, cameras: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.width, self.cameras = width, cameras


class Model(Component):
    @folds(eye=functools.partial(Eye, width=2))
    def __init__(self, size: int = 1, eye: Eye | None = None) -> None:
        super().__init__()
        self.size, self.eye = size, eye or Eye(width=2)


def test_flat_arguments_become_the_object():
    model = Model(size=3, cameras=("front",))  # pyright: ignore[reportCallIssue]
    assert (model.size, model.eye.width, model.eye.cameras) == (3, 2, ("front",))


def test_the_record_holds_the_object_and_no_flat_argument():
    model = Model(cameras=("front",))  # pyright: ignore[reportCallIssue]
    assert set(model.init_args) == {"size", "eye"}
    assert model.init_args["eye"] is model.eye
    assert Model(5).init_args == {"size": 5, "eye": None}


def test_object_and_flat_argument_are_refused_together():
    with pytest.raises(TypeError, match="eye and width are both given: put width into eye"):
        Model(eye=Eye(), width=3)  # pyright: ignore[reportCallIssue]


def test_an_argument_nobody_has_is_the_usual_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Model(colour="red")  # pyright: ignore[reportCallIssue]


def test_copies_are_independent_records():
    names = ["front"]
    eye = Eye(cameras=names)  # pyright: ignore[reportArgumentType]  # a list, which the record must copy
    names.append("wrist")
    assert eye.init_args["cameras"] == ["front"]


class Callback:
    """A class that is no module."""

    @folds(eye=Eye)
    def __init__(self, eye: Eye | None = None) -> None:
        self.eye = eye or Eye()


def test_any_class_may_fold_arguments():
    callback = Callback(width=3)  # pyright: ignore[reportCallIssue]
    assert callback.eye.width == 3 and Callback().eye.width == 4
    assert set(Callback.__init__.folded_objects) == {"eye"}
    assert "init_args" not in vars(callback)  # only components have a record


class Child(Model):
    def __init__(self, sharp: bool = True) -> None:
        super().__init__(cameras=("front",) if sharp else ())  # pyright: ignore[reportCallIssue]
        self.sharp = sharp


def test_a_subclass_keeps_the_record_of_its_own_arguments():
    assert Child(sharp=False).init_args == {"sharp": False}
    assert Child().eye.cameras == ("front",)

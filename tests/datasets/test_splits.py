"""Splits: what belongs together stays on one side, what is recorded decides, and a name means the same everywhere."""

import pytest

from guerdon.datasets.splits import VAL_FRACTION, SplitInfo, choose_split, families, in_split, in_split_each, split_each


def test_families_join_contexts_and_groups():
    infos = [
        SplitInfo(index=0, context="a", group=1),
        SplitInfo(index=1, context="b", group=1),
        SplitInfo(index=2, context="b"),
        SplitInfo(index=3, group=9),
        SplitInfo(index=4),
        SplitInfo(index=5),
    ]
    for fraction in (0.2, 0.4, 0.6):
        train, val = choose_split(infos, "train", "val", fraction)
        assert sorted(train + val) == list(range(6)) and train and val
        assert len({i in val for i in (0, 1, 2)}) == 1
    with pytest.raises(ValueError, match="val_fraction is 1"):
        choose_split(infos, "train", "val", 1.0)


def test_a_data_set_that_names_only_its_training_split_still_has_something_to_validate_on():
    infos = [SplitInfo(index=i, split="train", context=str(i // 2)) for i in range(20)]
    train, val = choose_split(infos, "train", "val", 0.2)
    assert len(val) == 4 and sorted(train + val) == list(range(20))
    assert not {infos[i].context for i in train} & {infos[i].context for i in val}
    assert choose_split(infos, "train", "val", 0.0) == (list(range(20)), [])
    with_test = [*infos, SplitInfo(index=99, split="test")]
    assert choose_split(with_test, "train", "val", 0.2) == (train, val)  # the test split is left alone


def test_a_split_by_name_is_the_one_training_made():
    infos = [SplitInfo(index=i, split="train", context=str(i)) for i in range(20)]
    train, val = choose_split(infos, "train", "val", VAL_FRACTION)
    assert in_split(infos, "train", "set") == train and in_split(infos, "val", "set") == val and len(val) == 2
    assert in_split(infos, "", "set") == list(range(20))
    both = [*infos, SplitInfo(index=20, split="val"), SplitInfo(index=21, split="test")]
    assert in_split(both, "train", "set") == list(range(20)) and in_split(both, "val", "set") == [20]
    with pytest.raises(ValueError, match=r"set has no usable episode of the split 'odd': it has test, train, val"):
        in_split(both, "odd", "set")
    with pytest.raises(ValueError, match="it has eval"):
        in_split([SplitInfo(index=0, split="eval")], "val", "set")


def test_families_are_named_by_their_smallest_name():
    infos = [
        SplitInfo(index=0, context="b"),
        SplitInfo(index=1, context="a", group=3),
        SplitInfo(index=2, context="b", group=3),
    ]
    assert families([*infos, SplitInfo(index=7)]) == {"context a": [0, 1, 2], "episode 7": [3]}


def test_the_same_episodes_give_the_same_split_in_any_order():
    infos = [SplitInfo(index=i, context=str(i)) for i in range(30)]
    _, val = choose_split(infos, "train", "val", 0.2)
    _, other = choose_split(infos[::-1], "train", "val", 0.2)
    assert sorted(29 - place for place in other) == val and len(val) == 6


@pytest.mark.parametrize(("fraction", "families", "held_out"), [(0.0, 5, 0), (0.01, 5, 1), (0.99, 5, 4), (0.5, 1, 0)])
def test_a_fraction_holds_out_at_least_one_family_and_never_all(fraction, families, held_out):
    train, val = choose_split([SplitInfo(index=i, group=i) for i in range(families)], "train", "val", fraction)
    assert len(val) == held_out and len(train) == families - held_out


def test_a_recorded_split_without_anything_to_train_on_is_named():
    infos = [SplitInfo(index=0, split="test"), SplitInfo(index=1, split="test"), SplitInfo(index=2, split="dev")]
    with pytest.raises(ValueError, match=r"no episode of the split 'train': the data set has dev \(1\), test \(2\)"):
        choose_split(infos, "train", "val", 0.1)
    assert choose_split(infos, "dev", "test", 0.1) == ([2], [0, 1])


def test_each_data_set_splits_by_itself_and_places_count_through_all():
    recorded = [SplitInfo(index=0, split="train"), SplitInfo(index=1, split="val")]
    plain = [SplitInfo(index=i) for i in range(10)]
    judged = [SplitInfo(index=0, split="val"), SplitInfo(index=1, split="other")]
    alone = choose_split(plain, "train", "val", 0.2)
    train, val = split_each([recorded, plain, judged], "train", "val", 0.2)
    assert train == [0, *(2 + place for place in alone[0])]
    assert val == [1, *(2 + place for place in alone[1]), 12]  # the last set only validates
    assert split_each([plain], "train", "val", 0.2) == alone
    with pytest.raises(ValueError, match=r"no episode of the split 'train' in any data set: they have other, val"):
        split_each([judged, judged], "train", "val", 0.2)


def test_a_split_by_name_is_looked_for_in_every_data_set():
    one, other = [SplitInfo(index=0, split="a"), SplitInfo(index=1, split="b")], [SplitInfo(index=0, split="b")]
    assert in_split_each([one, other], "b", "both") == [1, 2]
    assert in_split_each([one, other], "a", "both") == [0]  # it is enough that one of them has it
    assert in_split_each([one, other], "", "both") == [0, 1, 2]
    with pytest.raises(ValueError, match=r"both has no usable episode of the split 'c': it has a, b"):
        in_split_each([one, other], "c", "both")
    with pytest.raises(ValueError, match="no split is recorded: expected train or val"):
        in_split_each([[SplitInfo(index=0)]], "c", "one")

import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from guerdon.backbones.language import HashedText, InstructionCache


def test_buckets_by_hand():
    # CRC-32 (ISO 3309) of b"hello world" is 0x0d4a1185 = 222957957; 222957957 mod 1000 = 957
    ids = HashedText(width=4, buckets=1000).bucket_ids("Hello,  WORLD!")
    assert len(ids) == 3  # two words and one pair
    assert ids[2] == 957


def test_mean_of_words_and_pairs_in_a_literal_loop():
    text = HashedText(width=5, buckets=97)
    instructions = ["open the drawer", "", "Close the drawer!", "open"]
    expected = torch.zeros(4, 5)
    for m, instruction in enumerate(instructions):
        ids = text.bucket_ids(instruction)
        for bucket in ids:
            expected[m] += text.table.weight[bucket] / len(ids)
    torch.testing.assert_close(text(instructions), expected)
    assert (text([""]) == 0).all()


def test_word_order_matters_and_case_does_not():
    text = HashedText()
    a, b, c = text(["cup on plate", "plate on cup", "CUP on Plate."])
    assert torch.equal(a, c) and (a - b).abs().max() > 1e-3


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_text_gives_finite_features(instructions):
    text = HashedText(width=3, buckets=7)
    got = text(instructions)
    assert got.shape == (len(instructions), 3) and got.isfinite().all()
    for row, instruction in zip(got, instructions, strict=True):
        torch.testing.assert_close(text([instruction])[0], row)


@pytest.mark.slow
def test_buckets_are_the_same_in_every_process():
    code = "from guerdon.backbones.language import HashedText; print(HashedText().bucket_ids('push the button'))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert runs == {str(HashedText().bucket_ids("push the button"))}


def test_it_learns_to_tell_instructions_apart():
    text, head = HashedText(width=16), torch.nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*text.parameters(), *head.parameters()], lr=1e-2)
    verbs = {"open": 0, "close": 1}
    things = ["drawer", "door", "box", "window", "lid"]
    rows = [(f"{verb} the {thing}", label) for verb, label in verbs.items() for thing in things]
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(text([r for r, _ in rows])), torch.tensor([y for _, y in rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # words never met leave the verb's voice audible
    assert head(text(["open the cupboard", "close the cupboard"])).argmax(-1).tolist() == [0, 1]


def test_saved_and_opened_again(tmp_path):
    text = HashedText(width=4, buckets=11)
    text.save_pretrained(tmp_path / "text")
    opened = HashedText.from_pretrained(tmp_path / "text")
    assert torch.equal(opened(["open it"]), text(["open it"])) and opened.revision == text.revision


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="buckets 0"):
        HashedText(buckets=0)


def test_the_cache_computes_each_instruction_once_and_forgets_the_oldest():
    computed = []

    def compute(texts):
        computed.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    cache = InstructionCache(capacity=2)
    assert [float(row) for row in cache.lookup(["a", "bb", "a"], compute)] == [1, 2, 1]
    cache.lookup(["a"], compute)
    cache.lookup(["ccc"], compute)  # "bb" is now the oldest, and goes
    cache.lookup(["a"], compute)
    cache.lookup(["bb"], compute)
    assert computed == ["a", "bb", "ccc", "bb"]
    # more at once than it can keep is still answered
    assert [float(row) for row in cache.lookup(["x", "yy", "zzz"], compute)] == [1, 2, 3]

from dataclasses import replace

import numpy as np
from jobs.judging import candidates_of, load


def test_duplicates_are_those_after_the_first_in_any_batch() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    judge = load("duplicates")
    first, second = candidates_of(images[[0, 1, 0]]), candidates_of(images[[2, 1]])
    assert judge.judge(first) == [None, None, "duplicate"]
    assert judge.judge(replace(second, seen=first.seen)) == [None, "duplicate"]
    assert judge.judge(candidates_of(images)) == [None] * 4  # each shard begins anew

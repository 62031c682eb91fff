import numpy as np
from jobs.judging import candidates_of, load


def test_constant_images_are_rejected() -> None:
    images = np.zeros((5, 4, 3, 3), np.uint8)
    images[1] = [10, 200, 30]  # one colour all over
    images[2, 0, 0, 1] = 2
    images[3, 0, 0, 0], images[3, 1, 1, 0] = 255, 253
    images[4, ..., 2] = 255
    images[4, 3, 2, 2] = 0
    batch = candidates_of(images)
    assert load("constant").judge(batch) == ["constant", "constant", None, None, None]
    within_two = ["constant", "constant", "constant", None, None]
    assert load("constant", tolerance=2).judge(batch) == within_two
    assert load("constant", tolerance=254).judge(batch)[3:] == [None, None]

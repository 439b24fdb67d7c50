import numpy as np

from codemae.data.randomness import counter_rng


def draws(*key):
    return counter_rng(*key).random(4)


def test_equal_keys_draw_equal_numbers():
    assert np.array_equal(draws(1, 2, 3, 4, "mask"), draws(1, 2, 3, 4, "mask"))


def test_every_part_of_the_key_matters():
    base = (7, 2, 3, 4, "mask")
    others = [
        (8, 2, 3, 4, "mask"),
        (7, 3, 3, 4, "mask"),
        (7, 2, 4, 4, "mask"),
        (7, 2, 3, 5, "mask"),
        (7, 2, 3, 4, "crop"),
    ]
    seen = {tuple(draws(*key)) for key in [base, *others, (7, 2, 3, -1, "mask")]}
    assert len(seen) == 7


def test_numbers_of_neighbouring_rows_are_uniform_and_uncorrelated():
    table = np.array([counter_rng(0, 0, 0, row, "mask").random(64) for row in range(500)])
    # 32,000 uniforms: the mean of the whole has standard error 0.0016.
    assert abs(table.mean() - 0.5) < 0.008
    neighbours = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.03


def test_numbers_do_not_change_between_versions():
    # A resumed run must see the samples it would have seen: this row is part of the contract.
    expected = [0.51414038, 0.44929047, 0.10895811]
    assert np.allclose(counter_rng(42, 1, 0, 10, "crop:pair").random(3), expected)

import pytest

from apeagent_pipeline.evaluation.statistics import clopper_pearson, mcnemar


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (60, 60, 0.9404, 1.0),
        (120, 120, 0.9697, 1.0),
        (0, 40, 0.0, 0.0881),
        (0, 300, 0.0, 0.0122),
        (5, 10, 0.1871, 0.8129),
    ],
)
def test_intervals_are_the_exact_ones_of_the_tables(successes, trials, low, high):
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_a_rate_of_nothing_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="at least one trial"):
        clopper_pearson(0, 0)
    with pytest.raises(ValueError, match="no more successes"):
        clopper_pearson(3, 2)


def test_mcnemar_counts_only_the_questions_on_which_the_two_differ():
    # 10 against 2 discordant pairs: two-sided binomial p = 0.03857
    first = [True] * 10 + [False] * 2 + [True] * 50
    second = [False] * 10 + [True] * 2 + [True] * 50
    assert mcnemar(first, second) == pytest.approx(0.03857, abs=1e-5)
    assert mcnemar(second, first) == pytest.approx(0.03857, abs=1e-5)
    assert mcnemar([True, False], [True, False]) == 1.0

from hypothesis import given
from hypothesis import strategies as st

from raysgl.engine.estimate import FEW, OutputLengthEstimator


def test_prior_then_learned():
    estimator = OutputLengthEstimator()
    assert estimator.remaining(0, 100) == 71
    for _ in range(FEW):
        estimator.record(20)
    assert estimator.remaining(0, 100) == 21
    assert estimator.remaining(15, 100) == 6


def test_margin_grows_on_retraction_and_decays():
    estimator = OutputLengthEstimator()
    before = estimator.remaining(0, 1000)
    estimator.retracted()
    assert estimator.remaining(0, 1000) > before
    for _ in range(1000):
        estimator.stepped()
    assert estimator.remaining(0, 1000) == before


@given(st.lists(st.integers(0, 300), max_size=700), st.integers(0, 300), st.integers(0, 500))
def test_stays_in_range_and_forgets(lengths, generated, limit):
    estimator = OutputLengthEstimator()
    for length in lengths:
        estimator.record(length)
    assert 0 <= estimator.remaining(generated, limit) <= limit
    assert estimator._sorted == sorted(lengths[-512:])

"""Make every run of the tests the same run: Hypothesis draws the same examples everywhere, and keeps none aside."""

from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None, deadline=None, print_blob=True)
# `pytest --hypothesis-profile=soak FILE`: new examples every time, for hours.
settings.register_profile("soak", max_examples=200_000, deadline=None, print_blob=True)
settings.load_profile("same")

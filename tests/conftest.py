"""What holds for every test."""

from hypothesis import settings

# How long an example takes is this machine's affair: nothing in the suite is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

"""What holds for the tests of every tier."""

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine's other work, and nothing of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

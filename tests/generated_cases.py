"""Provides hypothesis's settings for tests that feed whole programs: cases of any size, however
long they take, which are not shrunk, stored or replayed."""

from hypothesis import HealthCheck, Phase, settings

GENERATED = settings(
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

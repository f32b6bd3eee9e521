"""Provides hypothesis's settings for tests of programs from outside: cases are generated alone, as
slow and as large as they come, and none is shrunk, stored or replayed."""

from hypothesis import HealthCheck, Phase, settings

GENERATED = settings(
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

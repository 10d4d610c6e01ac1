"""What holds for every test."""

from hypothesis import HealthCheck, settings

# How long an example takes says what else the machine is doing, not whether the code is right: speed is measured in
# benchmarks/. Without this an example of more than 200 ms fails, and so does slow drawing of examples.
settings.register_profile("p2pcompute", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2pcompute")

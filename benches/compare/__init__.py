"""The gateway beside its rivals, end to end, in one run on loopback. `scripts/bench` starts it."""

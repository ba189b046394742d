"""The sidecar: the same series from a process of its own, its proxy, and ``gpuscale run``."""

"""Run any notebook: its parameters, its record, reruns, sweeps, stale outputs."""

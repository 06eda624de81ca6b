"""Run any notebook: parameters, records, reruns, sweeps, and stale outputs."""

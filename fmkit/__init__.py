"""Imports nothing, so that a chapter is stale only by the modules it uses."""

"""Checks for the exercises on 14.3. In shapes: B batch, T tokens, V vocabulary."""

LANGUAGE = {}

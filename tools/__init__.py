"""Programs that made what is committed, run by hand."""

"""Tasks for language models: questions, libraries, operators, regression.

Two modules hold more than data. :mod:`fmkit.tasks.operators` has the loss of its task
and the ideal observer; :mod:`fmkit.tasks.regression` has the optimum, which is ridge
regression, and reads predictions out of a model.
"""

"""Tasks for language models: questions, libraries, operators, regression."""

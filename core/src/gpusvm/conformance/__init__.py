"""Hold drivers to rules: the conformance suite, the questions of `gpusvm characterize`, failures, and old bugs."""

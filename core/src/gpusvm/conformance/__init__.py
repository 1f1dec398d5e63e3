"""The room of the conformance suite, empty so far: where the drivers must differ or agree is tested in `tests/`."""

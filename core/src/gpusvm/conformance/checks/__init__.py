"""The checks of the conformance suite, as test modules that any driver is run through."""

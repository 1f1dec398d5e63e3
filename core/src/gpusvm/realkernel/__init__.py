"""The room of the comparison with a real kernel, empty so far: recorded answers are replayed in the drivers' tests."""

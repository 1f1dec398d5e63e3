"""Run the same operations on a real Linux kernel with test_hmm, and show the difference."""

"""The driver kfd: amdkfd's own SVM, ranges of memory with attributes, a notifier and a buffer object each."""

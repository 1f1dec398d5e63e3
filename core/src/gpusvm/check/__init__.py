"""Invariants: functions of what the kernel and the mm report, or of a trace."""

"""The kernel a driver runs in: tasks, choices, clock, locks and lockdep, work, references, failure injection, trace."""

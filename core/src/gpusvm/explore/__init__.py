"""Search schedules and injected failures, replay what was found, and shrink it."""

"""Generate the reference pages that repeat what code and data say."""

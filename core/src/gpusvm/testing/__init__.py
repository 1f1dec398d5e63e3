"""What authors of driver plugins test with: a registry without discovery, a null driver, settle()."""

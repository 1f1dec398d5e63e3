"""What a driver plugin implements, and the fault pipeline that all drivers share."""

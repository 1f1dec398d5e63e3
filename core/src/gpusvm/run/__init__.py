"""One run: machine, driver, workload, costs and seed in, a run directory out."""

"""Put drivers side by side on the same workloads, with what-if variants and baselines."""

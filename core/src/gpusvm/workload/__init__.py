"""Memory-access traces and generators, and their replay through CPU and GPU agents."""

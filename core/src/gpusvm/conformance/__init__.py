"""The suite that says whether a driver keeps the contract: a pytest plugin and its checks."""

"""Run, check and compare GPU drivers' strategies for shared virtual memory on a model of Linux."""

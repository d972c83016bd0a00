"""Benchmarks behind `scripts/bench.py`, a module a subject: functions from the options to figures."""

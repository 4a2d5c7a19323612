"""Fakes at our ports, in memory. They hold what the contract suites hold adapters to."""

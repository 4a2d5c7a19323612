"""Requests, limits, policy, status and log positions."""

"""The local stack: everything the worker talks to, on loopback, for `dev`, `demo` and the tests.

The worker has no local mode: endpoints differ, nothing else. Nothing outside `cli` and `demo` imports this.
"""

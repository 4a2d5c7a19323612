"""`launch-worker doctor`: looks at all that a worker needs and changes nothing.

One module a subject; each check is a small function that returns `Check`s. `examination` has their order.
"""

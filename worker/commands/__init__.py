"""The commands about launches and workers: their options, and what they print. `cli` joins them into one.

* `jobs`      `jobs`, `logs`, `stop`, `workers`; its table is `jobs_table`
* `terminal`  what all commands share

The others are a command each.
"""

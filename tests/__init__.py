"""Tests. `unit`: pure, virtual time; `contract`: one suite a port; `integration`: real clients; `e2e`: the process."""

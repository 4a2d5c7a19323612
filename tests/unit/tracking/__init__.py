"""The companion run: what is posted where."""

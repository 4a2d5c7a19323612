"""What `deploy/` promises: policies, templates, the image, and the ways to run it."""

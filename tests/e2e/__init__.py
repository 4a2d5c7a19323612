"""The worker as a process of its own, against real containers and the local services."""

import pytest

# Before the modules are imported: their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("tests.e2e.audit", "tests.e2e.bench", "tests.e2e.process")

"""What the worker needs of SQS and CloudWatch Logs, against LocalStack: a second opinion beside moto's.

Run by `make test-localstack`, which makes the environment that LocalStack needs; `pytest` alone leaves this folder out.
"""

import pytest

# Before the modules are imported: their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("tests.e2e.audit", "tests.e2e.bench", "tests.e2e.process")

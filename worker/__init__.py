"""launch-worker: W&B Launch messages from SQS become SageMaker training jobs with their logs in W&B.

Read in this order:

* `pipeline.py`    leg 1, minutes: one message → image → request → ledger
* `supervisor.py`  leg 2, hours to days: ledger → SageMaker job → its log in W&B → the end
* `app.py`         what is opened once and how the parts are wired

Below them stand the stages (`intake`, `sources`, `images`, `training`, `tracking`, `ledger`), the clients they
speak through (`clients`), what operators see (`ops`) and the words all of them use (`launch`).
Imports go down only; import-linter enforces it.
"""

__version__ = "0.1.0"

"""The scenarios.

* `burst`       many launches at once
* `running`     many jobs that run: quiet, printing, a worker started anew
* `ends`        many jobs end at about once
* `stops`       Stop pressed in W&B
* `start`       a worker with nothing to do
* `throughput`  as many lines as there are
* `agent`       the same for W&B's own agent, as far as it can
* `storm`       many builds at once, with docker
* `windows`     measuring a steady program
"""

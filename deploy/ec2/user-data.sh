#!/bin/sh
# User data of an EC2 instance that runs the worker, in the steps of W&B's guide: an Amazon Linux 2023 or Debian instance
# with the worker's role as instance profile. A t2.micro (1 vCPU, 1 GiB) is enough for ready images; for builds take
# m6i.large or larger with 100 GiB of disk, and set BUILDS=yes. docs/deploy.md has the command that starts it.
set -eu

IMAGE=123456789012.dkr.ecr.eu-west-1.amazonaws.com/launch-worker:1 # built with deploy/Dockerfile
QUEUE_URL=https://sqs.eu-west-1.amazonaws.com/123456789012/launch-launches
WANDB_SECRET=arn:aws:secretsmanager:eu-west-1:123456789012:secret:wandb-key-AbCdEf
REGION=eu-west-1
DEPLOYMENT=default # as in base.yaml: the worker may stop only jobs with this tag
# The table that base.yaml has made: it outlives this instance, and several may share it. For one worker only, and then
# with LedgerOn=sqlite in base.yaml: sqlite:////var/lib/launch-worker/ledger.db, on a disk that goes with the instance.
LEDGER=dynamodb://launch-ledger
BUILDS=no
REGISTRY= # with builds: the ECR repository for images
# W&B launch queues to mirror into QUEUE_URL, with commas between, and their entity; base.yaml with Mirror=true.
MIRROR_QUEUES=
ENTITY=
REGISTRY_TO_PULL_FROM=${IMAGE%%/*}

if command -v dnf >/dev/null 2>&1; then
  dnf install -y docker awscli-2 iptables-nft
else
  apt-get update
  # From Debian 13 on docker's client is a package of its own.
  client=$(apt-cache pkgnames docker-cli | grep -x docker-cli || true)
  # Unquoted on purpose: it may be empty.
  apt-get install -y --no-install-recommends docker.io $client awscli iptables
fi
systemctl enable --now docker

# Who may reach the worker's files: nobody but itself (10001 is its user in the image).
install -d -m 0700 -o 10001 -g 10001 /var/lib/launch-worker /var/lib/launch-work
umask 077
cat >/etc/launch-worker.env <<SETTINGS
AWS_REGION=$REGION
LAUNCH_QUEUE_URL=$QUEUE_URL
LAUNCH_LEDGER=$LEDGER
LAUNCH_DEPLOYMENT=$DEPLOYMENT
LAUNCH_WANDB_API_KEY_SOURCE=secretsmanager:$WANDB_SECRET
LAUNCH_SHUTDOWN_GRACE=100s
SETTINGS
# What differs with builds: the daemon's socket, which is as good as root on this instance.
if [ "$BUILDS" = yes ]; then
  echo "LAUNCH_REGISTRY=$REGISTRY" >>/etc/launch-worker.env
  options="--volume=/var/run/docker.sock:/var/run/docker.sock --group-add=$(stat -c %g /var/run/docker.sock)"
else
  echo "LAUNCH_BUILDER=none" >>/etc/launch-worker.env
  options=
fi
cat >/etc/default/launch-worker <<SETTINGS
IMAGE=$IMAGE
REGION=$REGION
REGISTRY=$REGISTRY_TO_PULL_FROM
OPTIONS=$options
SETTINGS

# @UNIT@, @MIRROR@ and @FIREWALL@: the files beside this one; `deploy/ec2/render` puts them in.
cat >/etc/systemd/system/launch-worker.service <<'UNIT'
@UNIT@
UNIT
cat >/etc/systemd/system/launch-mirror.service <<'UNIT'
@MIRROR@
UNIT
cat >/usr/local/sbin/block-build-metadata <<'FIREWALL'
@FIREWALL@
FIREWALL
chmod 0755 /usr/local/sbin/block-build-metadata

units=launch-worker
if [ -n "$MIRROR_QUEUES" ]; then
  cat >/etc/launch-mirror.env <<SETTINGS
LAUNCH_ENTITY=$ENTITY
LAUNCH_WANDB_QUEUES=$MIRROR_QUEUES
SETTINGS
  units="launch-worker launch-mirror"
fi
systemctl daemon-reload
# Unquoted on purpose: a list.
systemctl enable --now $units

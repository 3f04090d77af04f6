#!/bin/bash
# What the jobs of your site need before anything else: a copy of this file, with the lines that apply.
#
# Sourced by slurm/train.sbatch on the first node, before modules and variables of the cluster file; what it exports reaches every
# rank. Named by `site:` in a cluster file, or by GRAFT_SITE for a bare sbatch; this very file is used when neither names one.
# Everything here is off. No keys: Slurm does not store this file, but a run's snapshot of the code does; they go into ~/.netrc.

# --- modules: where `module` is a function of login shells only, define it first
# source /etc/profile.d/modules.sh        # or lmod.sh
# module purge
# module load cuda/12.8 nccl

# --- the interpreter, if not that of who submits (a cluster file's `python:` says the same)
# export GRAFT_PYTHON=/projects/vision/venv/bin/python

# --- network between the nodes: `ip -br addr` on a compute node lists the interfaces (a cluster file's `interface:` sets both)
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export GRAFT_ADDRESS=$(hostname -I | cut -d' ' -f1)   # where the ranks meet, if Slurm's NodeAddr does not lead to the first node
# export GRAFT_MEET_WITHIN=300            # seconds the nodes wait for each other before one is called bad; 120 else
# export NCCL_IB_HCA=mlx5                 # the InfiniBand adapters to use
# export NCCL_IB_DISABLE=1                # Ethernet only: where InfiniBand is there and does not work
# export NCCL_DEBUG=INFO                  # what NCCL chose, in the log of every rank

# --- caches that all nodes see, so that weights are fetched once (`graft fetch RUN`)
# export TORCH_HOME=/projects/vision/cache/torch
# export HF_HOME=/projects/vision/cache/huggingface

# --- fast space of the node for temporary files
# export TMPDIR=/local/$SLURM_JOB_ID
# mkdir -p "$TMPDIR"

# --- containers: the image and the mounts stand in the cluster file (`container:`); what the programs themselves want stands here
# export APPTAINER_CACHEDIR=/projects/vision/cache/apptainer
# export ENROOT_CACHE_PATH=/projects/vision/cache/enroot ENROOT_DATA_PATH=/local/enroot-$USER
# export NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility   # for enroot's hook

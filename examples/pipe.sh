#!/usr/bin/env bash
# Ranked lists in a pipe: the first three entries of the first probe, then lists measured from a pipe.
set -euo pipefail
cd "$(dirname "$0")"

blurrerank run omniglot.h5 --quiet -o - --format trec | head -3

blurrerank run omniglot.h5 --quiet -o - --format trec --depth 200 |
    blurrerank eval - omniglot.h5 --format trec

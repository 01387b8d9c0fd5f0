#!/usr/bin/env bash
# Runs engine/tests/full_disk.rs on a file system of 48 MiB that it makes and takes away again. That takes root; where it
# may not be done it says so, and what a full disk does rests on the simulator (sim/tests/full_disk.rs).
set -euo pipefail
cd "$(dirname "$0")/../.."

place=$(mktemp -d)
clean() { umount "$place/disk" 2>/dev/null || true; rm -rf "$place"; }
trap clean EXIT
mkdir "$place/disk"

truncate -s 48M "$place/image"
if ! mkfs.ext4 -q "$place/image" || ! mount -o loop "$place/image" "$place/disk" 2>"$place/why"; then
  echo "skipped: no file system can be mounted here: $(cat "$place/why" 2>/dev/null || echo 'mkfs.ext4 failed')"
  exit 0
fi
DORMOUSE_SMALL_DIR=$place/disk cargo test --quiet -p dormouse-engine --test full_disk -- --nocapture

#!/bin/sh
# mount.sh DRIVER_ROOT [PREFIX]: lays a simulated driver's /proc and /sys over those below PREFIX, in this mount namespace.
#
# For programs that look for what the kernel shows of a driver at its fixed paths, whatever root the driver's own files
# have: NVIDIA's own do. Nothing happens for a node without GPUs, nor the second time.
set -eu
DRIVER_ROOT="$1" PREFIX="${2:-}"

[ -d "$DRIVER_ROOT/proc/driver" ] || exit 0
! mountpoint --quiet "$PREFIX/proc/driver" || exit 0
mount --bind "$DRIVER_ROOT/proc/devices" "$PREFIX/proc/devices"
mount -t overlay -o "ro,lowerdir=$DRIVER_ROOT/sys/devices:$PREFIX/sys/devices" devices "$PREFIX/sys/devices"
mount --bind "$DRIVER_ROOT/sys/bus/pci/devices" "$PREFIX/sys/bus/pci/devices"
mount --bind "$DRIVER_ROOT/proc/driver" "$PREFIX/proc/driver" # last: it says that all is done

#!/bin/sh
# The first process of the virtual machine of vm.py.  Its root is the host's, read-only.  Each
# NAME=value of the kernel's command line is a variable here: OUT is the host's directory where
# the command is and the results go.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
mkdir -p /dev/pts /dev/shm /run/out
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t hostfs -o "$OUT" none /run/out
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up

# Ours is a leaf.  The kernel's own threads stay in the root: those with real-time priority
# would make "+cpu" fail below it.
mkdir /sys/fs/cgroup/init
echo 1 >/sys/fs/cgroup/init/cgroup.procs
echo '+cpu +memory +pids' >/sys/fs/cgroup/cgroup.subtree_control

export HOME=/run TMPDIR=/run
sh /run/out/command >/run/out/log 2>&1
echo $? >/run/out/status
sync
echo o >/proc/sysrq-trigger
sleep 60 # the power is off before; the first process must not end

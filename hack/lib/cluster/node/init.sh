#!/usr/bin/env bash
# init.sh FOLDER NODE ROOT CACHE ARCHIVE...: boots a node, as process 1 of its own namespaces.
#
# The node's root is a new tree: the machine's programs, and its own /etc, /var, /dev, /run, /proc and /sys.
# So nothing that runs in a node can write where another node or the machine would see it.
set -eu
shopt -s dotglob nullglob
FOLDER="$1" NODE="$2" ROOT="$3" CACHE="$4"
shift 4
SCRIPTS="$(dirname "${BASH_SOURCE[0]}")"

# cgroup mounts as the machine has them, read before /sys is covered: "folder options" in each line.
CGROUPS="$(awk '$3 == "cgroup" || ($3 == "cgroup2" && $2 == "/sys/fs/cgroup") {print $3, $2, $4}' /proc/mounts)"

NEW=/sys # a place that every machine has and that hides nothing which is needed here
mount -t tmpfs -o mode=755 node "$NEW"

for entry in /*; do
    case "$entry" in /proc | /sys | /dev | /run | /etc | /var | /tmp | /lost+found) continue ;; esac
    if [[ -L "$entry" ]]; then
        cp -a "$entry" "$NEW$entry"
    elif [[ -d "$entry" ]]; then
        mkdir "$NEW$entry"
        mount --rbind "$entry" "$NEW$entry"
    fi
done

mkdir "$NEW"/{proc,sys,dev,run,etc,var,tmp}
mount --bind "$FOLDER/etc" "$NEW/etc"
mount --bind "$FOLDER/var" "$NEW/var"
mount -t tmpfs -o mode=1777 tmp "$NEW/tmp"
mount -t tmpfs -o mode=755 run "$NEW/run"
mkdir -p "$NEW/run/"{partita,lock,nvidia/driver}
mount --bind "$FOLDER/driver" "$NEW/run/nvidia/driver"
# A checkout or cache under /tmp or /var is still seen by the name that it has on the machine.
for shown in "$ROOT" "$CACHE" "$FOLDER"; do
    [[ -d "$NEW$shown" ]] || { mkdir -p "$NEW$shown" && mount --rbind "$shown" "$NEW$shown"; }
done

mount -t proc proc "$NEW/proc"
mount --bind "$FOLDER/boot_id" "$NEW/proc/sys/kernel/random/boot_id"

mount -t tmpfs -o mode=755 dev "$NEW/dev"
while read -r name major minor; do
    mknod -m 666 "$NEW/dev/$name" c "$major" "$minor"
done <<'DEVICES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
kmsg 1 11
fuse 10 229
DEVICES
mkdir "$NEW"/dev/{pts,shm,mqueue}
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$NEW/dev/pts"
mount -t tmpfs -o mode=1777 shm "$NEW/dev/shm"
ln -s pts/ptmx "$NEW/dev/ptmx"
ln -s /proc/self/fd "$NEW/dev/fd"
ln -s fd/0 "$NEW/dev/stdin"
ln -s fd/1 "$NEW/dev/stdout"
ln -s fd/2 "$NEW/dev/stderr"

mount -t sysfs sysfs "$NEW/sys"
[[ ! -d "$FOLDER/driver/proc/driver" ]] || "$FOLDER/driver/usr/bin/nvidia-simulator-mount" "$FOLDER/driver" "$NEW"
if [[ "$CGROUPS" == cgroup2\ /sys/fs/cgroup\ * ]]; then
    mount -t cgroup2 cgroup2 "$NEW/sys/fs/cgroup"
    # A group that hands controllers down may hold no process itself.
    mkdir -p "$NEW/sys/fs/cgroup/init"
    for pid in $(<"$NEW/sys/fs/cgroup/cgroup.procs"); do
        echo "$pid" >"$NEW/sys/fs/cgroup/init/cgroup.procs" || true # it may have ended
    done
    for controller in $(<"$NEW/sys/fs/cgroup/cgroup.controllers"); do
        echo "+$controller" >"$NEW/sys/fs/cgroup/cgroup.subtree_control"
    done
else
    mount -t tmpfs -o mode=755 cgroup "$NEW/sys/fs/cgroup"
    while read -r _ folder options; do
        # Options of the mount itself (rw, relatime) are no controllers.
        controllers="$(tr , '\n' <<<"$options" | grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime|noatime|xattr|clone_children|release_agent=.*)$' | paste -sd,)"
        [[ "$controllers" != name=* ]] || controllers="none,$controllers"
        mkdir "$NEW$folder"
        mount -t cgroup -o "$controllers" cgroup "$NEW$folder"
        IFS=, read -ra names <<<"$controllers"
        for name in "${names[@]}"; do
            [[ "$name" == none || "$name" == name=* || -e "$NEW/sys/fs/cgroup/$name" ]] || ln -s "$(basename "$folder")" "$NEW/sys/fs/cgroup/$name"
        done
    done <<<"$CGROUPS"
fi

cd "$NEW"
mkdir .machine
pivot_root . .machine
cd /
umount -l /.machine
rmdir /.machine
mount --make-rshared /
echo "$NODE" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward

bash "$SCRIPTS/service.sh" start containerd
for archive in "$@"; do
    bash "$SCRIPTS/service.sh" import "$archive"
done
bash "$SCRIPTS/service.sh" start kubelet
bash "$SCRIPTS/service.sh" start kube-proxy
[[ ! -e /etc/kubernetes/kube-router.kubeconfig ]] || bash "$SCRIPTS/service.sh" start kube-router
cp "$FOLDER/boot_id" "$FOLDER/booted"

while :; do # bash reaps the orphans that come to process 1
    sleep 3600 &
    wait $! || true
done

#!/bin/bash
# Builds cowfs and shows it at work: one golden ext4 image, two machines, a private disk for each.
# Every command is printed before it runs, and what it promises is checked, not just shown.
# Run as root on Debian 12. Works in a directory of its own, and takes everything away again at the end,
# also when it fails or is interrupted.

set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
source_root=$PWD
export PATH=$source_root/build/cmd:$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
# shellcheck source=tests/packages.sh
. tests/packages.sh

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

# say TEXT: an explanation, set apart from commands and their output.
say() { printf '\n%s\n' "$*"; }

# run COMMAND-LINE: prints the line as one would type it, then runs it in this shell.
run() {
  printf '%s$ %s%s\n' "$bold" "$1" "$plain"
  eval "$1"
}

fail() {
  printf '\nquickstart: FAILED: %s\n' "$*" >&2
  exit 1
}

case ${1:-} in
  '') ;;
  -h | --help)
    echo "usage: sudo ./quickstart.sh"
    echo "Installs what the build needs, builds, and shows cowfs at work on two machines' disks."
    exit 0
    ;;
  *)
    echo "quickstart: it takes no arguments (--help tells what it does)" >&2
    exit 2
    ;;
esac
((EUID == 0)) || fail "mounting and loop devices need root: run it with sudo"

# What is ours is known by one thing: it lies in $work, which nobody else knows of.
work=''

# The pids of cowfs servers that still hold a file of $work open.
our_servers() {
  local pid
  find /proc/[0-9]*/fd -maxdepth 1 -lname "$work/*" 2>/dev/null | cut -d/ -f3 | sort -u |
    while read -r pid; do
      [[ $(readlink "/proc/$pid/exe") == "$source_root"/build/cmd/cowfs* ]] && echo "$pid"
    done
}

# Waits up to 10 s until no server is left; non-zero when one still is.
servers_ended() {
  local deadline=$((SECONDS + 10))
  while [[ -n $(our_servers) ]]; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

mounts_under_work() { awk -v dir="$work/" 'index($2, dir) == 1 { print $2, $3 }' /proc/self/mounts | tac; }

loops_of_work() {
  losetup --list --noheadings --raw --output NAME,BACK-FILE |
    awk -v dir="$work/" 'index($2, dir) == 1 { print $1 }'
}

# Undoes everything in the opposite order: what is on the loop devices, these, the cowfs mount, its server, the files.
cleanup() {
  local status=$? target type device
  set +e
  trap '' INT TERM HUP PIPE
  if [[ -n $work ]]; then
    cd /
    while read -r target type; do
      [[ $type == fuse* ]] || umount "$target" || umount --lazy "$target"
    done < <(mounts_under_work)
    for device in $(loops_of_work); do losetup --detach "$device"; done
    while read -r target type; do
      timeout 60 cowfs umount "$target" || umount --lazy "$target"
    done < <(mounts_under_work)
    if ! servers_ended; then
      # shellcheck disable=SC2046
      kill -TERM $(our_servers)
      # shellcheck disable=SC2046
      servers_ended || kill -KILL $(our_servers)
    fi
    if [[ -n $(mounts_under_work) || -n $(loops_of_work) ]]; then
      echo "quickstart: something is still in use, so $work is left:" >&2
      mounts_under_work >&2
      loops_of_work >&2
      ((status)) || status=1
    else
      rm -rf --one-file-system "$work"
    fi
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

say "== Build =="
ensure_packages "${build_packages[@]}" "${run_packages[@]}"
[[ -f build/build.ninja ]] || run 'meson setup build'
run 'ninja -C build cmd/cowfs'

[[ -c /dev/fuse ]] || modprobe fuse || fail "there is no /dev/fuse on this machine"
[[ -c /dev/loop-control ]] || modprobe loop || fail "there are no loop devices on this machine"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/cowfs-quickstart.XXXXXX")
work=$(readlink -f "$work")
cd "$work"

say "== A base ==
The base is the golden image that all machines start from.
Ours is an ext4 file system of 1 GiB with a real tree in it."
# The tree has to fit: all of /usr/share where it is not too large, else the largest part of it that is not.
tree=/usr/share
limit_kib=$((600 * 1024))
if (($(du -skx "$tree" | cut -f1) > limit_kib)); then
  tree=$(du -skx "$tree"/*/ | sort -n | awk -v limit="$limit_kib" '$1 <= limit { $1 = ""; dir = $0 } END { print dir }')
  tree=${tree# }
  tree=${tree%/}
fi
run 'truncate -s 1G base.img'
run "mkfs.ext4 -q -i 4096 -d $tree base.img"
run 'sha256sum base.img | tee base.sha256'

say "== Mount it, and give two machines a disk each =="
run 'mkdir vms dom1 dom2'
run 'cowfs mount base.img vms'
say "A new file in the mount is an image of the base, made at once and without copying."
run 'touch vms/dom1.img'
run 'cowfs create vms/dom2.img'
run 'ls -ls vms'

say "An image is a raw disk to whoever uses it. Here loop devices do; QEMU and Xen take the file itself."
# \$loop1 and the like are for the eval in run: the line reads as one would type it.
# shellcheck disable=SC2016
attach_and_mount() {
  run 'loop1=$(losetup --find --show vms/dom1.img); echo $loop1'
  run 'loop2=$(losetup --find --show vms/dom2.img); echo $loop2'
  run 'mount $loop1 dom1'
  run 'mount $loop2 dom2'
}
# shellcheck disable=SC2016
unmount_and_detach() {
  run 'umount dom1 dom2'
  run 'losetup --detach $loop1 $loop2'
}
attach_and_mount

say "Both hold what the base holds. Now each goes its own way."
# Two text files of the base: one that both will change, and one that only dom1 removes.
samples=()
while read -r file; do
  if grep -qI . "dom1/$file" && [[ -z $(tail -c 1 "dom1/$file") ]]; then samples+=("$file"); fi
  ((${#samples[@]} < 2)) || break
done < <(cd dom1 && find . -xdev -type f -size +3 -size -200 -printf '%P\n' | grep '^[A-Za-z0-9/._-]*$' | sort)
((${#samples[@]} == 2)) || fail "$tree holds too few files for this demonstration"
changed=${samples[0]}
removed=${samples[1]}
run "echo 'I am the first'  > dom1/machine"
run "echo 'I am the second' > dom2/machine"
run "echo 'changed by dom1' >> dom1/$changed"
run "echo 'changed by dom2' > dom2/$changed"
run "rm dom1/$removed"
run 'head -c 20M /dev/urandom > dom2/data; sha256sum < dom2/data > dom2.sha256'

say "cowfs knows who uses an image, and what it has of its own once the machine has flushed it."
run 'sync --file-system dom1 dom2'
run 'cowfs ls vms'

say "== Take everything away, and mount again =="
unmount_and_detach
run 'cowfs umount vms'
say "All is on disk now: the base, and beside it its store with a copy-on-write file for each machine."
run 'ls -ls . base.img.cowfs/layers'
run 'cowfs mount base.img vms'

say "== What was promised =="
say "The base is what it was:"
run 'sha256sum --check base.sha256' || fail "the base has changed"

say "The file systems are clean:"
run 'e2fsck -fn vms/dom1.img' || fail "e2fsck found damage on dom1"
run 'e2fsck -fn vms/dom2.img' || fail "e2fsck found damage on dom2"

say "Each machine sees its own changes, and not the other's:"
attach_and_mount
run 'cat dom1/machine dom2/machine'
[[ $(<dom1/machine) == 'I am the first' ]] || fail "dom1 lost its own file"
[[ $(<dom2/machine) == 'I am the second' ]] || fail "dom2 lost its own file"
run "tail -n 1 dom1/$changed dom2/$changed"
[[ $(tail -n 1 "dom1/$changed") == 'changed by dom1' ]] || fail "dom1 lost its change to $changed"
[[ $(<"dom2/$changed") == 'changed by dom2' ]] || fail "dom2 lost its change to $changed"
(($(stat -c %s "dom1/$changed") > 1024)) || fail "dom1 lost the base's part of $changed"
run "ls -l dom2/$removed" || fail "dom2 lost a file that only dom1 removed"
[[ ! -e dom1/$removed ]] || fail "dom1 has a file again that it removed"
run 'ls -l dom2/data; sha256sum --check dom2.sha256 < dom2/data' || fail "dom2's data differ"
[[ ! -e dom1/data ]] || fail "dom1 sees a file of dom2"
cmp "dom2/$removed" "$tree/$removed" || fail "dom2 does not show the base's $removed"
unmount_and_detach

say "And how little space each took:"
run 'cowfs ls vms'
base_bytes=$(stat -c %s base.img)
for name in dom1 dom2; do
  own_bytes=$(($(stat -c %b "vms/$name.img") * 512))
  ((own_bytes > 0)) || fail "$name.img takes no space, though it was changed"
  ((own_bytes < base_bytes / 8)) || fail "$name.img takes $own_bytes bytes, which is not little"
done
run 'cowfs umount vms'
sha256sum --status --check base.sha256 || fail "the base has changed"

say "quickstart: it worked: the base is unchanged, and both machines have their own changes."

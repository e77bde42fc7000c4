# The Debian packages that cowfs needs, in one place; sourced by quickstart.sh and test.sh.
# shellcheck shell=bash

# To build (the default configuration builds the tests too, so GoogleTest is among them).
build_packages=(
  g++ meson ninja-build pkgconf
  libfuse3-dev libsqlite3-dev libspdlog-dev libxxhash-dev libdeflate-dev zlib1g-dev libzstd-dev nlohmann-json3-dev libcli11-dev libgtest-dev
)

# To run: mount, losetup, mkfs.ext4 and e2fsck.
run_packages=(fuse3 mount util-linux e2fsprogs)

# To check the code and to run every test.
test_packages=(
  clang-format clang-tidy mandoc python3
  fio xfsprogs btrfs-progs rsync tar qemu-utils attr procps
)

# ensure_packages NAME...: installs those that are not installed; the package lists are fetched only then.
# Quiet unless it fails. Returns non-zero, with apt's own words on stderr, if a package is not to be had.
ensure_packages() {
  local name log missing=()
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0

  if ((EUID != 0)); then
    echo "packages are missing and only root can install them: ${missing[*]}" >&2
    return 1
  fi
  echo "Installing ${missing[*]}"
  log=$(mktemp)
  if ! {
    apt-get -qq update &&
      DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}"
  } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    echo "apt-get could not install: ${missing[*]}" >&2
    return 1
  fi
  rm -f "$log"
}

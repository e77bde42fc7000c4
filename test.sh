#!/bin/bash
# Builds cowfs, checks its sources and runs every test; `./test.sh --help` tells the switches.
# The last line is `N passed, N failed, N skipped` over all single test cases. A check or a build that fails
# counts as one failed. Exit status 0 only if nothing failed. With CI=true no skip is expected: one counts as failed.

set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")" || exit 1
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
# shellcheck source=tests/packages.sh
. tests/packages.sh

usage() {
  cat <<'END'
usage: ./test.sh [--quick] [--suite NAME]...

Installs what is missing (root), builds, checks format, lint and man pages, and runs every test suite; then the
unit tests of store/ and fs/ again under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer;
what fuzzing has found before (tests/fuzz) under the former as well.

  --quick        neither clang-tidy nor sanitizers
  --suite NAME   only this suite of the normal build, and no checks; NAME-asan and NAME-tsan name a suite
                 under sanitizers; may be given several times
  --help         this text

Builds are kept in build/, build-asan/ and build-tsan/. Tests that mount need root.
END
}

quick=false
wanted=()
while (($#)); do
  case $1 in
    --quick) quick=true ;;
    --suite)
      [[ -n ${2:-} ]] || { usage >&2; exit 2; }
      wanted+=("$2")
      shift
      ;;
    --suite=?*) wanted+=("${1#*=}") ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

# What each step came to: "name passed failed skipped seconds", and the names of all that failed.
results=()
failures=()
passed=0 failed=0 skipped=0

title() { printf '\n== %s\n' "$*"; }

# record NAME PASSED FAILED SKIPPED SECONDS
record() {
  results+=("$(printf '  %-12s %5d passed %5d failed %5d skipped %5d s' "$@")")
  ((passed += $2, failed += $3, skipped += $4))
}

# check NAME COMMAND...: a step that is no test: it counts only when it fails.
check() {
  local name=$1 start=$SECONDS
  shift
  title "$name"
  if "$@"; then
    results+=("$(printf '  %-12s ok %51d s' "$name" $((SECONDS - start)))")
  else
    record "$name" 0 1 0 $((SECONDS - start))
    failures+=("$name")
    return 1
  fi
}

# finish: the closing lines, and the exit status. Also when the script is interrupted, as far as it came.
finish() {
  local text
  title "results"
  ((${#results[@]} == 0)) || printf '%s\n' "${results[@]}"
  if ((${#failures[@]})); then
    printf '\nfailed:\n'
    for text in "${failures[@]}"; do printf '  %s\n' "$text"; done
  fi
  if ((passed + failed == 0)); then
    echo "no test ran"
    failed=1
  fi
  printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  ((failed == 0))
}

# clang-tidy takes as long as all suites, which wait much of the time: it runs beside them, with the processor time that
# they leave.
tidy=
tidy_beside() {
  local start=$SECONDS
  # Where the kernel groups sessions, a process is nice within its own only.
  [[ ! -w /proc/self/autogroup ]] || echo 19 >/proc/self/autogroup
  check_tidy >build/tidy.log 2>&1
  echo "$? $((SECONDS - start))" >build/tidy.result
}
start_tidy() {
  rm -f build/tidy.result
  export -f tidy_beside check_tidy
  # A session of its own, to be ended as a whole.
  setsid chrt --idle 0 bash -c tidy_beside </dev/null >/dev/null 2>&1 &
  tidy=$!
}
end_tidy() {
  [[ -z $tidy ]] || kill -- -"$tidy" 2>/dev/null
  tidy=
}
# Waits for it, and counts it as `check` does.
finish_tidy() {
  local status seconds
  title tidy
  wait "$tidy"
  tidy=
  cat build/tidy.log
  read -r status seconds <build/tidy.result || status=1 seconds=0
  if ((status == 0)); then
    results+=("$(printf '  %-12s ok %51d s, beside others' tidy "$seconds")")
  else
    record tidy 0 1 0 "$seconds"
    failures+=(tidy)
  fi
}

interrupted() {
  end_tidy
  failures+=("interrupted")
  ((failed += 1))
  finish
  exit "$1"
}
trap end_tidy EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

# set_up DIR OPTION...: a build directory with these options; an existing one is taken as it is.
set_up() {
  [[ -f $1/build.ninja ]] || meson setup "$@" >"$1.log" 2>&1 || {
    cat "$1.log"
    return 1
  }
  rm -f "$1.log"
}

# Line numbers are all that a report needs, and take a fifth less of the time.
lines_only=-Dcpp_args=-g1
# For builds that nobody goes on from: headers are read once for many files.
sanitizer_options=("$lines_only" --unity on --unity-size 16)
build_normal() {
  local options=()
  [[ ${CI:-} == true ]] && options+=("$lines_only")
  set_up build "${options[@]}" && ninja -C build
}

suites_of() {
  meson introspect --tests "$1" | python3 -c '
import json, sys
print(*sorted({suite.split(":")[-1] for test in json.load(sys.stdin) for suite in test["suite"]}), sep="\n")'
}

# wants NAME...: whether one of these suites is to run; all are, where none was named.
wants() {
  local name
  ((${#wanted[@]})) || return 0
  for name in "$@"; do [[ " ${wanted[*]} " == *" $name "* ]] && return 0; done
  return 1
}

# run_suite NAME DIR SUITE [WRAPPER...]: builds what the suite needs, runs it, counts its cases.
run_suite() {
  local name=$1 dir=$2 suite=$3 log counts numbers options=()
  shift 3
  wants "$name" || return 0
  title "suite $name"
  log=$dir/meson-logs/$name.json
  rm -f "$log"
  # Sanitizers and busy machines are slow; a test that hangs still ends.
  [[ $dir == build ]] && options+=(--timeout-multiplier 2) || options+=(--timeout-multiplier 5)
  "$@" meson test -C "$dir" --suite "$suite" --logbase "$name" "${options[@]}" </dev/null
  if [[ ! -f $log ]]; then
    record "$name" 0 1 0 0
    failures+=("$name: the suite does not build")
    return 1
  fi
  options=()
  [[ ${CI:-} == true ]] && options+=(--skips-fail)
  counts=$(python3 tests/results.py "${options[@]}" "$log") || counts=$'0 1 0 0\nits results cannot be read'
  read -ra numbers <<<"${counts%%$'\n'*}"
  record "$name" "${numbers[@]}"
  while read -r case; do
    [[ -z $case ]] || failures+=("$name: $case")
  done <<<"$(tail -n +2 <<<"$counts")"
}

sources() { find fs store cmd tests -name '*.cc' -o -name '*.h'; }
check_format() { sources | sort | xargs clang-format --dry-run -Werror; }
check_man() { mandoc -T lint -W warning man/*.[1-8]; }
check_tidy() { python3 tests/tidy.py build; }

# g++ 12's ThreadSanitizer does not start where the kernel spreads mappings over more than 28 bits.
fixed_addresses() {
  if setarch -R true 2>/dev/null; then setarch -R "$@"; else "$@"; fi
}

if ! ensure_packages "${build_packages[@]}" "${run_packages[@]}" "${test_packages[@]}"; then
  record packages 0 1 0 0
  failures+=("packages")
  finish
  exit 1
fi
# A clone in another directory finds what was compiled before.
export CCACHE_NOHASHDIR=1

check build build_normal && built=true || built=false
if ((${#wanted[@]} == 0)); then
  check format check_format
  check man-lint check_man
  if $built && ! $quick; then start_tidy; fi
fi
if $built; then
  for suite in $(suites_of build); do run_suite "$suite" build "$suite"; done
fi
# Warnings are the normal build's business: the sanitizers' code makes g++ see some that are not there.
if $built && ! $quick && wants store-asan fs-asan fuzz-asan; then
  export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  check build-asan set_up build-asan "${sanitizer_options[@]}" -Doptimization=0 -Db_sanitize=address,undefined -Dwerror=false &&
    for suite in store fs fuzz; do run_suite "$suite-asan" build-asan "$suite"; done
fi
if $built && ! $quick && wants store-tsan fs-tsan; then
  export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
  check build-tsan set_up build-tsan "${sanitizer_options[@]}" -Doptimization=1 -Db_sanitize=thread -Dwerror=false &&
    for suite in store fs; do run_suite "$suite-tsan" build-tsan "$suite" fixed_addresses; done
fi
[[ -z $tidy ]] || finish_tidy
finish

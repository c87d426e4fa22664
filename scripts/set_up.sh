#!/usr/bin/env bash
# Brings .venv up to a layer: runtime < test < tools < env. Called by the Makefile; silent when nothing is to be done.
#
#   runtime  torch and what `radistill` needs        tools  + linter, types, build, pre-commit
#   test     + pytest                                env    + docs, trl and lm-eval
#
# torch comes first and by itself: asked for by another package, pip would take a build with gigabytes of CUDA
# libraries where a CPU build is at hand. Variables, all optional: PYTHON (which interpreter), TORCH_INDEX (where torch
# is taken from). Written for bash 3.2, which is what macOS has.
set -eu

venv=.venv
ready=$venv/.ready           # written last: level, folder, index of torch; older than the pins = out of date
installing=$venv/.installing # holds a process id while .venv is being changed; left over = interrupted

say() { printf 'set-up: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

case ${1:-} in
  runtime) level=1 ;; test) level=2 ;; tools) level=3 ;; env) level=4 ;;
  *) die "usage: scripts/set_up.sh runtime|test|tools|env" ;;
esac
cd "$(dirname "$0")/.."

have=0 made_in='' made_from=''
if [ -f "$ready" ]; then { read -r have; read -r made_in; read -r made_from; } <"$ready" || true; fi

at_work() { # is process $1 a set-up? The number may be another program's by now, or a dead one's.
  if command -v ps >/dev/null 2>&1; then ps -o args= -p "$1" | grep -q set_up; else kill -0 "$1" 2>/dev/null; fi
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

why_anew() { # prints why .venv cannot be kept; nothing when it can
  [ -e "$venv" ] || return 0
  if [ -e "$installing" ]; then
    echo "the last set-up was interrupted"
  elif [ ! -x "$venv/bin/python" ]; then
    echo "it has no working Python"
  elif [ -n "$made_in" ] && [ "$made_in" != "$PWD" ]; then
    # A virtual environment holds absolute paths: after a move it would run the other folder's code.
    echo "it was made for $made_in"
  elif [ -n "${TORCH_INDEX:-}" ] && [ -f "$ready" ] && [ "$made_from" != "$TORCH_INDEX" ]; then
    echo "its torch comes from ${made_from:-the default index}"
  elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of "$venv/bin/python")" ]; then
    echo "it has Python $(version_of "$venv/bin/python")"
  fi
}

check_python() {
  command -v "$1" >/dev/null 2>&1 ||
    die "there is no '$1' here. Install Python 3.11 or newer, or name one: make demo PYTHON=python3.12"
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "'$1' is $("$1" --version 2>&1), but 3.11 or newer is needed. Name one: make demo PYTHON=python3.12"
  "$1" -c 'import venv, ensurepip' 2>/dev/null ||
    die "'$1' cannot make virtual environments (no venv or ensurepip). On Debian or Ubuntu: apt install python3-venv"
}

pip_install() {
  local status=0
  # -qq: the pins say what is installed, and pip's warnings about local indexes would bury an error.
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@" || status=$?
  [ "$status" -ne 0 ] || return 0
  # A pip that failed by itself has undone what it began, so what was there before is still good. A pip that was
  # killed has not: the mark stays and the next set-up starts anew.
  if [ "$status" -ge 128 ]; then die "pip was killed; the same command begins anew"; fi
  rm -f "$installing"
  die "this failed: pip install $*   Mend what pip says above and run the same command again; nothing else is needed"
}

if [ -n "${PYTHON:-}" ]; then check_python "$PYTHON"; fi
anew=$(why_anew)
if [ -z "$anew" ] && [ "$have" -ge "$level" ] &&
  [ ! pyproject.toml -nt "$ready" ] && [ ! constraints.txt -nt "$ready" ]; then
  exit 0
fi

if [ -e "$installing" ]; then
  other=$(cat "$installing")
  if [ -n "$other" ] && at_work "$other"; then
    die "process $other is installing into $venv: wait for it, or stop it and rm -rf $venv"
  fi
fi
index=${TORCH_INDEX:-$made_from}
if [ -n "$anew" ]; then
  say "making $venv anew: $anew"
  rm -rf "$venv"
  have=0
fi
[ -e "$venv" ] || check_python "${PYTHON:-python3}"
# What was installed above the wanted layer is renewed with it, or it would keep versions that no longer fit.
if [ "$have" -gt "$level" ]; then level=$have; fi
case $level in 1) extras='' ;; 2) extras='[test]' ;; 3) extras='[dev]' ;; 4) extras='[dev,docs,bench]' ;; esac
torch=$(grep -i '^torch==' constraints.txt) || die "constraints.txt names no version of torch"

mkdir -p "$venv"
trap 'say "interrupted; the same command begins anew"; exit 130' INT TERM HUP
(set -C && echo $$ >"$installing") 2>/dev/null || die "another set-up has just begun: wait for it"
if [ ! -x "$venv/bin/python" ]; then
  say "$venv with $("${PYTHON:-python3}" --version 2>&1)"
  "${PYTHON:-python3}" -m venv "$venv"
fi
say "$torch${index:+ from $index}"
if [ -n "$index" ]; then pip_install --index-url "$index" "$torch"; else pip_install -c constraints.txt "$torch"; fi
say "radistill$extras (one to three minutes the first time)"
pip_install -c constraints.txt -e ".$extras"
printf '%s\n' "$level" "$PWD" "$index" >"$ready"
rm -f "$installing"

#!/bin/bash
# Runs in the virtual machine as root; see `run`. One pytest for each kind of user; fails if one of them fails.
mkdir /tmp/memsup-tests && cp -r ./* /tmp/memsup-tests && cd /tmp/memsup-tests || exit 1
chmod -R a+rX .
export PYTHONPATH=$PWD:$PWD/site PYTHONDONTWRITEBYTECODE=1 TEST_BUDGET_S=600
if [ $# = 0 ]; then
  set -- tests/supervisor/fence/test_fence_cgroups.py tests/supervisor/fence/test_fence_choice.py tests/supervisor/fence/test_fence_rlimit.py tests/supervisor/kernel/test_children.py \
    tests/supervisor/kernel/test_deadman.py tests/supervisor/daemon/test_self_protection.py
fi
# Emulated, so patience is stretched.
tests=(python3 -m pytest -q --color=no -p no:cacheprovider --rootdir "$PWD" -c pyproject.toml --timeout=600 --durations=8 "$@")
failed=0
echo "== root"
"${tests[@]}" || failed=1
echo "== an ordinary user"
asuser env -C "$PWD" PYTHONPATH="$PYTHONPATH" TEST_BUDGET_S="$TEST_BUDGET_S" "${tests[@]}" || failed=1
echo "== an ordinary user's service, which has a delegated cgroup"
asuser systemd-run --user --quiet --pipe --wait --collect -p WorkingDirectory="$PWD" -E PYTHONPATH="$PYTHONPATH" -E TEST_BUDGET_S="$TEST_BUDGET_S" "${tests[@]}" || failed=1
exit $failed

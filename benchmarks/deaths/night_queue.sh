#!/bin/bash
# In the VM, as root, at each of its two boots; see night_queue.py. Everything about memsup is done as the ordinary user `lab`.
. /lab/job/as_lab.sh

state_root=$home/.local/state/memsup

# A command that is not attached, and ends with the exit code that a file says.
begin() {
    local run=$1; shift
    memsup start --run "$run" "$@" -- sh -c "echo begun >> $home/$run.log; until [ -e $home/$run.end ]; do date +%s%N > $home/$run.beat; sleep 0.5; done; exit \$(cat $home/$run.end)" > /dev/null
}
end_with() { echo "$2" > $home/"$1".new; mv $home/"$1".new $home/"$1".end; }

# Asked of status.json, which is written with each new state: a Python for each look would take all that an emulated machine has.
seen() { grep -qE -- "$2" "$state_root/$1/status.json"; }
number() { grep -oE "\"$2\":[0-9]+" "$state_root/$1/status.json" | head -1 | cut -d: -f2; }
in_state() { seen "$1" "\"state\":\"$2\""; }
waits() { in_state "$1" waiting && seen "$1" "\"runs\":\[$2\]"; }
begun() { [ "$(cat $home/"$1".log 2> /dev/null | wc -l)" = "$2" ]; }
runs_again() { in_state "$1" running && begun "$1" "$2" && beats "$1"; }
fails_for() { in_state "$1" failed && seen "$1" "$2"; }
rests_until() { in_state e paused && seen e "\"what\":\"paused until $1, by its hours"; }
rests_anew() { [ "$(number e pid)" != "$1" ] && rests_until "$2"; }
waits_anew() { [ "$(number e pid)" != "$1" ] && in_state e waiting; }
saved() { in_state e paused && seen e '"worker_pid":null' && seen e '"verified":true'; }
is_beyond() { in_state e running && [ "$(number e step)" -gt "$1" ]; }
before_seven() { [ "$(date +%H%M)" -lt 0700 ]; }
killed() { kill -9 "$(number "$1" pid)"; }   # before the reboot no unit has begun it, so a person starts it again
shows() { date -s "$1" > /dev/null; }

install_unpacked() {
    mkdir -p $keep; chmod -R a+rX /lab
    asuser python3 -m venv --system-site-packages --without-pip $home/venv
    asuser cp -r /lab/job/site/. $home/venv/lib/python3.*/site-packages/
    printf '#!%s\nimport sys\nfrom memsup.supervisor.cli import main\nsys.exit(main())\n' $home/venv/bin/python > $home/venv/bin/memsup
    chmod 755 $home/venv/bin/memsup
}

first_boot() {
    install_unpacked
    shows "2026-11-29 12:00:00"
    cat > $home/loop.py <<'PYTHON'
import json, os, sys, time
import memsup

counted = {"steps": 0}

def save(folder):
    with open(os.path.join(folder, "counted.json"), "w") as file:
        json.dump(counted, file)

def load(folder):
    with open(os.path.join(folder, "counted.json")) as file:
        counted.update(json.load(file))

with open(sys.argv[1] + ".log", "a") as log:
    log.write("begun\n")
run = memsup.guard(save=save, load=load)
for _ in run.steps(list(range(1000)), epochs=100):
    counted["steps"] += 1
    time.sleep(0.2)
    if os.path.exists(sys.argv[1] + ".end"):
        break
run.finish()
PYTHON
    begin a
    begin b --after a
    begin c --after b
    begin d --after-ok b
    memsup start --run e --after all --not-before 23:00 --until 07:00 -- $home/venv/bin/python $home/loop.py $home/e > /dev/null
    for run in c e; do memsup service install --run $run > /dev/null; done   # the others are over before the reboot
    within 120 "five runs: the first runs" runs_again a 1
    within 20 "four wait, each for its own" waits e '"a","b","c","d"'
    killed a; memsup start --run a > /dev/null
    within 180 "kill 1, of the first one's supervisor: once it is started, its command is begun again" runs_again a 2
    within 20 "and the second still waits" in_state b waiting
    local pid; pid=$(number e pid); killed e; memsup start --run e > /dev/null
    within 180 "kill 2, of the last one's supervisor: once it is started, it waits on" waits_anew "$pid"
    end_with a 0
    within 120 "the first has finished, and the second runs" runs_again b 1
    end_with b 3
    within 120 "the second fails" in_state b failed
    within 60 "the fourth, which was to come only after a good end, fails and says of which" fails_for d "only if run 'b' finished, and that one failed"
    within 10 "and has not begun" begun d 0
    within 120 "the third runs" runs_again c 1
    systemctl reboot
    sleep 600
}

second_boot() {
    shows "2026-11-29 12:30:00"
    within 240 "after a reboot, without a login, the third runs again" runs_again c 2
    within 120 "and the last one waits for it" waits e '"c"'
    killed c
    within 180 "kill 3, of the third one's supervisor: its unit begins it again, and its command" runs_again c 3
    end_with c 0
    within 120 "the third has finished; it is 12:30, so the last one rests until its hours begin" rests_until "Sun 23:00"
    within 10 "and has not begun" begun e 0
    shows "2026-11-29 22:59:55"
    within 180 "the clock shows 23:00, and it begins by itself" is_beyond 3
    shows "2026-11-30 06:57:30"
    within 60 "the clock shows 6:57:30: it is saved, and its worker gone" saved
    within 1 "before 7:00" before_seven
    local was; was=$(number e step)
    local pid; pid=$(number e pid); killed e
    within 180 "its supervisor is killed in the day: its unit begins it again, and it rests on" rests_anew "$pid" "Mon 23:00"
    shows "2026-11-30 23:00:01"
    within 180 "the clock shows 23:00 of the next day: it goes on behind step $was, where it was saved" is_beyond "$was"
    within 5 "in a second life" begun e 2
    end_with e 0
    within 60 "it finishes" in_state e finished
    for run in a c; do within 5 "as has run $run" in_state $run finished; done
    for run in b d; do within 5 "and as run $run failed before the reboot" in_state $run failed; done
    memsup list | sed 's/^/|     /'
    [ -e $keep/failed ] && echo "VERDICT not proved" || echo "VERDICT proved"
    sleep 5
}

case $(boot_number) in
    1) first_boot;;
    2) second_boot;;
esac

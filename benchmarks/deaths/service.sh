#!/bin/bash
# In the VM, as root, at each of its three boots; see service.py. Everything about memsup is done as the ordinary user `lab`.
lingers=$(systemctl is-active user@1000.service)   # before anybody has asked for anything of that user's
. /lab/job/as_lab.sh
begin() { local run=$1; shift; memsup start --run "$run" "$@" -- sh -c "while :; do date +%s%N > $home/$run.beat; sleep 0.5; done" > /dev/null; }

first_boot() {
    install_memsup
    begin default && kill -9 "$(field default pid)"
    within 60 "the supervisor of a run is killed, and nobody guards it" state default stopped
    memsup service install | sed 's/^/|     /'
    within 60 "the unit of an ordinary user is begun at once and reports ready: $(unit default Type), $(unit default StatusText)" \
        ready_again default 0
    local pid; pid=$(unit default MainPID)
    kill -9 "$pid"
    within 120 "kill -9 of the supervisor: begun again, ready, its command runs" ready_again default "$pid"
    pid=$(unit default MainPID)
    kill -STOP "$pid"
    within 240 "a supervisor that stands still: ended by the watchdog, begun again" ready_again default "$pid"
    begin held && memsup pause --run held > /dev/null
    begin over && memsup stop --run over > /dev/null
    begin asked --set recovery.after_power_loss=ask
    for run in held over asked; do memsup service install --run $run > /dev/null; done
    within 10 "a stopped run's unit is not begun by its installation" is over inactive
    systemctl reboot
    sleep 600
}

second_boot() {
    within 1 "after a reboot the user's services run without a login" same "$lingers" active
    within 180 "a run that was wanted runs again" ready_again default 0
    within 60 "and calls for no attention: the machine was shut down in good order" same "$(field default attention)" "[]"
    within 180 "a second one as well" ready_again asked 0
    within 60 "a paused run is guarded and stays paused" state held paused
    within 10 "and computes nothing" rests held
    within 10 "a stopped one is not begun" is over inactive
    sync   # the installation and the units; what a life writes from here on, it flushes itself or loses
    beats default
    echo "! noted"
    sleep 600
}

third_boot() {
    within 180 "after a power cut a run that was wanted runs again" ready_again default 0
    within 10 "and says that the machine died" says default "The machine went down without shutting down"
    within 10 "and that it goes on gently" says default "Since the machine died it goes on gently"
    within 60 "a paused run stays paused" state held paused
    within 60 "a run that is to ask first is stopped" state asked stopped
    within 10 "and says what to type" says asked "Go on as before: memsup start --run asked"
    within 10 "and computes nothing" rests asked
    within 60 "and its unit has ended in good order" is asked inactive
    memsup start --run asked > /dev/null
    within 60 "it is started, and runs" beats asked
    memsup status | sed 's/^/|     /'
    [ -e $keep/failed ] && echo "VERDICT not proved" || echo "VERDICT proved"
    sleep 5
}

case $(boot_number) in
    1) first_boot;;
    2) second_boot;;
    3) third_boot;;
esac

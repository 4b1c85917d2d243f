# What service.sh and night_queue.sh do in the VM; as root, but for memsup, which is the ordinary user `lab`'s.
keep=/var/lib/service-stage home=/home/lab

memsup() { asuser $home/venv/bin/memsup "$@"; }
unit() { asuser systemctl --user show -P "$2" "memsup-$1.service"; }
field() { memsup status --run "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$2"; }
uptime_s() { cut -d. -f1 /proc/uptime; }

# What is asked, as commands that succeed or fail.
beats() { local then; then=$(cat $home/"$1".beat); sleep 2; [ "$(cat $home/"$1".beat)" != "$then" ]; }
rests() { ! beats "$1"; }
is() { [ "$(unit "$1" ActiveState)" = "$2" ]; }
ready_again() { local pid; pid=$(unit "$1" MainPID); [ "$pid" != 0 ] && [ "$pid" != "$2" ] && is "$1" active && beats "$1"; }
state() { [ "$(field "$1" state)" = "$2" ]; }
says() { field "$1" attention | grep -qF "$2"; }
same() { [ "$1" = "$2" ]; }

# within SECONDS SENTENCE COMMAND…: the command has to succeed in that time, or in PATIENCE times that.
within() {
    local most_s=$(($1 * ${PATIENCE:-1})) sentence=$2 began_s; began_s=$(uptime_s); shift 2
    until "$@"; do
        if [ $(($(uptime_s) - began_s)) -ge "$most_s" ]; then
            echo "| NOT PROVED  $sentence"
            asuser systemctl --user --no-pager --full status "memsup-*" 2>&1 | sed 's/^/|     /'
            memsup status 2>&1 | sed 's/^/|     /'
            touch $keep/failed
            return
        fi
        sleep 0.5
    done
    echo "| proved      $sentence ($(($(uptime_s) - began_s)) s)"
}

install_memsup() {
    mkdir -p $keep /var/log/journal /etc/systemd/journald.conf.d
    printf '[Journal]\nStorage=persistent\n' > /etc/systemd/journald.conf.d/zz-keep.conf
    systemctl restart systemd-journald; journalctl --flush
    usermod -aG systemd-journal lab
    chmod -R a+rX /lab
    asuser python3 -m venv --system-site-packages $home/venv &&
        asuser $home/venv/bin/pip install --quiet --no-index --no-deps /lab/job/wheels/*.whl ||
        { echo "| memsup could not be installed"; echo "VERDICT none"; exit 1; }
}

# Which boot this is, counted from 1.
boot_number() {
    local boots; boots=$(($(cat $keep/boots 2> /dev/null || echo 0) + 1))
    mkdir -p $keep; echo $boots > $keep/boots; sync $keep/boots $keep
    echo $boots
}

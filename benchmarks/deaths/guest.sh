#!/bin/bash
# In the VM, as root, once a boot: the first time it lives and dies as told, the second time it is asked.
death=$1
keep=/var/lib/deaths
python3 -c 'import sys, zipfile; zipfile.ZipFile("msgspec.whl").extractall(".")'
[ "$death" = lost ] || modprobe ramoops mem_address=0x30000000 mem_size=0x100000 record_size=0x20000 max_reason=2
mount -t pstore pstore /sys/fs/pstore 2>/dev/null
if [ -e $keep/died ]; then
    exec python3 guest.py judge $keep
fi
mkdir -p $keep /var/log/journal /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=persistent\n' > /etc/systemd/journald.conf.d/zz-keep.conf
systemctl restart systemd-journald; journalctl --flush
python3 guest.py live $keep > $keep/log 2>&1 &
pid=$!
until [ -e $keep/noted ]; do
    kill -0 $pid 2>/dev/null || { echo "| it did not come up:"; sed 's/^/| /' $keep/log; echo "VERDICT none"; exit 1; }
    sleep 0.5
done
touch $keep/died; sync $keep/died $keep
journalctl --sync
echo "! noted"
case $death in
    power) sleep 600;;
    panic | lost) echo c > /proc/sysrq-trigger;;
    reboot) systemctl reboot; sleep 600;;
    killed) kill -9 $pid; wait $pid 2>/dev/null; exec python3 guest.py judge $keep;;
    oom)
        echo 1000 > /proc/$pid/oom_score_adj
        touch $keep/eat
        while kill -0 $pid 2>/dev/null; do sleep 1; done
        journalctl --sync
        exec python3 guest.py judge $keep;;
esac

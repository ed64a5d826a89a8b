#!/bin/sh
# Removes what a test process left. Waits for the end of standard input, which
# the test process holds open for as long as it lives, then kills what runs in
# the namespaces whose names begin with PREFIX and removes them, their pins and
# the temporary files. After a clean end there is nothing to do.
# usage: watchdog.sh PREFIX TMPDIR
set -u
prefix=${1:?} tmp=${2:?}

while read -r _; do :; done

# What the test process had just begun appears after it is gone: look again
# until nothing is found.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    found=0
    for file in /run/netns/"$prefix"*; do
        [ -e "$file" ] || continue
        found=1
        for pid in $(ip netns pids "${file##*/}"); do
            kill -KILL "$pid"
        done
        ip netns delete "${file##*/}"
    done
    for file in /sys/fs/bpf/"$prefix"* "$tmp/$prefix"*; do
        [ -e "$file" ] || continue
        found=1
        rm -rf -- "$file"
    done
    [ $found = 1 ] || break
    sleep 1
done

#!/bin/sh
# Stands for what a kernel does at boot: the module that was built for it takes the cards, or nouveau does.
rig=/srv/rig
kernel=$(cat $rig/proc/sys/kernel/osrelease)
read -r version sort < "/lib/modules/$kernel/updates/dkms/nvidia.ko" || sort=none
driver=nouveau
grep -qs '^blacklist nouveau' /etc/modprobe.d/*.conf && driver=
rm -f $rig/proc/driver/nvidia/version
case $sort in
open) named="Open Kernel Module for x86_64" ;;
proprietary) named="x86_64 Kernel Module" ;;
*) named= ;;
esac
if [ -n "$named" ]; then
    driver=nvidia
    mkdir -p $rig/proc/driver/nvidia
    echo "NVRM version: NVIDIA UNIX $named  $version  Release Build" > $rig/proc/driver/nvidia/version
fi
for card in "$rig"/sys/bus/pci/devices/*; do
    [ "$(cat "$card/vendor")" = 0x10de ] || continue
    rm -f "$card/driver"
    [ -z "$driver" ] || ln -s ../../drivers/$driver "$card/driver"
    mkdir -p $rig/sys/bus/pci/drivers/$driver
done

#!/bin/sh
# Installs Debian's SLURM for the tests, if this is root on Debian and it is not there; no daemon is left running.
# Where it cannot, it says why and ends well: the tests then skip.
set -eu

missing=
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" > /dev/null || [ -x "/usr/sbin/$program" ] || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

skip() {
    echo "SLURM tests will be skipped: there is no$missing, and $1"
    exit 0
}
command -v apt-get > /dev/null || skip "this is no Debian (install slurmctld, slurmd, slurm-client and munge)"
[ "$(id -u)" = 0 ] || skip "installing needs root (apt-get install slurmctld slurmd slurm-client munge)"

# Debian starts daemons as it installs them. A policy that denies it, for as long as this script runs; containers
# usually have one already.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
ls /var/lib/apt/lists/*Packages* > /dev/null 2>&1 || apt-get update --quiet=2 || skip "apt-get update failed"
# Only what the daemons need: no accounting database, no systemd.
apt-get install --yes --quiet=2 --no-install-recommends slurmctld slurmd slurm-client munge > /tmp/slurm-install.$$ 2>&1 || {
    tail -5 /tmp/slurm-install.$$
    skip "apt-get install failed (/tmp/slurm-install.$$)"
}
rm -f /tmp/slurm-install.$$
